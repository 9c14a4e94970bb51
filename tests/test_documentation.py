"""Docstrings and README say all that they promise to say, and what they show is run."""

import doctest
import inspect
import pydoc
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

import jaxloss
from tests import torch_oracle
from tests.case import public_losses

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
CHANGELOG = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

PUBLIC = {name: value for name, value in vars(jaxloss).items() if inspect.isfunction(value)}
SECTIONS = ["Args", "Returns", "Raises", "Example", "Differences from PyTorch"]
SECTIONS += ["Differences from other libraries", "Source"]
# The README's table of losses beyond PyTorch: name, what it takes, reference.
BEYOND = re.findall(r"^\| `(\w+)` \| [^|]* \| [^|]* \|$", README, re.MULTILINE)

every_public_function = pytest.mark.parametrize("name", PUBLIC)


def sections(name: str) -> dict[str, str]:
    """Returns the sections of a docstring, title to text."""
    _, *parts = re.split(r"^(\w[\w ]*):\n(?=    )", inspect.getdoc(PUBLIC[name]) or "", flags=re.MULTILINE)
    return dict(zip(parts[::2], parts[1::2], strict=True))


def blocks(language: str, text: str) -> list[str]:
    """Returns the fenced blocks of Markdown in a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def run_and_compare(code: str, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    """Runs a block, compares what it prints with what it says, and returns its variables."""
    variables = {"__name__": "__main__"}
    exec(compile(code, "<block>", "exec"), variables)
    said = re.findall(r"\bprint\(.*\)  # (.*)", code)
    assert said
    assert ", ".join(capsys.readouterr().out.splitlines()) == ", ".join(said)
    return variables


@every_public_function
def test_docstring_is_complete(name: str):
    # What all losses share, their errors above all, stands in the docstring of the package.
    found = list(sections(name))
    assert found == [title for title in SECTIONS if title in found]
    assert {"Args", "Returns", "Example", *({"Source"} if name != "reduce" else ())} <= {*found}
    assert len((inspect.getdoc(PUBLIC[name]) or "").splitlines()) <= 45


def test_help_shows_array_like_and_not_the_union_behind_it():
    shown = pydoc.plain(pydoc.render_doc(jaxloss.huber_loss))
    assert "ArrayLike" in shown
    assert "ndarray" not in shown


@every_public_function
def test_docstring_explains_every_argument(name: str):
    explained = re.findall(r"^    (\w+): \S", sections(name)["Args"], re.MULTILINE)
    assert explained == list(inspect.signature(PUBLIC[name]).parameters)


@every_public_function
def test_example_is_run(name: str, pytestconfig: pytest.Config):
    # This is how pytest finds and runs it, once, in the module where the function is written.
    assert pytestconfig.getoption("doctestmodules")
    assert "jaxloss" in pytestconfig.getini("testpaths")
    home = inspect.getmodule(PUBLIC[name])
    found = {test.name: test.examples for test in doctest.DocTestFinder().find(home)}
    assert found[f"{PUBLIC[name].__module__}.{name}"]


@pytest.mark.parametrize(
    "code",
    [
        pytest.param(code, id=title)
        for title, text in re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", README, re.MULTILINE | re.DOTALL)
        for code in blocks("python", text)
    ],
)
def test_readme_code_runs_and_prints_what_it_says(code: str, capsys: pytest.CaptureFixture[str]):
    run_and_compare(code, capsys)


def test_readme_has_two_complete_commands():
    commands = blocks("bash", README)
    assert [command.count("\n") for command in commands] == [1, 1]
    for command, end in zip(commands, ("-m examples\n", "-m pytest\n"), strict=True):
        assert command.endswith(end)
        (extras,) = re.findall(r"pip install -q '\.\[(.*?)\]'", command)
        assert set(extras.split(",")) <= PROJECT["optional-dependencies"].keys()


def test_readme_table_names_every_loss_and_no_other():
    table = re.findall(r"^\| `(\w+)` \| [^|]* \| `(\w+)` \| (?:`(\w+)`|—) \|$", README, re.MULTILINE)
    named = [*(loss for loss, *_ in table), *BEYOND]
    assert len({*named}) == len(named)
    assert public_losses() <= {*named} <= PUBLIC.keys()
    assert all(re.search(rf"`(jaxloss\.)?{name}`", README) for name in PUBLIC)
    if torch_oracle.IS_INSTALLED:
        from torch import nn

        for _, criterion, function in table:
            assert hasattr(nn, criterion)
            assert not function or hasattr(nn.functional, function)


def test_changelog_has_this_version():
    assert f"## [{PROJECT['version']}]" in CHANGELOG
