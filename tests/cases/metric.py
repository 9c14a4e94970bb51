"""Metric-learning losses: formulas, entries and certificate rows."""

from collections.abc import Callable, Iterator
from decimal import Decimal
from typing import Any

import numpy as np

from tests.case import Arrays, add
from tests.cases.contrastive import extremes, unit
from tests.formulas import beyond_pytorch, exp, frozen, kinked, log, total
from tests.situation import INF, at, row

# Losses that compare rows by their labels.


def _rows(embeddings, targets, normalize) -> Iterator[tuple[list[Decimal], list[Decimal]]]:
    """Yields each row's similarities to its positives and to its negatives."""
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


# Not smooth: circle loss stops gradients, which finite differences of its values would include.
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
        same_targets=[0, 1, 0],
        zero_targets=[0, 0, 1],
        infinite=lambda vectors: (vectors, [0, 1, 0]),
    )


def cosine_and_sine(angle):
    """Returns both, from their power series."""
    terms, n = [Decimal(1)], 0
    while abs(terms[-1]) > Decimal("1e-90"):
        n += 1
        terms.append(terms[-1] * angle / n)
    signs = [1, 1, -1, -1]
    even, odd = ([signs[n % 4] * term for n, term in enumerate(terms) if n % 2 == k] for k in (0, 1))
    return total(even), total(odd)


def margin_cross_entropy(margined, embeddings, kernel, targets, scale):
    """Returns the cross-entropy of an embedding after a margin is applied to the label's cosine."""
    (x,), columns = unit(embeddings[None]), unit(kernel.T)
    logits = [Decimal(scale) * (x @ column) for column in columns]
    label = logits[targets] / Decimal(scale)
    logits[targets] = Decimal(scale) * margined(label)
    return log(total(map(exp, logits))) - logits[targets]


@beyond_pytorch("(d),(d,c),()->()")
def arcface_loss(embeddings, kernel, targets, margin=0.5, scale=64.0):
    angle = Decimal(margin)
    cosine_of_margin, sine_of_margin = cosine_and_sine(angle)

    def margined(cosine):
        if cosine < -cosine_of_margin:
            return cosine - angle * sine_of_margin
        square = kinked((1 - cosine) * (1 + cosine))
        return cosine * cosine_of_margin - max(square, Decimal(0)).sqrt() * sine_of_margin

    return margin_cross_entropy(margined, embeddings, kernel, targets, scale)


@beyond_pytorch("(d),(d,c),()->()")
def cosface_loss(embeddings, kernel, targets, margin=0.35, scale=64.0):
    return margin_cross_entropy(lambda cos: cos - Decimal(margin), embeddings, kernel, targets, scale)


def _classes(*shape: int, classes: int) -> Callable[[np.random.RandomState], Arrays]:
    return lambda rng: {
        "embeddings": rng.randn(*shape),
        "kernel": rng.randn(shape[-1], classes),
        "targets": np.asarray(rng.randint(0, classes, shape[:-1])),
    }


# The angles of the first and third embedding to their labels are just below and just above π - 0.5.
_WIDE = {
    "embeddings": np.array([[-1.75, 1.0], [1.25, -1.0], [-2.0, 1.0], [1.0, 1.0]]),
    "kernel": np.array([[2.0, 0.0, 0.5, -0.75], [0.0, -0.5, 1.5, 1.0]]),
    "targets": np.array([0, 1, 0, 1]),
}
add("arcface_loss", "rows", _classes(6, 3, classes=10), scale=8.0)
add("arcface_loss", "wide", lambda rng: _WIDE)
add("cosface_loss", "few-classes", _classes(9, 3, classes=4), scale=8.0)
add("cosface_loss", "one", _classes(4, classes=7), margin=0.25, scale=30.0)

_COLUMNS = [[2.0, 0.0, -0.5], [0.0, 1.5, 1.0]]
_AT_ZERO = {
    "documented": "zero vector stays zero, and all its derivatives are 0",
    "convention": {"gradient": 0, "jvp": 0, "HVP": 0},
}
_INFINITE = {"documented": "An infinite embedding gives NaN"}


def _margins(loss: str, options: dict[str, Any]) -> None:
    row(
        loss,
        "embeddings kernel targets",
        "embeddings kernel",
        options,
        zeros=[at([0.0, 0.0], _COLUMNS, 1, **_AT_ZERO)],
        kinks=[([4.0, 0.0], _COLUMNS, 0), ([-4.0, 0.0], _COLUMNS, 0)],
        plus=[at([INF, 1.0], _COLUMNS, 1, **_INFINITE)],
        minus=[at([-INF, 1.0], _COLUMNS, 1, **_INFINITE)],
        far=[([1e200, 0.5e200], _COLUMNS, 1), ([1e-200, 0.0], _COLUMNS, 2)],
        same=[([2.0, 0.0], _COLUMNS, 0)],
        half=[([0.5, -1.25], _COLUMNS, 1), ([300.0, 2.0], _COLUMNS, 2)],
    )


_margins("arcface_loss", {})
_margins("arcface_loss", {"margin": 0.0, "scale": 4.0})
_margins("cosface_loss", {})
