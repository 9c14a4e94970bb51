"""The pages of the site: every public name stands on the page of the module that defines it."""

import ast
import re
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]
START = ROOT / "README.md"
GUIDES = [*sorted((ROOT / "examples").glob("*.md")), ROOT / "tests/benchmarks/README.md"]
GUIDES += [ROOT / "tests/CERTIFICATE.md", ROOT / "CHANGELOG.md"]


class Page(NamedTuple):
    """A page of the reference: the docstring of a module, then those of public names."""

    module: str
    members: dict[str, str]  # the path under which users import it, to the path where it is defined

    @property
    def title(self) -> str:
        """The name of a package, or a family in words."""
        if self.module == "jaxloss":
            return "What all losses share"
        name = self.module.removeprefix("jaxloss.losses.")
        return self.module if name == self.module else name.replace("_", "-").capitalize()

    @property
    def path(self) -> str:
        """The path of the Markdown file."""
        return self.module.replace("jaxloss.", "").replace(".", "/") + ".md"

    @property
    def markdown(self) -> str:
        """The text of the Markdown file, in which mkdocstrings puts the docstrings."""
        heading = f'heading_level: 1, heading: "{self.title}", toc_label: "{self.title}"'
        of_module = f"::: {self.module}\n    options: {{members: false, {heading}}}\n"
        return of_module + "".join(f"\n::: {member}\n" for member in self.members)


def _members(package: str, file: str) -> dict[str, str]:
    """Returns what a package imports for its users, and the public functions and classes that it defines."""
    found: dict[str, str] = {}
    for node in ast.parse((ROOT / file).read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ImportFrom):
            # `import x as x` is how a package says that x is public.
            names = [alias.name for alias in node.names if alias.name == alias.asname]
            found |= {f"{package}.{name}": f"{node.module}.{name}" for name in names}
        elif isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
            found[f"{package}.{node.name}"] = f"{package}.{node.name}"
    return found


def pages() -> list[Page]:
    """Returns the pages of the reference: what all losses share, the families, models and training."""
    losses: dict[str, dict[str, str]] = {"jaxloss": {}}
    for member, home in _members("jaxloss", "jaxloss/__init__.py").items():
        module = home.rpartition(".")[0]
        losses.setdefault(module if ".losses." in module else "jaxloss", {})[member] = home
    return [
        *(Page(module, members) for module, members in losses.items()),
        Page("jaxloss.models", _members("jaxloss.models", "jaxloss/models.py")),
        Page("jaxloss.training", _members("jaxloss.training", "jaxloss/training/__init__.py")),
    ]


def from_repository() -> dict[str, Path]:
    """Returns the other pages and the files that they link, by their paths in the repository."""
    pages = {page: page.read_text(encoding="utf-8") for page in [START, *GUIDES]}
    links = {page.parent / link for page in pages for link in re.findall(r"\]\(([^):#]+)\)", pages[page])}
    files = {path.resolve() for path in links if path.is_file()}  # MkDocs reports the others
    return {str(path.relative_to(ROOT)): path for path in [*pages, *sorted(files - pages.keys())]}
