"""Binary losses: entries, and the formula and certificate rows of the hinge loss."""

from collections.abc import Callable, Mapping
from decimal import Decimal

import numpy as np

from tests.case import Arrays, add
from tests.formulas import beyond_pytorch, positive_part
from tests.situation import INF, row


@beyond_pytorch("(),()->()")
def hinge_loss(scores, targets, margin=1, squared=False):
    return positive_part(Decimal(margin) - targets * scores) ** (2 if squared else 1)


def _binary(
    first: str, *shape: int, weights: Mapping[str, tuple[int, ...]] | None = None
) -> Callable[[np.random.RandomState], Arrays]:
    def make(rng: np.random.RandomState) -> Arrays:
        scores = rng.randn(*shape) * 2 if first == "logits" else rng.uniform(0.05, 0.95, shape)
        extra = {name: rng.rand(*size) + 0.5 for name, size in (weights or {}).items()}
        return {first: scores, "targets": rng.rand(*shape), **extra}

    return make


for _loss, _first in (("binary_cross_entropy", "probs"), ("binary_cross_entropy_with_logits", "logits")):
    add(_loss, "matrix", _binary(_first, 6, 3))
    add(_loss, "scalar", _binary(_first))
    add(_loss, "weight", _binary(_first, 6, 3, weights={"weight": (6, 3)}))
    add(_loss, "weight-broadcast", _binary(_first, 6, 3, weights={"weight": (3,)}))
_corners = {"targets": np.array([0.0, 1.0, 0.0, 1.0, 0.5, 0.0, 1.0])}
add(
    "binary_cross_entropy",
    "corners",
    lambda rng: {"probs": np.array([0.0, 1.0, 1.0, 0.0, 0.5, 1e-30, 1e-30]), **_corners},
    smooth=False,
    gradients=("probs",),
)
add(
    "binary_cross_entropy_with_logits",
    "corners",
    lambda rng: {"logits": np.array([0.0, 0.0, 100.0, -100.0, 0.0, -1e30, 1e30]), **_corners},
    smooth=False,
)
add("binary_cross_entropy_with_logits", "pos-weight", _binary("logits", 6, 3, weights={"pos_weight": (3,)}))
add(
    "binary_cross_entropy_with_logits",
    "weight-pos-weight",
    _binary("logits", 6, 3, weights={"weight": (6, 1), "pos_weight": (3,)}),
)


def _signs(*shape: int) -> Callable[[np.random.RandomState], Arrays]:
    return lambda rng: {
        "scores": rng.randn(*shape) * 2,
        "targets": np.where(rng.rand(*shape) < 0.5, -1.0, 1.0),
    }


_signed = {"scores": np.array([0.0, 0.0, 40.0, -60.0]), "targets": np.array([1.0, -1.0, 1.0, 1.0])}
add("soft_margin_loss", "matrix", _signs(6, 3), gradients=("scores",))
add("soft_margin_loss", "scalar", _signs(), gradients=("scores",))
add("soft_margin_loss", "far", lambda rng: _signed, gradients=("scores",))
add("multilabel_soft_margin_loss", "rows", _binary("logits", 6, 4))
add("multilabel_soft_margin_loss", "one", _binary("logits", 4))
add("multilabel_soft_margin_loss", "weight", _binary("logits", 6, 4, weights={"weight": (4,)}))

for _squared in (False, True):
    add(
        "hinge_loss", f"squared-{_squared}", _signs(4, 3), gradients=("scores",), squared=_squared, margin=0.5
    )
_edge = {"scores": np.array([1.0, -1.0, 1e20, -1e20, 0.0]), "targets": np.array([1.0, -1.0, 1.0, -1.0, 1.0])}
add("hinge_loss", "kink", lambda rng: _edge, smooth=False, gradients=("scores",), squared=False, margin=1.0)
for _squared in (False, True):
    row(
        "hinge_loss",
        "scores targets",
        "scores",
        {"squared": _squared},
        zeros=[(0.0, 1.0), (0.0, -1.0)],
        kinks=[(1.0, 1.0), (-1.0, -1.0)],
        plus=[(INF, 1.0), (INF, -1.0)],
        minus=[(-INF, -1.0), (-INF, 1.0)],
        far=[(1e100, 1.0), (1e100, -1.0)],
        half=[(0.25, 1.0), (300.0, -1.0)],
    )
