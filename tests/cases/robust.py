"""Robust regression losses: formulas, entries and certificate rows."""

from collections.abc import Callable
from decimal import Decimal

import numpy as np

from tests.case import Arrays, add
from tests.formulas import absolute, beyond_pytorch, exp, log, power
from tests.situation import INF, row


@beyond_pytorch("(),()->()")
def charbonnier_loss(predictions, targets, eps=1e-3):
    error, eps = predictions - targets, Decimal(eps)
    return (error**2 + eps**2).sqrt() if eps else absolute(error)


@beyond_pytorch("(),()->()")
def log_cosh_loss(predictions, targets):
    error = abs(predictions - targets)
    return error + log((1 + exp(-2 * error)) / 2)


def _general(predictions, targets, alpha=1, scale=1):
    alpha, z = Decimal(alpha), ((predictions - targets) / Decimal(scale)) ** 2
    if alpha == Decimal("-inf"):
        return 1 - exp(-z / 2)
    if alpha in (0, 2):
        return z / 2 if alpha else log(1 + z / 2)
    b = abs(alpha - 2)
    return b / alpha * (power(1 + z / b, alpha / 2) - 1)


@beyond_pytorch(None)
def general_robust_loss(predictions, targets, alpha=1, scale=1):
    return np.vectorize(_general, otypes=[object])(predictions, targets, alpha, scale)


@beyond_pytorch("(),()->()")
def wing_loss(predictions, targets, width=10, curvature=2):
    error, width, curvature = absolute(predictions - targets), Decimal(width), Decimal(curvature)
    if error < width:
        return width * log(1 + error / curvature)
    return error - width + width * log(1 + width / curvature)


def _pair(*shape: int, factor: float = 1.0, **options: float) -> Callable[[np.random.RandomState], Arrays]:
    return lambda rng: {
        "predictions": factor * rng.randn(*shape),
        "targets": rng.randn(*shape),
        **{name: np.array(option) for name, option in options.items()},
    }


def at_errors(*errors: float) -> Callable[[np.random.RandomState], Arrays]:
    return lambda rng: {"predictions": np.array(errors), "targets": np.zeros(len(errors))}


add("charbonnier_loss", "matrix", _pair(4, 3), eps=0.5)
add("charbonnier_loss", "extreme", at_errors(0.0, 1e20, -1e-20, 1e-3), eps=1e-3)
add("charbonnier_loss", "kink", at_errors(0.0, 1e20, -1e-20, 1e-3), smooth=False, eps=0.0)
add("log_cosh_loss", "matrix", _pair(4, 3))
add("log_cosh_loss", "extreme", at_errors(0.0, 1e-10, -1e-4, 0.5, 1.0, -1.0, 30.0, 1e20), smooth=False)
for _alpha in (1.0, -2.0, 3.5, 1.9990234375, 2.0009765625, 1e-6):
    make = _pair(4, 3, factor=4, alpha=_alpha, scale=0.75)
    add("general_robust_loss", f"alpha-{_alpha}", make)
for _alpha in (0.0, 2.0, -INF):
    make = _pair(4, 3, factor=4, alpha=_alpha, scale=0.75)
    add("general_robust_loss", f"alpha-{_alpha}", make, gradients=("predictions", "targets", "scale"))
add("wing_loss", "matrix", _pair(4, 3, factor=3), width=2.0, curvature=0.25)
add("wing_loss", "extreme", at_errors(0.0, 1e-20, -9.5, 10.5, 1e20), smooth=False, width=10.0, curvature=2.0)

_ERRORS = {
    "zeros": [(0.0, 0.0)],
    "plus": [(INF, 0.0), (0.0, INF)],
    "minus": [(-INF, 0.0), (0.0, -INF)],
    "far": [(1e200, -1e200), (1e-200, 0.0)],
    "half": [(0.5, -1.25), (2.0, -1.0)],
}
_BOTH = "predictions targets"
row("charbonnier_loss", _BOTH, _BOTH, {"eps": 0.25}, **_ERRORS)
row("charbonnier_loss", _BOTH, _BOTH, {"eps": 0.0}, kinks=[(1.0, 1.0)], **_ERRORS)
row("log_cosh_loss", _BOTH, _BOTH, **_ERRORS)
for _alpha in (1.0, 0.0, -2.0, -INF):
    row("general_robust_loss", _BOTH, _BOTH, {"alpha": _alpha}, **_ERRORS)
row("wing_loss", _BOTH, _BOTH, kinks=[(1.0, 1.0)], **_ERRORS)
