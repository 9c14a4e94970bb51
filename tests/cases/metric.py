"""Losses of metric learning: formulas, entries and rows of the certificate."""

from collections.abc import Callable
from decimal import Decimal
from typing import Any

import numpy as np

from tests.case import Arrays, add
from tests.cases.contrastive import unit
from tests.formulas import beyond_pytorch, exp, kinked, log, total
from tests.situation import INF, at, row


def cosine_and_sine(angle):
    """Returns both by their series."""
    terms, n = [Decimal(1)], 0
    while abs(terms[-1]) > Decimal("1e-90"):
        n += 1
        terms.append(terms[-1] * angle / n)
    signs = [1, 1, -1, -1]
    even, odd = ([signs[n % 4] * term for n, term in enumerate(terms) if n % 2 == k] for k in (0, 1))
    return total(even), total(odd)


def surprise_of_margined(margined, embeddings, kernel, targets, scale):
    """Returns the cross-entropy of an embedding whose label's cosine is replaced."""
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

    return surprise_of_margined(margined, embeddings, kernel, targets, scale)


@beyond_pytorch("(d),(d,c),()->()")
def cosface_loss(embeddings, kernel, targets, margin=0.35, scale=64.0):
    return surprise_of_margined(lambda cos: cos - Decimal(margin), embeddings, kernel, targets, scale)


def _classes(*shape: int, classes: int) -> Callable[[np.random.RandomState], Arrays]:
    return lambda rng: {
        "embeddings": rng.randn(*shape),
        "kernel": rng.randn(shape[-1], classes),
        "targets": np.asarray(rng.randint(0, classes, shape[:-1])),
    }


# The angles of the first and the third to their labels are just within and just beyond π - 0.5.
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
_ZERO = {
    "documented": "zero vector stays zero, and all its derivatives are 0",
    "convention": {"gradient": 0, "jvp": 0, "HVP": 0},
}
_ENDLESS = {"documented": "An infinite embedding gives NaN"}


def _margins(loss: str, options: dict[str, Any]) -> None:
    row(
        loss,
        "embeddings kernel targets",
        "embeddings kernel",
        options,
        zeros=[at([0.0, 0.0], _COLUMNS, 1, **_ZERO)],
        kinks=[([4.0, 0.0], _COLUMNS, 0), ([-4.0, 0.0], _COLUMNS, 0)],
        plus=[at([INF, 1.0], _COLUMNS, 1, **_ENDLESS)],
        minus=[at([-INF, 1.0], _COLUMNS, 1, **_ENDLESS)],
        far=[([1e200, 0.5e200], _COLUMNS, 1), ([1e-200, 0.0], _COLUMNS, 2)],
        same=[([2.0, 0.0], _COLUMNS, 0)],
        half=[([0.5, -1.25], _COLUMNS, 1), ([300.0, 2.0], _COLUMNS, 2)],
    )


_margins("arcface_loss", {})
_margins("arcface_loss", {"margin": 0.0, "scale": 4.0})
_margins("cosface_loss", {})
