"""Docstrings as they read in `help()` become the Markdown that mkdocstrings expects."""

import re

from tests.api_reference.formula import block

# Sections with a meaning of their own; mkdocstrings reads them from Google's style.
_KNOWN = "Args|Attributes|Raises|Returns|Yields"
_SECTION = re.compile(r"^(\w[\w ]*):\n((?: {4}.*\n|\n)+)", re.MULTILINE)
_INDENTED = re.compile(r"(?<=\n\n)(?: {4}.*\n)+")
_TERM = re.compile(r"^(?:(\w+(?:, \w+)*): |(\w[\w ]*)\n {4})(?=\S)", re.MULTILINE)


def _dedented(text: str) -> str:
    return re.sub("^    ", "", text, flags=re.MULTILINE)


def _section(found: re.Match[str]) -> str:
    title, text = found.groups()
    if re.fullmatch(_KNOWN, title):
        return found[0]
    if title == "Example":
        return f"Examples:\n{text}"
    return f"**{title}:**\n\n{_dedented(text)}"


def formula_blocks(docstring: str) -> list[list[str]]:
    """Returns the lines of the indented blocks that stand before the first section."""
    head = _SECTION.split(f"{docstring}\n", maxsplit=1)[0]
    return [_dedented(found).splitlines() for found in _INDENTED.findall(head)]


def of_member(docstring: str) -> str:
    """Returns a function's or class's docstring with formulas as MathML and all its sections as such."""
    head, *rest = re.split(r"^(?=\w[\w ]*:\n {4})", f"{docstring}\n", maxsplit=1, flags=re.MULTILINE)
    head = _INDENTED.sub(lambda found: block(_dedented(found[0]).splitlines()) + "\n", head)
    return head + "".join(_SECTION.sub(_section, text) for text in rest)


def of_module(docstring: str) -> str:
    """Returns a module's docstring with its sessions as code and its terms as a definition list."""
    sessions = re.sub(
        r"(?<=\n\n)(?= {4}>>> )(?: {4}.*\n)+",
        lambda found: f"```pycon\n{_dedented(found[0])}```\n",
        f"{docstring}\n",
    )
    return _TERM.sub(lambda found: f"\n{found[1] or found[2]}\n:   ", sessions)
