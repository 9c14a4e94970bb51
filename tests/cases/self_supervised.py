"""Self-supervised losses: formulas, entries and certificate rows."""

from collections.abc import Callable
from decimal import Decimal
from typing import Any

import numpy as np

from tests.case import Arrays, add
from tests.formulas import beyond_pytorch, exp, log_softmax, positive_part, times, total
from tests.situation import INF, at, row


def deviations(view):
    return view - np.sum(view, 0) / Decimal(len(view))


def off_diagonal(matrix):
    return [matrix[i, j] for i, j in np.ndindex(*matrix.shape) if i != j]


@beyond_pytorch(None)
def barlow_twins_loss(embeddings, targets, lambda_param=5e-3, eps=1e-5):
    size, views = len(embeddings), [deviations(embeddings), deviations(targets)]
    lengths = [[(v @ v / size + Decimal(eps)).sqrt() for v in view.T] for view in views]
    first, second = (view / np.array(scale, object) for view, scale in zip(views, lengths, strict=True))
    correlations = first.T @ second / size
    redundancy = total(c**2 for c in off_diagonal(correlations))
    return total((1 - c) ** 2 for c in np.diagonal(correlations)) + Decimal(lambda_param) * redundancy


@beyond_pytorch(None)
def vicreg_loss(embeddings, targets, lambda_param=25, mu_param=25, nu_param=1, eps=1e-4):
    rows, size = embeddings.shape
    loss = Decimal(lambda_param) * np.sum((embeddings - targets) ** 2) / (rows * size)
    for view in (embeddings, targets):
        covariances = deviations(view).T @ deviations(view) / (rows - 1)
        lengths = [(variance + Decimal(eps)).sqrt() for variance in np.diagonal(covariances)]
        loss += Decimal(mu_param) * total(positive_part(1 - length) for length in lengths) / (2 * size)
        loss += Decimal(nu_param) * total(c**2 for c in off_diagonal(covariances)) / size
    return loss


@beyond_pytorch(None)
def dino_loss(logits, targets, student_temperature=0.1, teacher_temperature=0.04, center=None):
    teacher = (targets if center is None else targets - center) / Decimal(teacher_temperature)
    student = logits / Decimal(student_temperature)
    pairs = [(s, t) for s in range(len(logits)) for t in range(len(targets)) if s != t]

    def cross_entropy(scores, wanted):
        pairs = zip(log_softmax(scores), log_softmax(wanted), strict=True)
        return total(times(exp(q), -p) for p, q in pairs)

    losses = [
        total(cross_entropy(student[s, n], teacher[t, n]) for s, t in pairs) / len(pairs)
        for n in range(logits.shape[1])
    ]
    return np.array(losses, object)


def _views(*shape: int, size: float = 1) -> Callable[[np.random.RandomState], Arrays]:
    def make(rng: np.random.RandomState) -> Arrays:
        embeddings = size * rng.randn(*shape)
        return {"embeddings": embeddings, "targets": embeddings + size * rng.randn(*shape)}

    return make


def _crops(views: int, others: int, *shape: int, center: bool = False) -> Callable[..., Arrays]:
    def make(rng: np.random.RandomState) -> Arrays:
        arrays = {"logits": rng.randn(views, *shape), "targets": rng.randn(others, *shape)}
        return arrays | ({"center": rng.randn(shape[-1])} if center else {})

    return make


add("barlow_twins_loss", "matrix", _views(5, 3))
add("barlow_twins_loss", "options", _views(4, 2), lambda_param=0.5, eps=0.25)
add("vicreg_loss", "matrix", _views(5, 3, size=0.7))
add("vicreg_loss", "options", _views(4, 2), lambda_param=1.0, mu_param=2.0, nu_param=3.0, eps=0.25)
add("dino_loss", "crops", _crops(4, 2, 3, 4), gradients=("logits",))
add(
    "dino_loss",
    "center",
    _crops(2, 2, 3, 4, center=True),
    gradients=("logits",),
    student_temperature=0.5,
    teacher_temperature=0.25,
)
_excluded = {
    "logits": np.array([[[-1e4, 0, 1]], [[-1e4, 2, 0.5]]]),
    "targets": np.array([[[-1e4, 1, 0]]] * 2),
}
add("dino_loss", "excluded", lambda rng: _excluded, smooth=False, gradients=("logits",))

_ZEROS, _X, _Y = (
    [[0.0, 0.0]] * 3,
    [[0.5, -1.25], [2.0, 1.0], [-1.5, 0.25]],
    [[1.0, 0.75], [-0.5, 2.0], [1.5, -1.0]],
)
_INFINITE = {"documented": "An infinite embedding gives NaN"}
_UP, _DOWN, _FAR, _NEAR = ([[number, 0.5], *_X[1:]] for number in (INF, -INF, 1e50, 1e-200))
_ROWS: dict[str, Any] = {
    "zeros": [(_ZEROS, _ZEROS)],
    "plus": [at(_UP, _Y, **_INFINITE)],
    "minus": [at(_Y, _DOWN, **_INFINITE)],
    "far": [(_FAR, _Y), (_NEAR, _Y)],
    "same": [(_X[:1] * 3, _X[:1] * 3), (_X, _X)],
    "half": [(_X, _Y)],
}
row("barlow_twins_loss", "embeddings targets", "embeddings targets", **_ROWS)
_OF_INVARIANCE = 25 / 3 * np.array([1.5, -1.25, 0.5, 1.5, -2.25, 1.5])
_UNIT = [[-1.0, 0.5], [0.0, 2.0], [1.0, -1.0]]  # the first feature has standard deviation 1
row("vicreg_loss", "embeddings targets", "embeddings targets", {"eps": 0.25}, **_ROWS)
row(
    "vicreg_loss",
    "embeddings targets",
    "embeddings targets",
    {"eps": 0.0},
    **_ROWS
    | {
        "kinks": [(_UNIT, _Y)],
        "zeros": [
            at(
                *(_ZEROS, _ZEROS),
                documented="derivatives 0",
                convention={"gradient": 0, "jvp": 0, "HVP": [*_OF_INVARIANCE, *-_OF_INVARIANCE]},
            )
        ],
        "same": [(_X, _X)],
    },
)
_STUDENT, _TEACHER = [[[0.5, -1.25, 2.0]], [[1.0, 0.5, -0.25]]], [[[0.25, 0.75, 0.0]], [[0.5, 0.0, -0.5]]]
_NO_LIMIT = "none: a logit of +∞ gives NaN, as in cross_entropy"
row(
    "dino_loss",
    "logits targets",
    "logits",
    {"student_temperature": 0.5, "teacher_temperature": 0.25},
    zeros=[([[[0.0, 0.0, 0.0]]] * 2, [[[0.0, 0.0, 0.0]]] * 2)],
    plus=_NO_LIMIT,
    minus=[([[[-INF, 0.0, 1.0]]] * 2, [[[-INF, 1.0, 0.0]]] * 2), ([[[-INF, 0.0, 1.0]]] * 2, _TEACHER)],
    far=[([[[1e4, 0.0, -1e4]]] * 2, _TEACHER), (_STUDENT, [[[1e4, 0.0, -1e4]]] * 2)],
    half=[(_STUDENT, _TEACHER)],
)
