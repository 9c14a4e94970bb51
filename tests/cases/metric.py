"""Losses that learn a metric: formulas, entries and rows of the certificate."""

from collections.abc import Callable, Iterator
from decimal import Decimal

import numpy as np

from tests.case import Arrays, add
from tests.cases.contrastive import extremes, unit
from tests.formulas import beyond_pytorch, exp, frozen, log, total

# Losses that relate rows by their labels.


def _rows(embeddings, targets, normalize) -> Iterator[tuple[list[Decimal], list[Decimal]]]:
    """Yields each row's similarities with its positives, and with its negatives."""
    x, size = unit(embeddings, normalize), range(len(embeddings))
    s = x @ x.T
    for i in size:
        positives = [s[i, j] for j in size if j != i and targets[j] == targets[i]]
        yield positives, [s[i, j] for j in size if targets[j] != targets[i]]


def _numbers(*options) -> Iterator[Decimal]:
    return (Decimal(np.asarray(option, object).item()) for option in options)


@beyond_pytorch(None)
def circle_loss(embeddings, targets, margin=0.4, gamma=80.0, normalize=True):
    margin, gamma = _numbers(margin, gamma)
    losses, weight = [], []
    for positives, negatives in _rows(embeddings, targets, normalize):
        pulls = [frozen(max(1 + margin - s, Decimal(0))) * (s - 1 + margin) for s in positives]
        pushes = [frozen(max(s + margin, Decimal(0))) * (s - margin) for s in negatives]
        of_positives = total(exp(-gamma * pull) for pull in pulls)
        losses.append(log(1 + of_positives * total(exp(gamma * push) for push in pushes)))
        weight.append(int(bool(positives and negatives)))
    return np.array(losses, object), np.array(weight, int)


@beyond_pytorch(None)
def multi_similarity_loss(embeddings, targets, alpha=2.0, beta=50.0, base=0.5, normalize=True):
    alpha, beta, base = _numbers(alpha, beta, base)
    losses = []
    for positives, negatives in _rows(embeddings, targets, normalize):
        of_positives = log(1 + total(exp(-alpha * (s - base)) for s in positives)) / alpha
        losses.append(of_positives + log(1 + total(exp(beta * (s - base)) for s in negatives)) / beta)
    return np.array(losses, object)


def _labelled(**options: float) -> Callable[[np.random.RandomState], Arrays]:
    def make(rng: np.random.RandomState) -> Arrays:
        learned = {name: np.array(option) for name, option in options.items()}
        return {"embeddings": rng.randn(6, 3), "targets": np.array([0, 1, 0, 7, 1, 1]), **learned}

    return make


# Not smooth: what circle loss freezes has no part in its derivatives, but in its differences.
add("circle_loss", "matrix", _labelled(), margin=0.25, gamma=4.0, smooth=False)
add("circle_loss", "learned", _labelled(margin=0.5, gamma=0.25), normalize=False, smooth=False)
add("multi_similarity_loss", "matrix", _labelled(), beta=4.0)
add("multi_similarity_loss", "learned", _labelled(alpha=1.5, beta=2.0, base=0.25), normalize=False)

for _loss, _options in (
    ("circle_loss", {"gamma": 2.0, "margin": 0.25}),
    ("multi_similarity_loss", {"beta": 4.0}),
):
    extremes(
        _loss,
        _options,
        "embeddings",
        [0, 1, 0],
        same=[0, 1, 0],
        nil=[0, 0, 1],
        endless=lambda vectors: (vectors, [0, 1, 0]),
    )
