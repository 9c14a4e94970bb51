"""Answers of widely used packages, for `python -m tests.reference_packages`."""

from collections.abc import Callable
from typing import Any

Answer = Callable[..., Any]
REFERENCES: dict[str, list[tuple[str, Answer]]] = {}


def reference(package: str, *losses: str) -> Callable[[Answer], Answer]:
    """Registers a function that computes unreduced losses with a package.

    It takes the package's module and an entry's arrays and options. It returns NaN where the package does not
    apply, and the mean if the package has only that.
    """

    def register(answer: Answer) -> Answer:
        for loss in losses or (answer.__name__,):
            REFERENCES.setdefault(loss, []).append((package, answer))
        return answer

    return register
