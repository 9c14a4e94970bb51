"""What MkDocs and Griffe call while they build the site; `mkdocs.yml` names it."""

import importlib.resources
import logging
import re
from typing import Any

from griffe import Extension, Module, Object
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

from tests.api_reference import docstring
from tests.api_reference.pages import GUIDES, ROOT, START, from_repository, pages

_PAGES = pages()
_HOMES = tuple(home for page in _PAGES for home in page.members.values())
# Code that is a public name becomes a link. Not after another cell of a table: there PyTorch's names stand.
_TARGETS = {member.rpartition(".")[2]: member for page in _PAGES for member in page.members}
_TARGETS |= {member: member for member in _TARGETS.values()} | {page.module: page.module for page in _PAGES}
del _TARGETS["reduce"]  # often PyTorch's argument; `jaxloss.reduce` is linked
_TWINS = re.compile(
    r"<table><tr><th>(.*?)</th><th>(.*?)</th></tr><tr><td>(.*?)</td><td>(.*?)</td></tr></table>", re.DOTALL
)
_CODE = re.compile(r"(?<!</td>\n<td>)<code>(?:help\()?([\w.]+)\)?</code>(?!</a>)")


class Docstrings(Extension):
    """Rewrites docstrings before they are parsed."""

    def on_instance(self, *, obj: Object, **_: Any) -> None:
        """Called for every object when Griffe has found its docstring."""
        if obj.docstring and isinstance(obj, Module):
            obj.docstring.value = docstring.of_module(obj.docstring.value)
        elif obj.docstring and obj.path.startswith(_HOMES):
            obj.docstring.value = docstring.of_member(obj.docstring.value)


def on_config(config: MkDocsConfig) -> None:
    """Makes the navigation."""
    shared, *families, models, training = ({page.title: page.path} for page in _PAGES)
    start, *guides = (str(path.relative_to(ROOT)) for path in [START, *GUIDES])
    config.nav = [{"Start": start}, shared, {"Losses": families}, models, training, {"Guides": guides}]


def on_files(files: Files, config: MkDocsConfig) -> None:
    """Adds the pages of the reference, and those of the repository with what they link."""
    for page in _PAGES:
        files.append(File.generated(config, page.path, content=page.markdown))
    for name, path in from_repository().items():
        files.append(File.generated(config, name, abs_src_path=str(path)))
    font = importlib.resources.files("ziamath") / "fonts/STIXTwoMath-Regular.ttf"
    files.append(File.generated(config, font.name, content=font.read_bytes()))


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Rewrites HTML whose Markdown MkDocs would not read: tables in `details`, and scripts in cells."""
    markdown = re.sub(r"<details( open)?>", r'\n<details\1 markdown="1">', markdown)
    return _TWINS.sub(
        r"\n**\1:**\n\3\n**\2:**\n\4", re.sub(r"^<!-- .* -->$", "", markdown, flags=re.MULTILINE)
    )


def on_page_content(html: str, page: Page, **_: Any) -> str:
    """Links code to what it names, and warns of tables that are still Markdown."""
    if "| --- |" in re.sub(r"<pre.*?</pre>", "", html, flags=re.DOTALL):
        logging.getLogger("mkdocs").warning("%s: a table is not rendered", page.file.src_uri)

    def link(found: re.Match[str]) -> str:
        target = _TARGETS.get(found[1])
        return f'<autoref identifier="{target}">{found[0]}</autoref>' if target else found[0]

    return _CODE.sub(link, html)
