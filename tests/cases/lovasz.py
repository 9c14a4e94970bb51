"""Lovász losses: entries, formulas and certificate rows."""

from collections.abc import Callable
from decimal import Decimal

import numpy as np

from tests.case import Arrays, add
from tests.cases.overlap import images, regions
from tests.formulas import absolute, beyond_pytorch, frozen, positive_part, total
from tests.situation import INF, row


def _jaccard_loss(true: list[bool], wrong: set[int]) -> Decimal:
    """Returns the Jaccard loss of a region if the given pixels are predicted wrong."""
    predicted = [is_true != (pixel in wrong) for pixel, is_true in enumerate(true)]
    both = sum(map(min, true, predicted))
    either = sum(map(max, true, predicted))
    return 1 - Decimal(both) / either if either else Decimal(0)


def _extension(errors: list[Decimal], true: list[bool]) -> Decimal:
    """Returns the Lovász extension: errors in decreasing order times their increments of the Jaccard loss."""
    order = frozen(sorted(range(len(errors)), key=lambda pixel: -errors[pixel]))
    jaccard = [_jaccard_loss(true, {*order[:count]}) for count in range(len(order) + 1)]
    return total(
        errors[pixel] * (after - before)
        for pixel, before, after in zip(order, jaccard[:-1], jaccard[1:], strict=True)
        if after != before
    )


@beyond_pytorch(None)
def lovasz_hinge_loss(logits, targets, batch=False):
    losses, weights = [], []
    for x, t in regions(logits, targets, None, None, batch):
        errors = [positive_part(1 - x * (2 * t - 1)) for x, t in zip(x[:, 0], t[:, 0], strict=True)]
        losses.append(_extension(errors, [bool(is_true) for is_true in t[:, 0]]))
        weights.append(Decimal(len(x) > 0))
    return (losses[0], weights[0]) if batch else (np.array(losses), np.array(weights))


@beyond_pytorch(None)
def lovasz_softmax_loss(probs, targets, axis=-1, batch=True, classes="present", ignore_index=-100):
    losses, weights = [], []
    for p, t in regions(probs, targets, axis, ignore_index, batch):
        chosen = [c for c in range(p.shape[1]) if classes == "all" or t[:, c].any()]
        each = [_extension([absolute(e) for e in t[:, c] - p[:, c]], (t[:, c] == 1).tolist()) for c in chosen]
        losses.append(total(each) / max(len(each), 1))
        weights.append(Decimal(len(p) > 0))
    return (losses[0], weights[0]) if batch else (np.array(losses), np.array(weights))


def _binary(*shape: int) -> Callable[[np.random.RandomState], Arrays]:
    return lambda rng: {"logits": rng.randn(*shape) * 2, "targets": rng.randint(0, 2, shape)}


add("lovasz_hinge_loss", "images", _binary(4, 2, 3))
add("lovasz_hinge_loss", "batch", _binary(4, 3), batch=True)
_ties = {
    "logits": np.array([[0.0, 0.0, 0.0, 0.0], [1.0, -1.0, 1.0, -1.0], [1e4, -1e4, 1e4, -1e4]]),
    "targets": np.array([[1, 0, 1, 0], [1, 0, 0, 1], [0, 0, 0, 0]]),
}
add("lovasz_hinge_loss", "ties", lambda rng: _ties, smooth=False)
add("lovasz_softmax_loss", "images", images(4, 4, 4), batch=False)
add("lovasz_softmax_loss", "batch", images(4, 4, 4, ignored=-100))
add(
    "lovasz_softmax_loss",
    "image-all-ignored",
    images(4, 4, 2, 2, axis=1, ignored=255),
    axis=1,
    batch=False,
    classes="all",
    ignore_index=255,
)
_even = {"probs": np.full((2, 4, 2), 0.5), "targets": np.array([[0, 1, 0, 1], [0, 0, 0, 0]])}
add("lovasz_softmax_loss", "ties", lambda rng: _even, smooth=False, batch=False)

row(
    "lovasz_hinge_loss",
    "logits targets",
    "logits",
    {"batch": True},
    zeros=[([0.0, 0.0, 0.0], [1.0, 0.0, 0.0])],
    kinks=[([1.0, -1.0, 2.0], [1.0, 0.0, 0.0])],
    plus=[([INF, 0.5, 0.0], [1.0, 0.0, 1.0]), ([INF, 0.5, 0.0], [0.0, 1.0, 1.0])],
    minus=[([-INF, 0.5, 0.0], [0.0, 1.0, 1.0]), ([-INF, 0.5, 0.0], [1.0, 0.0, 1.0])],
    far=[([1e4, -1e4, 0.0], [1.0, 0.0, 1.0]), ([1e4, -1e4, 0.0], [0.0, 1.0, 1.0])],
    half=[([0.5, -1.25, 2.0], [1.0, 1.0, 0.0]), ([300.0, 0.5, -200.0], [1.0, 1.0, 0.0])],
)
row(
    "lovasz_softmax_loss",
    "probs targets",
    "probs",
    zeros=[([[0.0, 1.0], [0.5, 0.5]], [1, 0])],
    kinks=[([[1.0, 0.0], [0.25, 0.75]], [0, 1])],
    plus="takes probabilities",
    minus="takes probabilities",
    far=[([[1.0, 0.0], [0.0, 1.0]], [1, 0])],
    half=[([[0.5, 0.5], [0.25, 0.75]], [0, 1]), ([[0.125, 0.875], [0.25, 0.75]], [0, 0])],
)
