"""Test session settings: implicit rank or dtype promotion raises, and warnings are errors."""

import gc
import os

import jax
import pytest

from jaxloss._core import blocks

# Compilation dominates the suite. Without LLVM's optimizer, fusion emitters and parallel code generation, it
# takes half the time. `.ci/run` also compares all losses with the truth at XLA's default optimization level.
_FAST_COMPILATION = ["--xla_backend_optimization_level=0"]
if jax.__version_info__ < (0, 11):  # newer versions do not accept both flags
    _FAST_COMPILATION += ["--xla_cpu_use_fusion_emitters=false", "--xla_cpu_parallel_codegen_split_count=1"]
os.environ.setdefault("XLA_FLAGS", " ".join(_FAST_COMPILATION))  # before the first array

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")

# Tracing creates many objects and little garbage. The default thresholds spend 5 % of the time collecting it.
gc.set_threshold(50_000, 20, 100)

# Small blocks, so that the few classes of a test span several of them, as a large vocabulary does.
_DEFAULT_AT_ONCE = blocks._at_once
blocks._at_once = lambda *_: 24


@pytest.fixture
def default_block_size(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "_at_once", _DEFAULT_AT_ONCE)


def _entry(item: pytest.Item) -> str:
    """Returns the name of the catalogue entry that parametrizes a test, or an empty string."""
    case = item.callspec.params.get("case") if hasattr(item, "callspec") else None
    return getattr(case, "name", "")


# These tests take minutes: started last, they would leave all workers but one idle.
_LONGEST = ("test_sharding.py", "test_certificate.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Groups the tests of an entry, which share compiled programs, and moves the longest files first."""
    files = list(dict.fromkeys(item.path for item in items))
    items.sort(key=lambda item: (item.path.name not in _LONGEST, files.index(item.path), _entry(item)))


_ENTRIES = 0


def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """Clears JAX's caches periodically: keeping all compiled programs would take gigabytes."""
    global _ENTRIES
    if nextitem is not None and (item.path, _entry(item)) != (nextitem.path, _entry(nextitem)):
        _ENTRIES += 1
        if _ENTRIES % 16 == 0:
            jax.clear_caches()
