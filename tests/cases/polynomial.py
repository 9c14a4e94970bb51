"""Poly and generalized cross-entropy: entries, formulas and certificate rows."""

from decimal import Decimal

import numpy as np

from tests.case import add
from tests.cases.classification import classes
from tests.formulas import beyond_pytorch, exp, log_softmax, of_labels, times, total
from tests.situation import INF, row


@beyond_pytorch(None)
def poly_cross_entropy(
    logits, targets, axis=-1, epsilon=2, weight=None, ignore_index=-100, label_smoothing=0
):
    count, smoothing = logits.shape[axis], Decimal(label_smoothing)
    weight = [Decimal(1)] * count if weight is None else weight

    def loss(log_probs, probs):
        mixed = [(1 - smoothing) * prob + smoothing / count for prob in probs]
        terms = (times(w * t, -log_p) for w, t, log_p in zip(weight, mixed, log_probs, strict=True))
        miss = total(t * (1 - exp(log_p)) for t, log_p in zip(mixed, log_probs, strict=True))
        share = total(w * t for w, t in zip(weight, probs, strict=True))
        return total(terms) + Decimal(epsilon) * share * miss

    if np.ndim(targets) == np.ndim(logits):
        scores, probs = (np.moveaxis(array, axis, -1) for array in (logits, targets))
        losses = np.full(scores.shape[:-1], Decimal(0))
        for place in np.ndindex(*losses.shape):
            losses[place] = loss(log_softmax(scores[place]), probs[place])
        return losses
    losses, counted = of_labels(
        lambda log_probs, label: loss(log_probs, [Decimal(c == label) for c in range(count)]),
        *(logits, targets, axis, None, ignore_index),
    )
    of_label = np.array([weight[label] if 0 <= label < count else Decimal(0) for label in targets.ravel()])
    return losses, counted * of_label.reshape(np.shape(targets))


add("poly_cross_entropy", "rows", classes(4, 4))
add("poly_cross_entropy", "one", classes(4), epsilon=-1.0)
add(
    "poly_cross_entropy",
    "image-weight-smoothed-ignored",
    classes(3, 4, 2, axis=1, ignored=255, weight=True),
    axis=1,
    ignore_index=255,
    label_smoothing=0.2,
)
add("poly_cross_entropy", "probabilities", classes(4, 4, soft=True))
add(
    "poly_cross_entropy",
    "probabilities-weight-smoothed",
    classes(3, 4, 2, axis=1, soft=True, weight=True),
    axis=1,
    label_smoothing=0.2,
    epsilon=0.5,
)
_far = {
    "logits": np.array([[1e4, -1e4, 0.0], [-1e4, 1e4, 0.0], [-60.0, 0.0, 1.0], [60.0, 0.0, -60.0]]),
    "targets": np.array([0, 0, 1, 0]),
}
add("poly_cross_entropy", "far", lambda rng: _far, smooth=False)

_LOGITS = {
    "zeros": [([0.0, 0.0, 0.0], 1)],
    "minus": [([-INF, 0.0, 1.0], 1), ([-INF, 0.0, 1.0], 0)],
    "far": [([1e4, 0.0, -1e4], 0), ([1e4, 0.0, -1e4], 1)],
    "half": [([0.5, -1.25, 2.0], 1), ([300.0, 0.5, -200.0], 1)],
}
_NAN = "none: a logit of +∞ gives NaN, as in cross_entropy"
row("poly_cross_entropy", "logits targets", "logits", plus=_NAN, **_LOGITS)


@beyond_pytorch(None)
def generalized_cross_entropy(logits, targets, axis=-1, q=0.7, ignore_index=-100):
    def loss(log_probs, label):
        return (1 - exp(times(Decimal(q), log_probs[label]))) / Decimal(q)

    return of_labels(loss, logits, targets, axis, None, ignore_index)


add("generalized_cross_entropy", "rows", classes(4, 4))
add("generalized_cross_entropy", "one", classes(4), q=1.0)
add(
    "generalized_cross_entropy",
    "image-ignored",
    classes(3, 4, 2, axis=1, ignored=255),
    axis=1,
    ignore_index=255,
    q=0.25,
)
_certain = {"logits": _far["logits"], "targets": np.zeros(4, int)}
add("generalized_cross_entropy", "far", lambda rng: _certain, smooth=False)
row(
    "generalized_cross_entropy",
    "logits targets",
    "logits",
    plus=[([INF, 0.0, 1.0], 0)],
    **_LOGITS,
)
