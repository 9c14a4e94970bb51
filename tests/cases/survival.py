"""Cox loss: formula, entries and certificate rows."""

from collections.abc import Callable
from decimal import Decimal

import numpy as np

from tests.case import Arrays, add
from tests.formulas import beyond_pytorch, exp, log, total
from tests.situation import INF, row


@beyond_pytorch(None)
def cox_loss(scores, times, events, ties="efron"):
    size = len(scores)
    losses = np.full(size, Decimal(0))
    for i in range(size):
        if events[i]:
            risk = total(exp(scores[j]) for j in range(size) if times[j] >= times[i])
            tied = [j for j in range(size) if times[j] == times[i] and events[j]]
            at_once = total(exp(scores[j]) for j in tied) if ties == "efron" else Decimal(0)
            logs = (log(risk - at_once * k / len(tied)) for k in range(len(tied)))
            losses[i] = total(logs) / len(tied) - scores[i]
    return losses, np.array(events, int)


def _subjects(size: int) -> Callable[[np.random.RandomState], Arrays]:
    return lambda rng: {
        "scores": 2 * rng.randn(size),
        "times": rng.randint(1, 4, size).astype(float),
        "events": (rng.rand(size) < 0.7).astype(int),
    }


for _ties in ("efron", "breslow"):
    add("cox_loss", _ties, _subjects(8), gradients=("scores",), ties=_ties)
    row(
        "cox_loss",
        "scores times events",
        "scores",
        {"ties": _ties},
        zeros=[([0.0, 0.0, 0.0], [1.0, 1.0, 2.0], [1, 1, 1])],
        kinks="smooth in the scores",
        plus="none: a score of +∞ gives NaN, as in softmax",
        minus=[
            ([-INF, 0.5, 1.0], [1.0, 2.0, 2.0], [0, 1, 1]),
            ([-INF, 0.5, 1.0], [3.0, 2.0, 1.0], [0, 1, 1]),
        ],
        far=[([1e4, 0.0, -1e4], [1.0, 2.0, 3.0], [1, 1, 1]), ([-1e4, 0.0, 1e4], [1.0, 1.0, 3.0], [1, 1, 0])],
        half=[([0.5, -1.25, 2.0], [1.0, 1.0, 2.0], [1, 1, 1])],
    )
