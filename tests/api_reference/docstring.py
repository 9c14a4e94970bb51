"""Docstrings as they read in `help()` become the Markdown that mkdocstrings expects."""

import re

from tests.api_reference.formula import block

_SECTION = re.compile(r"^(\w[\w ]*):\n((?: {4}.*\n|\n)+)", re.MULTILINE)
_KNOWN = {"Args", "Attributes", "Raises", "Returns", "Yields"}  # which mkdocstrings reads by itself
_BLOCK = re.compile(r"(?<=\n\n)(?: {4}.*\n)+")
_TERM = re.compile(r"(?<=\n)(?:(\w+(?:, \w+)*): |(\w[\w ]*)\n {4})(?=\S)")


def _dedented(text: str) -> str:
    return re.sub("^    ", "", text, flags=re.MULTILINE)


def _head(docstring: str) -> str:
    """Returns what stands before the first section."""
    first = _SECTION.search(f"{docstring}\n")
    return f"{docstring}\n"[: first.start() if first else None]


def formula_blocks(docstring: str) -> list[list[str]]:
    """Returns the lines of the blocks of formulas: those that are indented, before the first section."""
    return [_dedented(found).splitlines() for found in _BLOCK.findall(_head(docstring))]


def of_member(docstring: str) -> str:
    """Returns the docstring of a function or class, with formulas as MathML and titles for all sections."""

    def section(found: re.Match[str]) -> str:
        title, text = found.groups()
        if title in _KNOWN:
            return found[0]
        return f"Examples:\n{text}" if title == "Example" else f"**{title}:**\n\n{_dedented(text)}"

    head = _head(docstring)
    formulas = _BLOCK.sub(lambda found: block(_dedented(found[0]).splitlines()) + "\n", head)
    return formulas + _SECTION.sub(section, f"{docstring}\n"[len(head) :])


def of_module(docstring: str) -> str:
    """Returns the docstring of a module, with its sessions as Python and its terms as a definition list."""

    def code(found: re.Match[str]) -> str:
        is_session = found[0].lstrip().startswith(">>> ")
        return f"```pycon\n{_dedented(found[0])}```\n" if is_session else found[0]

    return _TERM.sub(r"\n\1\2\n:   ", _BLOCK.sub(code, f"{docstring}\n"))
