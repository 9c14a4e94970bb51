"""The PyTorch scripts and their twins correspond, and the snippets for other libraries run."""

import ast
import importlib.util
import re

import jax
import numpy as np
import pytest
from flax import nnx

from tests.test_documentation import GUIDE, PORTING, README

TWINS = re.compile(r"<td>\n\n```py\n(.*?)```\n.*?```python\n(.*?)```", re.DOTALL)
((TORCH, TWIN),) = TWINS.findall(PORTING)
# The fences of what needs more than the test command installs, or looser promotion, are called "py".
SNIPPETS = re.findall(r"^```py\n(.*?)^```$", GUIDE, re.MULTILINE | re.DOTALL)
INSTALLED = {
    library: importlib.util.find_spec(library) is not None
    for library in ("torch", "equinox", "flax", "optax")
}


def run_until_the_loop(code):
    """Runs a script up to its loop; returns its variables and what is left."""
    body = ast.parse(code).body
    loop = next(index for index, statement in enumerate(body) if isinstance(statement, ast.For))
    variables = {"__name__": "__main__"}
    exec(compile(ast.Module(body[:loop], []), "porting.md", "exec"), variables)
    return variables, compile(ast.Module(body[loop:], []), "porting.md", "exec")


def numbered(code):
    return dict(enumerate(code.splitlines()))


def test_the_two_scripts_correspond_line_by_line():
    torch, twin = numbered(TORCH), numbered(TWIN)
    assert torch.keys() == twin.keys()
    # Lines that do not name a library are the same on both sides.
    alike = [number for number in torch if torch[number] == twin[number] != ""]
    assert {torch[number].strip() for number in alike} >= {"losses = []", "for _ in range(60):"}
    assert all(line in TWIN for line in ("train_step", "create_train_state", "label_smoothing=0.1"))


@pytest.mark.parametrize(
    ("torch", "twin"), [(TORCH, TWIN), *TWINS.findall(README)], ids=["porting", "README"]
)
def test_the_two_scripts_have_the_same_loop_and_the_same_result(torch, twin, capsys):
    lines, lines_of_twin = torch.splitlines(), twin.splitlines()
    (loop,) = [line for line in lines if line.startswith("for ")]
    assert loop in lines_of_twin
    assert lines_of_twin[-1] == lines[-1]
    if INSTALLED["torch"]:
        exec(compile(torch, "script", "exec"), {"__name__": "__main__"})
        assert capsys.readouterr().out == "True\n"


def run_torch():
    """Runs PyTorch's script, and returns its first parameters as those of the twin, and its losses."""
    variables, rest = run_until_the_loop(TORCH)
    arrays = [parameter.detach().numpy().copy() for parameter in variables["model"].parameters()]
    exec(rest, variables)
    layers = zip(("hidden", "output"), arrays[::2], arrays[1::2], strict=True)
    params = {name: {"kernel": weight.T, "bias": bias} for name, weight, bias in layers}
    return params, variables["losses"]


def test_the_twin_follows_the_script(capsys):
    variables, rest = run_until_the_loop(TWIN)
    if INSTALLED["torch"]:
        params, expected = run_torch()
        nnx.update(variables["model"], params)
        create = variables["training"].create_train_state
        variables["state"] = create(variables["model"], variables["optimizer"])
    exec(rest, variables)
    losses = variables["losses"]
    assert len(losses) == 60
    assert losses[-1] < 0.6 < 1.0 < losses[0]
    if INSTALLED["torch"]:
        np.testing.assert_allclose(losses, expected, rtol=1e-4)
    assert set(capsys.readouterr().out.split()) == {"True"}


def needs(code):
    return {library for library in INSTALLED if re.search(rf"^(import|from) {library}\b", code, re.MULTILINE)}


def test_there_is_a_snippet_for_each_library():
    assert [needs(code) for code in SNIPPETS] == [{"optax"}, {"flax", "optax"}, {"equinox", "optax"}]


@pytest.mark.parametrize(
    "code", [code for code in SNIPPETS if all(INSTALLED[library] for library in needs(code))]
)
def test_a_snippet_prints_what_it_says(code, capsys):
    # Outside train_step nothing shields Optax from strict promotion, in which it raises a float to an int.
    with jax.numpy_dtype_promotion("standard"):
        exec(compile(code, "porting.md", "exec"), {"__name__": "__main__"})
    assert capsys.readouterr().out.splitlines() == re.findall(r"\bprint\(.*\)  # (.*)", code)
