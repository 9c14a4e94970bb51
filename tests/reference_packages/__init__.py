"""What the packages that people use answer, for `python -m tests.reference_packages`."""

from collections.abc import Callable
from typing import Any

Answer = Callable[..., Any]
REFERENCES: dict[str, list[tuple[str, Answer]]] = {}


def reference(package: str, *losses: str) -> Callable[[Answer], Answer]:
    """Registers what asks a package, given it and an entry's arrays and options, for the losses of "none".

    What the package cannot answer is NaN; one that has the mean alone returns that.
    """

    def register(answer: Answer) -> Answer:
        for loss in losses or (answer.__name__,):
            REFERENCES.setdefault(loss, []).append((package, answer))
        return answer

    return register
