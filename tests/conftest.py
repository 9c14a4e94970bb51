"""The session is stricter than a user's: ranks and dtypes never promote silently, and warnings are errors."""

import gc
import os

import jax
import pytest

from jaxloss._core import blocks

# Compilation dominates the suite. Without LLVM's optimizer and the emitters of fused loops, with all code in
# one piece, it takes half of the time. `.ci/run` compares all losses with the truth at XLA's default, too.
_QUICK = ["--xla_backend_optimization_level=0"]
if jax.__version_info__ < (0, 11):  # a flag that is gone later
    _QUICK += ["--xla_cpu_use_fusion_emitters=false", "--xla_cpu_parallel_codegen_split_count=1"]
os.environ.setdefault("XLA_FLAGS", " ".join(_QUICK))  # before the first array

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")

# To trace makes many objects and little garbage, and a twentieth of the time went into looking for it.
gc.set_threshold(50_000, 20, 100)

# Few classes are as many blocks as a user's large vocabulary.
_AT_ONCE = blocks._at_once
blocks._at_once = lambda *_: 24


@pytest.fixture
def blocks_of_a_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "_at_once", _AT_ONCE)


def _entry(item: pytest.Item) -> str:
    """The entry of the catalogue that a test is about, if any."""
    case = item.callspec.params.get("case") if hasattr(item, "callspec") else None
    return getattr(case, "name", "")


# A test of minutes that comes last leaves all processes but one idle.
_LONGEST = ("test_sharding.py", "test_certificate.py")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Has the tests of an entry stand together, which share what is compiled, and the longest come first."""
    files = list(dict.fromkeys(item.path for item in items))
    items.sort(key=lambda item: (item.path.name not in _LONGEST, files.index(item.path), _entry(item)))


_ENTRIES = 0


def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """Forgets what was compiled, now and then: all of it would take gigabytes."""
    global _ENTRIES
    if nextitem is not None and (item.path, _entry(item)) != (nextitem.path, _entry(nextitem)):
        _ENTRIES += 1
        if _ENTRIES % 16 == 0:
            jax.clear_caches()
