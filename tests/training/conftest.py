"""Resets the record of loss functions, so that functions of different tests do not cause a warning."""

import pytest

from jaxloss.training import objective


@pytest.fixture(autouse=True)
def forget_seen_functions() -> None:
    objective._functions_seen.cache_clear()
