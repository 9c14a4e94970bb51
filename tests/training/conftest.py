"""A test that makes a function does not count as a loop that makes it anew."""

import pytest

from jaxloss.training import objective


@pytest.fixture(autouse=True)
def no_functions_seen() -> None:
    objective._functions_seen.cache_clear()
