"""Distillation losses: formulas, entries and certificate rows."""

from collections.abc import Callable
from decimal import Decimal
from typing import Any

import numpy as np

from tests.case import Arrays, add
from tests.formulas import beyond_pytorch, exp, log, log_softmax, times, total
from tests.situation import INF, row


def divergence(log_probs, others):
    """Returns the Kullback-Leibler divergence KL(first || others)."""
    return total(times(exp(p), p - q) for p, q in zip(log_probs, others, strict=True))


def of_positions(loss, logits, targets, axis, temperature):
    """Returns the loss of the student's and the teacher's log-probabilities at each position."""
    scores = [np.moveaxis(array, axis, -1) / Decimal(temperature) for array in (logits, targets)]
    losses = np.full(scores[0].shape[:-1], Decimal(0))
    for place in np.ndindex(*losses.shape):
        losses[place] = loss(*(log_softmax(array[place]) for array in scores))
    return losses


@beyond_pytorch(None)
def distillation_loss(logits, targets, axis=-1, temperature=1):
    losses = of_positions(lambda s, t: divergence(t, s), logits, targets, axis, temperature)
    return Decimal(temperature) ** 2 * losses


@beyond_pytorch(None)
def jensen_shannon_loss(logits, targets, axis=-1, beta=0.5, temperature=1):
    share = Decimal(beta)

    def loss(student, teacher):
        if beta in (0, 1):
            return divergence(student, teacher) if beta else divergence(teacher, student)
        mixture = [log(share * exp(t) + (1 - share) * exp(s)) for s, t in zip(student, teacher, strict=True)]
        return share * divergence(teacher, mixture) + (1 - share) * divergence(student, mixture)

    return of_positions(loss, logits, targets, axis, temperature)


def _both(*shape: int) -> Callable[[np.random.RandomState], Arrays]:
    return lambda rng: {"logits": rng.randn(*shape) * 2, "targets": rng.randn(*shape) * 2}


# Rows: a class of probability 0 in every dtype, for both or for one; a class of probability 0 in float32;
# equal distributions.
_excluded = {
    "logits": np.array([[-1e4, 0.0, 1.0, 0.5], [2.0, -1.0, -200, 0.0], [0.5, 1.0, -2.0, 0.25]]),
    "targets": np.array([[-2e4, 2.0, -1.0, 1.0], [0.0, 1.0, -150, -1.0], [0.5, 1.0, -2.0, 0.25]]),
}
_apart = {
    "logits": np.array([[-1e4, 0.0, 1.0], [0.5, 300.0, 0.0]]),
    "targets": np.array([[1.0, 2.0, -1e4], [0.5, 0.0, 300.0]]),
}
add("distillation_loss", "rows", _both(4, 4))
add("distillation_loss", "one", _both(4), temperature=0.5)
add("distillation_loss", "image", _both(3, 4, 2), axis=1, temperature=2.0)
add("distillation_loss", "excluded", lambda rng: _excluded, smooth=False)
add("distillation_loss", "apart", lambda rng: _apart, smooth=False)
add("jensen_shannon_loss", "rows", _both(4, 4), beta=0.25)
add("jensen_shannon_loss", "image", _both(3, 4, 2), axis=1, temperature=2.0)
for _end in (0.0, 1.0):
    add("jensen_shannon_loss", f"end-{_end:.0f}", _both(3, 4), beta=_end)
    add("jensen_shannon_loss", f"end-{_end:.0f}-excluded", lambda rng: _excluded, smooth=False, beta=_end)
add("jensen_shannon_loss", "excluded", lambda rng: _excluded, smooth=False, beta=0.25)
add("jensen_shannon_loss", "apart", lambda rng: _apart, smooth=False, beta=0.25)

_SCORES: dict[str, Any] = {
    "zeros": [([0.0, 0.0, 0.0], [0.0, 0.0, 0.0])],
    "plus": "none: a logit of +∞ gives NaN, as in cross_entropy",
    "minus": [([-INF, 0.0, 1.0], [-INF, 1.0, 0.5])],
    "far": [([1e4, 0.0, -1e4], [0.0, 1.0, 2.0]), ([1e4, 0.0, -1e4], [-1e4, 0.0, 1e4])],
    "half": [([0.5, -1.25, 2.0], [1.0, 0.5, -0.25]), ([300.0, 0.5, -200.0], [0.5, 1.5, -2.0])],
}
_excluding = [*_SCORES["minus"], ([-INF, 0.0, 1.0], [0.5, 1.0, 0.5]), ([0.5, 0.0, 1.0], [-INF, 1.0, 0.5])]
row("distillation_loss", "logits targets", "logits targets", **_SCORES)
row("distillation_loss", "logits targets", "logits", {"temperature": 2.0}, **_SCORES | {"minus": _excluding})
row("jensen_shannon_loss", "logits targets", "logits targets", **_SCORES | {"minus": _excluding})
row("jensen_shannon_loss", "logits targets", "logits", {"beta": 0.0}, **_SCORES | {"minus": _excluding})
row("jensen_shannon_loss", "logits targets", "logits targets", {"beta": 1.0}, **_SCORES)


def kl_of_logits(logits, targets, temperature):
    """Returns temperature² · KL(teacher || student); `targets` are the teacher's logits."""
    temperature = Decimal(np.asarray(temperature, object).item())
    log_q, log_p = (log_softmax([z / temperature for z in scores]) for scores in (logits, targets))
    return temperature**2 * total(times(exp(p), p - q) for p, q in zip(log_p, log_q, strict=True))


@beyond_pytorch(None)
def linear_distillation_loss(
    hidden, kernel, teacher_hidden, teacher_kernel, bias=0, teacher_bias=0, temperature=1
):
    logits, targets = hidden @ kernel + bias, teacher_hidden @ teacher_kernel + teacher_bias
    losses = [
        kl_of_logits(logits[place], targets[place], temperature) for place in np.ndindex(logits.shape[:-1])
    ]
    return np.array(losses, object).reshape(logits.shape[:-1])


def _layers(
    *positions: int, sizes: tuple[int, int] = (3, 2), classes: int = 8, bias: bool = False
) -> Callable[[np.random.RandomState], Arrays]:
    def make(rng: np.random.RandomState) -> Arrays:
        arrays: dict[str, np.ndarray] = {}
        for name, size in zip(("", "teacher_"), sizes, strict=True):
            arrays[f"{name}hidden"] = rng.randn(*positions, size)
            arrays[f"{name}kernel"] = rng.randn(size, classes)
        if bias:
            arrays |= {name: rng.randn(classes) for name in ("bias", "teacher_bias")}
        return arrays

    return make


def _masked_vocabulary(rng: np.random.RandomState) -> Arrays:
    arrays = dict(_layers(5, bias=True)(rng))
    for name in ("bias", "teacher_bias"):
        arrays[name] = np.where(np.arange(8) % 3 == 1, -np.inf, arrays[name])
    return arrays


add("linear_distillation_loss", "rows", _layers(6))
add("linear_distillation_loss", "sequences-bias", _layers(2, 4, classes=6, bias=True), temperature=2.0)
add("linear_distillation_loss", "one", _layers(classes=5))
add(
    "linear_distillation_loss",
    "masked-vocabulary",
    _masked_vocabulary,
    smooth=False,
    gradients=("hidden", "kernel", "teacher_hidden", "teacher_kernel"),
    temperature=0.5,
)
add(
    "linear_distillation_loss",
    "temperature",
    lambda rng: {**_layers(4)(rng), "temperature": np.array(0.75)},
)

_COLUMNS = [[1.0, 0.5, -1.0], [0.25, 2.0, 1.5]]
_OTHERS = [[0.5, -1.5, 0.25], [1.0, 0.75, -0.5]]
row(
    "linear_distillation_loss",
    "hidden kernel teacher_hidden teacher_kernel",
    "hidden kernel teacher_hidden teacher_kernel",
    {"temperature": 2.0},
    zeros=[([0.0, 0.0], _COLUMNS, [0.0, 0.0], _OTHERS)],
    plus="none: an infinite feature gives NaN",
    minus="none: an infinite feature gives NaN",
    far=[([1e4, -1e4], _COLUMNS, [0.5, 1.0], _OTHERS), ([0.5, 1.0], _COLUMNS, [1e4, 1e4], _OTHERS)],
    same=[([0.5, -1.25], _COLUMNS, [0.5, -1.25], _COLUMNS)],
    half=[([0.5, -1.25], _COLUMNS, [1.0, 0.5], _OTHERS), ([3.0, -2.0], _COLUMNS, [0.5, 1.0], _OTHERS)],
)
