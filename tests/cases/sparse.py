"""Sparsemax and entmax losses: formulas, entries and certificate rows."""

from collections.abc import Callable
from decimal import Decimal

import numpy as np

from tests.case import Arrays, add
from tests.formulas import beyond_pytorch, power, times, total
from tests.situation import INF, row


def sparsemax(x):
    ordered = sorted(x, reverse=True)
    thresholds = [(total(ordered[:k]) - 1) / k for k in range(1, len(x) + 1)]
    threshold = max(t for k, t in enumerate(thresholds) if ordered[k] > t)
    return [max(Decimal(0), number - threshold) for number in x]


def entmax15(x):
    ordered = sorted((number / 2 for number in x), reverse=True)
    found = []
    for k in range(1, len(x) + 1):
        mean = total(ordered[:k]) / k
        rest = 1 - total((number - mean) ** 2 for number in ordered[:k])
        if rest >= 0 and ordered[k - 1] > mean - (rest / k).sqrt():
            found.append(mean - (rest / k).sqrt())
    return [max(Decimal(0), number / 2 - found[-1]) ** 2 for number in x]


def quadratic(p):
    return (total(number**2 for number in p) - 1) / 2


def of_power(p):
    return (total(power(number, Decimal("1.5")) for number in p) - 1) * 4 / 3


def fenchel_young(logits, targets, axis, ignore_index, probs, entropy):
    """Returns the Fenchel-Young loss of a negative entropy, and the weight of each position."""
    scores = np.moveaxis(logits, axis, -1)
    hard = np.ndim(targets) < logits.ndim
    soft = None if hard else np.moveaxis(targets, axis, -1)
    losses, weight = (np.full(scores.shape[:-1], Decimal(0)) for _ in range(2))
    for place in np.ndindex(*scores.shape[:-1]):
        if hard and targets[place] == ignore_index:
            continue
        x = scores[place]
        t = [Decimal(int(c == targets[place])) for c in range(len(x))] if hard else soft[place]
        p = probs(x)
        conjugate = total(times(a, b) for a, b in zip(p, x, strict=True)) - entropy(p)
        losses[place] = conjugate + entropy(t) - total(times(a, b) for a, b in zip(t, x, strict=True))
        weight[place] = Decimal(1)
    return losses, weight


@beyond_pytorch(None)
def sparsemax_loss(logits, targets, axis=-1, ignore_index=-100):
    return fenchel_young(logits, targets, axis, ignore_index, sparsemax, quadratic)


@beyond_pytorch(None)
def entmax15_loss(logits, targets, axis=-1, ignore_index=-100):
    return fenchel_young(logits, targets, axis, ignore_index, entmax15, of_power)


def _labelled(*shape: int, axis: int = -1) -> Callable[[np.random.RandomState], Arrays]:
    def make(rng: np.random.RandomState) -> Arrays:
        labels = rng.randint(0, shape[axis], np.delete(shape, axis))
        labels.flat[0] = -100
        return {"logits": 2 * rng.randn(*shape), "targets": labels}

    return make


def _soft(*shape: int) -> Callable[[np.random.RandomState], Arrays]:
    return lambda rng: {
        "logits": 2 * rng.randn(*shape),
        "targets": rng.dirichlet(3 * np.ones(shape[-1]), shape[:-1]),
    }


for _loss in ("sparsemax_loss", "entmax15_loss"):
    add(_loss, "image", _labelled(2, 5, 3, axis=1), axis=1)
    add(_loss, "soft", _soft(4, 5))
    row(
        _loss,
        "logits targets",
        "logits",
        zeros=[([0.0, 0.0, 0.0], 0)],
        kinks="second derivatives at the edge of the support are one-sided",
        plus=[([INF, 0.0, 1.0], 0)],
        minus=[([-INF, 0.0, 0.25], 1), ([-INF, 0.0, 0.25], 0)],
        far=[([1e200, -1e200, 0.0], 0), ([1e4, 0.0, -1e4], 1)],
        half=[([0.5, 0.25, -2.0], 2), ([3.0, 0.0, 0.5], 0)],
    )
