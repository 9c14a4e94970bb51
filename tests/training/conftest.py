"""A test that makes a function does not count as a loop that makes it anew."""

import pytest

from jaxloss.training import objective


@pytest.fixture(autouse=True)
def forget_seen_functions() -> None:
    objective._functions_seen.cache_clear()
