"""Distillation losses: formulas, entries and rows of the certificate."""

from collections.abc import Callable
from decimal import Decimal
from typing import Any

import numpy as np

from tests.case import Arrays, add
from tests.formulas import beyond_pytorch, exp, log, log_softmax, times, total
from tests.situation import INF, row


def divergence(log_probs, others):
    """The Kullback-Leibler divergence of others from the distribution that is first."""
    return total(times(exp(p), p - q) for p, q in zip(log_probs, others, strict=True))


def of_positions(loss, logits, targets, axis, temperature):
    """The loss of the log-probabilities of student and teacher, at each position."""
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


# Classes without weight in any dtype, of both and of one; classes without weight in float32; equal ones.
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
