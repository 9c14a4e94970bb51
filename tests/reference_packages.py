"""Holds the formulas of the losses beyond PyTorch against the packages that people use, once.

`python -m tests.reference_packages` prints a line for each loss: how far formula and package are apart on the
entries of the catalogue that the package can answer. Arguments name the losses, by default all. pytest does
not run it. It needs

    pip install torch==2.13.0 scikit-learn
"""

import importlib
import sys
from collections.abc import Callable
from decimal import localcontext
from typing import Any

import numpy as np

from tests import formulas
from tests.catalogue import CASES, Case
from tests.oracle import decimals

Answer = Callable[..., Any]
REFERENCES: dict[str, list[tuple[str, Answer]]] = {}


def reference(package: str, *losses: str) -> Callable[[Answer], Answer]:
    """Registers what asks a package: given it, and an entry's arrays and options, for losses in "none".

    Where it returns None the package cannot answer.
    """

    def register(answer: Answer) -> Answer:
        for loss in losses or (answer.__name__,):
            REFERENCES.setdefault(loss, []).append((package, answer))
        return answer

    return register


# Quantiles.


@reference("sklearn.metrics")
def quantile_loss(metrics, predictions, targets, quantiles=0.5):
    if np.ndim(quantiles):
        pairs = list(zip(np.moveaxis(predictions, -1, 0), quantiles, strict=True))
        return np.stack([quantile_loss(metrics, p, targets, q) for p, q in pairs], -1)
    pairs = zip(targets.ravel(), predictions.ravel(), strict=True)
    losses = [metrics.mean_pinball_loss([t], [p], alpha=quantiles) for t, p in pairs]
    return np.reshape(losses, targets.shape)


def main() -> None:
    """Prints the largest difference of each loss from each package."""
    for loss in sys.argv[1:] or REFERENCES:
        for package, answer in REFERENCES[loss]:
            compare(loss, package, answer)


def compare(loss: str, package: str, answer: Answer) -> None:
    """Prints the largest difference of a loss from a package, relative to the largest loss of the entry."""
    module, cases, differences = importlib.import_module(package), [c for c in CASES if c.loss == loss], []
    for case in cases:
        theirs = answer(module, **case.arrays, **case.options)
        if theirs is not None:
            ours = formula(case)
            assert np.shape(theirs) == ours.shape, (case.name, np.shape(theirs), ours.shape)
            differences.append(np.max(np.abs(ours - theirs)) / np.max(np.abs(ours), initial=1e-300))
    print(f"{loss}: {max(differences):.1e} from {package} in {len(differences)} of {len(cases)} entries")


def formula(case: Case) -> np.ndarray:
    """Returns the losses of an entry by their formula."""
    with localcontext(formulas.CONTEXT):
        arrays = {name: decimals(array) for name, array in case.arrays.items()}
        losses, _ = formulas.evaluate_batch(case.loss, arrays, case.options)
        return losses.astype(float)


if __name__ == "__main__":
    main()
