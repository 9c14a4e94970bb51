"""Focal losses: entries and, for those beyond torchvision, formulas and certificate rows."""

from collections.abc import Callable
from decimal import Decimal

import numpy as np

from tests.case import Arrays, add
from tests.cases.classification import classes
from tests.formulas import beyond_pytorch, exp, frozen, log, of_labels, positive_part, power, times, total
from tests.situation import INF, at, row


def _binary(*shape: int) -> Callable[[np.random.RandomState], Arrays]:
    return lambda rng: {"logits": rng.randn(*shape) * 2, "targets": rng.rand(*shape)}


add("sigmoid_focal_loss", "matrix", _binary(6, 3))
add("sigmoid_focal_loss", "scalar", _binary())
add("sigmoid_focal_loss", "options", _binary(6), alpha=0.75, gamma=0.5)
add("sigmoid_focal_loss", "unweighted", _binary(6), alpha=None, gamma=1.0)
_hard = {"logits": np.array([0.0, 2.0, -3.0, 8.0, -8.0, 5.0]), "targets": np.array([1.0, 0, 1, 1, 0, 0])}
add("sigmoid_focal_loss", "hard", lambda rng: _hard)
add("sigmoid_focal_loss", "cross-entropy", _binary(6), gamma=0.0)


_INFINITE = {"documented": "Where the loss is infinite, its second derivative is NaN"}


@beyond_pytorch(None)
def softmax_focal_loss(logits, targets, axis=-1, gamma=2, weight=None, ignore_index=-100):
    def loss(log_probs, label):
        others = total(exp(log_prob) for c, log_prob in enumerate(log_probs) if c != label)
        focus = power(others, Decimal(gamma)) if gamma else Decimal(1)
        return times(focus, -log_probs[label])

    return of_labels(loss, logits, targets, axis, weight, ignore_index)


add("softmax_focal_loss", "rows", classes(4, 4))
add("softmax_focal_loss", "one", classes(4))
add(
    "softmax_focal_loss",
    "image-weight-ignored",
    classes(3, 4, 2, axis=1, ignored=255, weight=True),
    axis=1,
    ignore_index=255,
    gamma=0.5,
)
add("softmax_focal_loss", "cross-entropy", classes(4, 4, weight=True), gamma=0.0)
_far = {
    "logits": np.array([[1e4, -1e4, 0.0], [-1e4, 1e4, 0.0], [-60.0, 0.0, 1.0], [60.0, 0.0, -60.0]]),
    "targets": np.array([0, 0, 1, 0]),
}
add("softmax_focal_loss", "far", lambda rng: _far, smooth=False, gamma=0.5)
add(
    "softmax_focal_loss",
    "one-class",
    lambda rng: {"logits": rng.randn(3, 1), "targets": np.zeros(3, int)},
    smooth=False,
)

_LOGITS = {
    "zeros": [([0.0, 0.0, 0.0], 1)],
    "plus": [([INF, 0.0, 1.0], 0)],
    "minus": [([-INF, 0.0, 1.0], 1), at([-INF, 0.0, 1.0], 0, **_INFINITE)],
    "far": [([1e4, 0.0, -1e4], 0), ([1e4, 0.0, -1e4], 1)],
    "half": [([0.5, -1.25, 2.0], 1), ([300.0, 0.5, -200.0], 1)],
}
row("softmax_focal_loss", "logits targets", "logits", **_LOGITS)
row("softmax_focal_loss", "logits targets", "logits", {"gamma": 0.5}, **_LOGITS)


@beyond_pytorch("(),()->()")
def asymmetric_loss(logits, targets, gamma_neg=4, gamma_pos=1, clip=0.05, stop_focus_gradient=False):
    yes, no = 1 / (1 + exp(-logits)), 1 / (1 + exp(logits))
    excess = positive_part(yes - Decimal(clip))  # 1 - q
    gamma = Decimal(gamma_pos) * targets + Decimal(gamma_neg) * (1 - targets)
    miss = no * targets + excess * (1 - targets)
    focus = power(miss, gamma) if gamma else Decimal(1)
    log_of_q = log(no + Decimal(clip)) if excess else Decimal(0)
    base = times(targets, -log(yes)) + times(1 - targets, -log_of_q)
    return times(frozen(focus) if stop_focus_gradient else focus, base)


add("asymmetric_loss", "matrix", _binary(4, 2))
add("asymmetric_loss", "scalar", _binary())
add("asymmetric_loss", "frozen", _binary(6), smooth=False, stop_focus_gradient=True)
add("asymmetric_loss", "options", _binary(6), gamma_neg=0.5, gamma_pos=0.0, clip=0.2)
add("asymmetric_loss", "unclipped", lambda rng: _hard, gamma_neg=0.5, gamma_pos=0.5, clip=0.0)
_easy = {"logits": np.array([-5.0, -30.0, -5.0, 60.0, -1e4]), "targets": np.array([0.0, 1, 1, 0, 0])}
add("asymmetric_loss", "easy", lambda rng: _easy, smooth=False, gradients=("logits",), gamma_neg=0.5)

_SIGMOID = {
    "zeros": [(0.0, 0.0), (0.0, 1.0)],
    "plus": [(INF, 1.0), (INF, 0.0)],
    "minus": [(-INF, 0.0), at(-INF, 1.0, **_INFINITE)],
    "far": [(1e4, 1.0), (1e4, 0.0), (-1e4, 0.0)],
    "half": [(0.5, 0.75), (300.0, 0.25)],
}
row(
    "asymmetric_loss",
    "logits targets",
    "logits",
    **_SIGMOID | {"kinks": [(-3.0, 0.0)]},
)
row(
    "asymmetric_loss",
    "logits targets",
    "logits",
    {"clip": 0.0, "gamma_neg": 0.5},
    **_SIGMOID | {"plus": [(INF, 1.0), at(INF, 0.0, **_INFINITE)]},
)
