"""The layers of the package: which module may import which, and what an import loads."""

import ast
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

import jaxloss

PACKAGE = Path(jaxloss.__file__).parent
MODULES = sorted(
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
    for path in PACKAGE.rglob("*.py")
    if path.stem != "__init__"
)
# From the lowest module of the core to the highest: each imports only from those before it.
_CORE = "checks arguments decorator derivatives reduction classes blocks projection pairs"
CORE = [f"_core.{name}" for name in _CORE.split()]
FAMILIES = [name for name in MODULES if name.startswith("losses.")]
TRAINING = [name for name in MODULES if name.startswith("training.") or name == "models"]


def imports(module: str) -> set[str]:
    """Returns what a module imports: modules of this package, and top-level names of other packages."""
    found: set[str] = set()
    for node in ast.walk(ast.parse((PACKAGE / f"{module.replace('.', '/')}.py").read_text())):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        found |= {
            name.removeprefix("jaxloss.") if name.startswith("jaxloss.") else name.split(".")[0]
            for name in names
        }
    return found


def test_imports_finds_known_imports():
    assert "_core.reduction" in imports("losses.regression")
    assert "flax" in imports("models")


def test_every_module_belongs_to_a_layer():
    assert {*MODULES} <= {*CORE, *FAMILIES, *TRAINING}


@pytest.mark.parametrize("module", [name for name in MODULES if name.startswith("_core.")])
def test_a_core_module_imports_only_from_lower_ones(module: str):
    within = {name for name in imports(module) if name.split(".")[0] in ("_core", "losses", "jaxloss")}
    assert within <= {*CORE[: CORE.index(module)]}


@pytest.mark.parametrize("module", FAMILIES)
def test_loss_families_do_not_import_each_other(module: str):
    outside = {name for name in imports(module) if name.split(".")[0] in ("losses", "jaxloss", "models")}
    assert not outside


@pytest.mark.parametrize("module", TRAINING)
def test_models_and_training_import_no_loss(module: str):
    # The adaptive softmax has parameters, and `models` has a layer for them.
    allowed = {"losses.adaptive"} if module == "models" else set[str]()
    assert not imports(module) & {*FAMILIES, "jaxloss", "losses"} - allowed


def test_importing_the_package_loads_no_optional_dependency():
    code = (
        "import sys, jaxloss; print(sorted({'flax', 'optax', 'torch', 'chex', 'sklearn'} & set(sys.modules)))"
    )
    printed = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    assert printed.stdout.strip() == "[]"


TRAINING_NEEDS = "jaxloss.training needs Flax, Optax and Orbax: pip install 'jaxloss[train]'"


@pytest.mark.parametrize(
    ("file", "package", "remedy"),
    [
        ("jaxloss/models.py", "flax", "jaxloss.models needs Flax: pip install 'jaxloss[train]'"),
        ("jaxloss/training/__init__.py", "flax", TRAINING_NEEDS),
        ("jaxloss/training/__init__.py", "optax", TRAINING_NEEDS),
        ("jaxloss/training/__init__.py", "orbax.checkpoint", TRAINING_NEEDS),
        ("examples/__init__.py", "sklearn", "the examples need sklearn: pip install '.[examples]'"),
    ],
)
def test_a_missing_optional_dependency_raises_with_a_remedy(file, package, remedy, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)  # makes its import fail
    with pytest.raises(ModuleNotFoundError, match=re.escape(remedy)) as error:
        runpy.run_path(str(PACKAGE.parent / file))
    if file.startswith("jaxloss"):
        assert package in str(error.value.__cause__)


@pytest.mark.parametrize("module", MODULES)
def test_no_file_and_no_function_is_long(module: str):
    source = (PACKAGE / f"{module.replace('.', '/')}.py").read_text()
    assert len(source.splitlines()) <= 450
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef):
            docstring = node.body[0].end_lineno if ast.get_docstring(node) else node.body[0].lineno
            assert node.end_lineno - docstring <= 45, node.name
