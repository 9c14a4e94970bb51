"""Docstrings and documents are complete, their links resolve, and their code runs and prints what it says."""

import doctest
import importlib.metadata
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
PORTING = (ROOT / "examples" / "porting.md").read_text(encoding="utf-8")
GUIDE = (ROOT / "examples" / "guide.md").read_text(encoding="utf-8")
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("examples/**/*.md"), *ROOT.glob("tests/**/*.md")]
CHANGELOG = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]

PUBLIC = {name: value for name, value in vars(jaxloss).items() if inspect.isfunction(value)}
SECTIONS = ["Args", "Returns", "Raises", "Example", "Differences from PyTorch"]
SECTIONS += ["Differences from other libraries", "Source"]
# A row of the README's tables of losses: names, inputs, names in PyTorch or of the reference.
ROWS = re.findall(
    r"^\| (`.*?) \| [^|]* \| ([^|]*) \|$",
    README[README.index("## Losses") : README.index("## Masks")],
    re.MULTILINE,
)

# A row of the table of PyTorch's losses: name, name in torch.nn, name in torch.nn.functional or nothing.
PORTED = re.findall(r"^\| `(\w+)` \| [^|]* \| `(\w+)` \| (?:`(\w+)`|—) \|$", PORTING, re.MULTILINE)

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
        for page in (README, GUIDE, PORTING)
        for title, text in re.findall(r"^## (.*?)\n(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL)
        for code in blocks("python", text)
    ],
)
def test_code_runs_and_prints_what_it_says(code: str, capsys: pytest.CaptureFixture[str]):
    run_and_compare(code, capsys)


def test_readme_has_two_complete_commands():
    commands = blocks("bash", README)
    assert [command.count("\n") for command in commands] == [1, 1]
    for command, end in zip(commands, ("-m examples\n", "-m pytest\n"), strict=True):
        assert command.endswith(end)
        (extras,) = re.findall(r"pip install -q '\.\[(.*?)\]'", command)
        assert set(extras.split(",")) <= PROJECT["optional-dependencies"].keys()


def test_readme_fits_its_reader():
    assert len(README.splitlines()) <= 250


def test_readme_tables_name_every_loss_once():
    named = [name for names, _ in ROWS for name in re.findall(r"`(\w+)`", names)]
    assert len({*named}) == len(named)
    assert public_losses() <= {*named} <= PUBLIC.keys()
    assert all(re.search(rf"`(jaxloss\.)?{name}`", README) for name in PUBLIC)


def test_readme_counts_the_losses_beyond_pytorch():
    assert "sixty more losses" in README
    assert len(public_losses() - {name for name, *_ in PORTED}) // 10 == 6


def test_the_names_in_pytorch_exist():
    assert all(function in (name, "") for name, _, function in PORTED)
    in_readme = {
        name: criterion
        for names, criteria in ROWS
        for name, criterion in zip(
            re.findall(r"`(\w+)`", names), re.findall(r"`nn\.(\w+)`", criteria), strict=False
        )
    }
    assert in_readme == {name: criterion for name, criterion, _ in PORTED}
    if torch_oracle.IS_INSTALLED:
        from torch import nn

        assert all(hasattr(nn, criterion) for _, criterion, _ in PORTED)
        assert all(hasattr(nn.functional, function) for *_, function in PORTED if function)


def slug(heading: str) -> str:
    """Returns the anchor that GitHub gives to a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_inside_the_repository_resolve(page: Path):
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for link in re.findall(r"\]\(([^)\s]+)\)|(?:src|href)=\"([^\"]+)\"", text):
        target, _, anchor = "".join(link).partition("#")
        if not target.startswith(("https://", "http://")):
            file = page.parent / target if target else page
            assert file.exists(), link
            headings = (
                re.findall(r"^#+ (.*)$", file.read_text(encoding="utf-8"), re.MULTILINE) if anchor else []
            )
            assert not anchor or anchor in map(slug, headings), link


def test_badges_and_citation_agree_with_the_project():
    oldest = PROJECT["requires-python"].removeprefix(">=")
    (jax,) = PROJECT["dependencies"]
    assert f"Python-{oldest}_to_" in README
    assert f"JAX-{jax.removeprefix('jax>=')}_to_" in README
    assert f"License-{PROJECT['license'].replace('-', '_')}-" in README
    assert f"version = {{{jaxloss.__version__}}}" in README


def test_changelog_has_this_version():
    assert f"## [{jaxloss.__version__}]" in CHANGELOG
    assert importlib.metadata.version("jaxloss") == jaxloss.__version__
