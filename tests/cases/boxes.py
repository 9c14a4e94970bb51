"""Bounding-box losses: entries, formulas and certificate rows."""

from collections.abc import Callable
from decimal import Decimal, getcontext

import numpy as np

from tests.case import Arrays, add
from tests.formulas import PI, beyond_pytorch, frozen, kinked, positive_part
from tests.situation import INF, Point, at, row


def _overlap_of_sides(predictions, targets):
    """Returns the sides of the overlap, and of the box that encloses both."""
    pairs = [(predictions[axis::2], targets[axis::2]) for axis in (0, 1)]
    overlap = [positive_part(min(p[1], t[1]) - max(p[0], t[0])) for p, t in pairs]
    return overlap, [max(p[1], t[1]) - min(p[0], t[0]) for p, t in pairs]


def _area_of_union(predictions, targets):
    (width, height), _ = _overlap_of_sides(predictions, targets)
    return sum((x2 - x1) * (y2 - y1) for x1, y1, x2, y2 in (predictions, targets)) - width * height


@beyond_pytorch("(c),(c)->()")
def box_iou_loss(predictions, targets, eps=1e-7):
    (width, height), _ = _overlap_of_sides(predictions, targets)
    return 1 - width * height / (_area_of_union(predictions, targets) + Decimal(eps))


@beyond_pytorch("(c),(c)->()")
def generalized_box_iou_loss(predictions, targets, eps=1e-7):
    _, (width, height) = _overlap_of_sides(predictions, targets)
    empty = width * height - _area_of_union(predictions, targets)
    return box_iou_loss(predictions, targets, eps) + empty / (width * height + Decimal(eps))


@beyond_pytorch("(c),(c)->()")
def distance_box_iou_loss(predictions, targets, eps=1e-7):
    _, (width, height) = _overlap_of_sides(predictions, targets)
    centres = [[(box[axis] + box[axis + 2]) / 2 for axis in (0, 1)] for box in (predictions, targets)]
    squared = sum((p - t) ** 2 for p, t in zip(*centres, strict=True))
    return box_iou_loss(predictions, targets, eps) + squared / (width**2 + height**2 + Decimal(eps))


@beyond_pytorch("(c),(c)->()")
def complete_box_iou_loss(predictions, targets, eps=1e-7):
    v = 4 / PI**2 * (_angle(targets) - _angle(predictions)) ** 2
    alpha = frozen(v / (box_iou_loss(predictions, targets, eps) + v + Decimal(eps)))
    return distance_box_iou_loss(predictions, targets, eps) + alpha * v


def _angle(box):
    width, height = box[2] - box[0], box[3] - box[1]
    if kinked(width) == kinked(height) == 0:
        return Decimal(0)
    return _atan(width / height) if abs(height) >= abs(width) else PI / 2 - _atan(height / width)


def _atan(x):
    for _ in range(3):  # halve the angle, so that the series converges fast
        x = x / (1 + (1 + x * x).sqrt())
    total, power, odd = Decimal(0), x, 1
    while abs(power) > Decimal(10) ** -getcontext().prec:
        total, power, odd = total + power / odd, -power * x * x, odd + 2
    return 8 * total


def _boxes(rng: np.random.RandomState, *shape: int) -> np.ndarray:
    corners = 2 * rng.rand(*shape, 2)
    return np.concatenate([corners, corners + 0.25 + rng.rand(*shape, 2)], -1)


def _pairs(*shape: int) -> Callable[[np.random.RandomState], Arrays]:
    return lambda rng: {"predictions": _boxes(rng, *shape), "targets": _boxes(rng, *shape)}


_SQUARE, _BELOW = [0.0, 0.0, 2.0, 2.0], [0.0, 1.0, 1.0, 3.0]
# Equal, nested, sharing a side or a corner, without height, width or both, and far from the origin.
_TIES = [
    (_SQUARE, _SQUARE),
    (_BELOW, [0.0, 1.5, 0.5, 3.0]),
    (_SQUARE, [2.0, 0.0, 3.0, 1.0]),
    (_SQUARE, [2.0, 2.0, 3.0, 4.0]),
    ([0.0, 1.0, 2.0, 1.0], _SQUARE),
    (_BELOW, [1.0, 1.0, 1.0, 3.0]),
    ([1.0, 1.0, 1.0, 1.0], [-1.0, -1.0, 2.0, 4.0]),
    ([1.0, 1.0, 1.0, 1.0], [1.0, 1.0, 1.0, 1.0]),
    ([2.0**20, 0.0, 2.0**20 + 1, 1.0], [2.0**20, 0.25, 2.0**20 + 2, 3.0]),
]


def _tied(rng: np.random.RandomState) -> Arrays:
    predictions, targets = zip(*_TIES, strict=True)
    return {"predictions": np.array(predictions), "targets": np.array(targets)}


_INVERTED = "A box with x1 > x2 or y1 > y2 gives NaN"
_INFINITE = "as does one that is infinite or whose area overflows"


_AROUND = [-1.0, -0.5, 2.0, 1.5]
_POINTS: dict[str, list[Point]] = {
    "zeros": [at([0.0] * 4, _AROUND), at(_AROUND, [0.0] * 4)],
    "kinks": [at(_SQUARE, [2.0, 0.5, 3.0, 1.0]), at([0.5, 1.0, 1.5, 1.0], _SQUARE)],
    "plus": [
        at([0.0, 0.5, INF, 1.0], _SQUARE, documented=_INFINITE),
        at([INF, 0.0, 1.0, 1.0], _SQUARE, documented=_INVERTED),
    ],
    "minus": [
        at([-INF, 0.5, 1.0, 1.5], _SQUARE, documented=_INFINITE),
        at([0.5, 0.0, 1.0, -INF], _SQUARE, documented=_INVERTED),
    ],
    "far": [
        at([1e100, 0.5, 3e100, 1.5], _SQUARE),
        at([-1e200, 0.5, 1e200, 1e200], _SQUARE, documented=_INFINITE),
    ],
    "half": [
        at([0.5, -1.25, 2.5, 1.0], _SQUARE),
        at([100.0, 0.5, 300.0, 200.0], [50.0, 10.0, 200.0, 150.0]),
    ],
}

for _loss in ("box_iou_loss", "generalized_box_iou_loss", "distance_box_iou_loss", "complete_box_iou_loss"):
    # complete_box_iou_loss stops a gradient, which finite differences of its values would include.
    add(_loss, "matrix", _pairs(4, 2), smooth=_loss != "complete_box_iou_loss")
    add(_loss, "eps", _pairs(4), smooth=_loss != "complete_box_iou_loss", eps=0.5)
    add(_loss, "ties", _tied, smooth=False)
    row(_loss, "predictions targets", "predictions targets", **_POINTS)
