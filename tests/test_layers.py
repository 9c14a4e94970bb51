"""The structure of the house: who may import whom, and what an import costs."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import jaxloss

PACKAGE = Path(jaxloss.__file__).parent
MODULES = sorted(path.stem for path in PACKAGE.glob("*.py") if path.stem != "__init__")
TRAINING = ["models", "training", "epochs", "placement", "checkpoints"]
FAMILIES = [name for name in MODULES if not name.startswith("_") and name not in TRAINING]


def imports(module: str) -> set[str]:
    """Returns the modules of this package, and the top level of the others, that a module imports."""
    found = set()
    for node in ast.walk(ast.parse((PACKAGE / f"{module}.py").read_text())):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module] if isinstance(node, ast.ImportFrom) else []
        found |= {
            name.removeprefix("jaxloss.") if name.startswith("jaxloss.") else name.split(".")[0]
            for name in names
        }
    return found & set(MODULES) | {
        name for name in found if name in ("jaxloss", "flax", "optax", "torch", "chex")
    }


def test_the_reader_of_imports_sees_them():
    assert "_reduction" in imports("regression")
    assert "flax" in imports("models")


@pytest.mark.parametrize("module", [name for name in MODULES if name.startswith("_")])
def test_private_files_import_private_files_only(module):
    assert all(name.startswith("_") for name in imports(module))


@pytest.mark.parametrize("module", FAMILIES)
def test_families_never_import_each_other(module):
    assert all(name.startswith("_") for name in imports(module))


@pytest.mark.parametrize("module", TRAINING)
def test_models_and_training_import_no_loss(module):
    # A loss that has parameters has a layer over them.
    allowed = {"adaptive"} if module == "models" else set()
    assert not imports(module) & {*FAMILIES, "jaxloss"} - allowed


def test_imports_have_no_cycle():
    from graphlib import TopologicalSorter

    list(TopologicalSorter({name: imports(name) & set(MODULES) for name in MODULES}).static_order())


def test_importing_the_package_loads_jax_alone():
    code = (
        "import sys, jaxloss; print(sorted({'flax', 'optax', 'torch', 'chex', 'sklearn'} & set(sys.modules)))"
    )
    printed = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    assert printed.stdout.strip() == "[]"


@pytest.mark.parametrize("module", MODULES)
def test_no_file_and_no_function_is_long(module):
    source = (PACKAGE / f"{module}.py").read_text()
    assert len(source.splitlines()) <= 450
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.FunctionDef):
            docstring = node.body[0].end_lineno if ast.get_docstring(node) else node.body[0].lineno
            assert node.end_lineno - docstring <= 45, node.name
