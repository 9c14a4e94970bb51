"""Overlap losses: entries, formulas and certificate rows."""

from collections.abc import Callable, Iterator
from decimal import Decimal

import numpy as np

from tests.case import Arrays, add
from tests.formulas import beyond_pytorch, kinked, power, total
from tests.situation import row


def regions(
    probs: np.ndarray, targets: np.ndarray, axis: int | None, ignore_index: int | None, batch: bool
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields the predictions and targets of each image's valid pixels, both of shape (pixels, classes)."""
    if axis is None:
        probs, axis = probs[..., None], -1
        valid, true = targets != ignore_index, targets[..., None]
    elif np.ndim(targets) < np.ndim(probs):
        valid = targets != ignore_index
        true = np.equal.outer(targets, np.arange(probs.shape[axis])).astype(int)
    else:
        valid, true = np.full(np.delete(probs.shape, axis), True), np.moveaxis(targets, axis, -1)
    predicted, valid = np.moveaxis(probs, axis, -1), np.asarray(valid, bool)
    for images in [slice(None)] if batch else [slice(n, n + 1) for n in range(len(predicted))]:
        yield predicted[images][valid[images]], true[images][valid[images]]


def _of_classes(
    loss: Callable[[np.ndarray, np.ndarray], Decimal],
    probs: np.ndarray,
    targets: np.ndarray,
    axis: int | None,
    batch: bool,
    include_background: bool,
    skip_absent: bool,
    weight: np.ndarray | None,
    ignore_index: int,
) -> tuple[np.ndarray, np.ndarray]:
    losses, weights = [], []
    for p, t in regions(probs, targets, axis, ignore_index, batch):
        classes = [0] if axis is None else range(0 if include_background else 1, p.shape[1])
        counts = [len(t) > 0 and (not skip_absent or bool(t[:, c].any())) for c in classes]
        own = [
            Decimal(is_in) * (1 if weight is None else weight[c])
            for c, is_in in zip(classes, counts, strict=True)
        ]
        weights.append(own)
        losses.append([w * loss(p[:, c], t[:, c]) for c, w in zip(classes, own, strict=True)])
    answer = np.array(losses), np.array(weights)
    answer = (answer[0][0], answer[1][0]) if batch else answer
    return (answer[0][..., 0], answer[1][..., 0]) if axis is None else answer


def _share(hits: Decimal, whole: Decimal) -> Decimal:
    return Decimal(1) if whole == 0 else hits / whole


@beyond_pytorch(None)
def dice_loss(
    probs,
    targets,
    axis=-1,
    smooth=1e-5,
    squared=False,
    batch=False,
    include_background=True,
    skip_absent=False,
    weight=None,
    ignore_index=-100,
):
    def loss(p, t):
        sizes = total(p**2 + t**2 if squared else p + t)
        return 1 - _share(2 * total(p * t) + Decimal(smooth), sizes + Decimal(smooth))

    options = include_background, skip_absent, weight, ignore_index
    return _of_classes(loss, probs, targets, axis, batch, *options)


@beyond_pytorch(None)
def tversky_loss(
    probs,
    targets,
    axis=-1,
    alpha=0.5,
    beta=0.5,
    gamma=1,
    smooth=1e-5,
    batch=False,
    include_background=True,
    skip_absent=False,
    weight=None,
    ignore_index=-100,
):
    def loss(p, t):
        hits = total(p * t) + Decimal(smooth)
        misses = Decimal(alpha) * total(p * (1 - t)) + Decimal(beta) * total((1 - p) * t)
        shortfall = 1 - _share(hits, hits + misses)
        return shortfall if gamma == 1 else power(kinked(shortfall), Decimal(gamma))

    options = include_background, skip_absent, weight, ignore_index
    return _of_classes(loss, probs, targets, axis, batch, *options)


@beyond_pytorch(None)
def generalized_dice_loss(probs, targets, axis=-1, smooth=1e-5, batch=False):
    losses, weights = [], []
    for p, t in regions(probs, targets, axis, None, batch):
        sizes = [total(column) for column in t.T]
        largest = max((1 / Decimal(size) ** 2 for size in sizes if size), default=Decimal(1))
        w = [1 / Decimal(size) ** 2 if size else largest for size in sizes]
        hits = total(w * total(column) for w, column in zip(w, (p * t).T, strict=True))
        whole = total(w * total(column) for w, column in zip(w, (p + t).T, strict=True))
        losses.append(1 - _share(2 * hits + Decimal(smooth), whole + Decimal(smooth)))
        weights.append(Decimal(len(p) > 0))
    return (losses[0], weights[0]) if batch else (np.array(losses), np.array(weights))


def images(
    *shape: int, axis: int = -1, ignored: int | None = None, weight: bool = False
) -> Callable[[np.random.RandomState], Arrays]:
    """Returns a maker of probabilities, and of labels in which the last class is absent."""

    def make(rng: np.random.RandomState) -> Arrays:
        odds = rng.uniform(0.1, 1, shape)
        labels = rng.randint(0, shape[axis] - 1, np.delete(shape, axis))
        if ignored is not None:
            labels.ravel()[::3] = ignored
        weights = {"weight": rng.rand(shape[axis]) + 0.1} if weight else {}
        return {"probs": odds / odds.sum(axis, keepdims=True), "targets": labels, **weights}

    return make


def _soft(*shape: int) -> Callable[[np.random.RandomState], Arrays]:
    return lambda rng: {"probs": rng.uniform(0.05, 0.95, shape), "targets": rng.uniform(0.05, 0.95, shape)}


def _binary(*shape: int, ignored: int | None = None) -> Callable[[np.random.RandomState], Arrays]:
    def make(rng: np.random.RandomState) -> Arrays:
        labels = rng.randint(0, 2, shape)
        if ignored is not None:
            labels.ravel()[::3] = ignored
        return {"probs": rng.uniform(0.05, 0.95, shape), "targets": labels}

    return make


for _loss in ("dice_loss", "tversky_loss"):
    add(_loss, "labels", images(4, 4, 4))
    add(_loss, "soft", _soft(4, 3, 2), smooth=0.5)
    add(_loss, "binary", _binary(4, 2, 3, ignored=-100), axis=None)
    add(
        _loss,
        "image-weight-ignored",
        images(4, 4, 2, 2, axis=1, ignored=255, weight=True),
        axis=1,
        ignore_index=255,
        include_background=False,
        skip_absent=True,
    )
    add(_loss, "batch", images(4, 4, 4), batch=True, smooth=0.0)
add("dice_loss", "squared", images(4, 4, 4), squared=True)
add("tversky_loss", "focal", images(4, 4, 4), alpha=0.3, beta=0.7, gamma=0.75)
_extreme = {
    "probs": np.array([[[1.0, 0.0], [1.0, 0.0]], [[0.5, 0.0], [0.0, 0.0]], [[0.0, 1.0], [0.0, 1.0]]]),
    "targets": np.zeros((3, 2), int),
}
add("generalized_dice_loss", "labels", images(4, 4, 4))
add("generalized_dice_loss", "soft", _soft(4, 3, 2), smooth=0.5)
add("generalized_dice_loss", "image-batch", images(4, 4, 2, 2, axis=1), axis=1, batch=True, smooth=0.0)
for _loss in ("dice_loss", "tversky_loss", "generalized_dice_loss"):
    add(_loss, "extreme", lambda rng: _extreme, smooth=False)

_PROBS = {
    "zeros": [([[0.0], [0.0]], [[0.0], [1.0]]), ([[0.5], [0.25]], [[0.0], [0.0]])],
    "plus": "takes probabilities",
    "minus": "takes probabilities",
    "far": [([[1.0], [0.0]], [[1.0], [0.0]]), ([[1.0], [0.0]], [[0.0], [1.0]])],
    "half": [([[0.5], [0.25]], [[1.0], [0.0]]), ([[0.75], [0.125]], [[0.5], [0.25]])],
}
for _loss in ("dice_loss", "tversky_loss"):
    row(_loss, "probs targets", "probs targets", {"batch": True}, **_PROBS)
# Not differentiated in the targets: the weight of a class jumps where its last true pixel vanishes.
row("generalized_dice_loss", "probs targets", "probs", {"batch": True}, **_PROBS)
