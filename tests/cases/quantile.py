"""Losses of quantiles, expectiles and predicted distributions: entries, formulas and certificate rows."""

from collections.abc import Callable
from decimal import Decimal

import numpy as np

from tests.case import Arrays, add
from tests.formulas import PI, absolute, beyond_pytorch, exp, kinked, total
from tests.situation import INF, at, row


@beyond_pytorch(None)
def quantile_loss(predictions, targets, quantiles=0.5):
    q = np.vectorize(Decimal, otypes=[object])(quantiles)
    error = np.vectorize(kinked, otypes=[object])((targets[..., None] if q.ndim else targets) - predictions)
    return np.maximum(q * error, (q - 1) * error)


@beyond_pytorch("(),()->()")
def expectile_loss(predictions, targets, expectile=0.5):
    error = targets - predictions
    return (1 - Decimal(expectile) if error < 0 else Decimal(expectile)) * error**2


@beyond_pytorch("(m),()->()")
def crps_ensemble_loss(predictions, targets, fair=False):
    size = len(predictions)
    apart = total(absolute(x - other) for x in predictions for other in predictions)
    pairs = max(size - 1, 1) if fair else size
    return total(absolute(x - targets) for x in predictions) / size - apart / (2 * size * pairs)


@beyond_pytorch("(),(),()->()")
def crps_normal_loss(predictions, targets, scale):
    if scale == 0:
        return abs(predictions - targets)
    z = (targets - predictions) / scale
    density = exp(-(z**2) / 2) / (2 * PI).sqrt()
    return scale * (z * erf(z / Decimal(2).sqrt()) + 2 * density - 1 / PI.sqrt())


def erf(x):
    """Sums 2 / sqrt(π) · exp(-x²) · Σ_n 2^n · x^(2n+1) / (2n+1)!!, whose terms have the same sign."""
    if abs(x) > 20:
        return Decimal(1 if x > 0 else -1)  # to 170 digits
    term, found, n = x, Decimal(0), 0
    while found + term != found:
        found, n = found + term, n + 1
        term *= 2 * x**2 / (2 * n + 1)
    return 2 / PI.sqrt() * exp(-(x**2)) * found


def _pair(*shape: int) -> Callable[[np.random.RandomState], Arrays]:
    return lambda rng: {"predictions": rng.randn(*shape), "targets": rng.randn(*shape)}


def _quantiles(*shape: int, count: int | None = None) -> Callable[[np.random.RandomState], Arrays]:
    def make(rng: np.random.RandomState) -> Arrays:
        if count is None:
            return _pair(*shape)(rng)
        predictions, targets = rng.randn(*shape, count), rng.randn(*shape)
        return {"predictions": predictions, "targets": targets, "quantiles": np.linspace(0, 1, count)}

    return make


add("quantile_loss", "matrix", _quantiles(4, 3))
add("quantile_loss", "upper", _quantiles(4, 3), quantiles=0.9)
add("quantile_loss", "several", _quantiles(4, 2, count=3), gradients=("predictions", "targets"))
_ties = {"predictions": np.array([0.0, 1.0, -2.0, 1e20]), "targets": np.array([0.0, 1.0, 1.0, -1e20])}
add("quantile_loss", "ties", lambda rng: _ties, smooth=False, quantiles=0.25)


def _ensembles(*shape: int, size: int) -> Callable[[np.random.RandomState], Arrays]:
    return lambda rng: {"predictions": rng.randn(*shape, size), "targets": rng.randn(*shape)}


add("expectile_loss", "matrix", _pair(4, 3), expectile=0.75)
add("expectile_loss", "ends", _pair(4, 3), expectile=0.0)
add("crps_ensemble_loss", "matrix", _ensembles(3, 2, size=5), fair=False)
add("crps_ensemble_loss", "fair", _ensembles(3, 2, size=5), fair=True)
add("crps_ensemble_loss", "one", _ensembles(4, size=1), fair=True)
_tied = {
    "predictions": np.array([[1.0, 1, 3, 1], [2, 2, 2, 2], [1e20, -1, 0, 0.5]]),
    "targets": np.array([1.0, 2, 0]),
}
add("crps_ensemble_loss", "ties", lambda rng: _tied, smooth=False, fair=False)
add(
    "crps_normal_loss",
    "matrix",
    lambda rng: {**_pair(4, 3)(rng), "scale": 2 * rng.rand(4, 3)},
)
add(
    "crps_normal_loss",
    "extreme",
    lambda rng: {
        "predictions": np.array([0.0, 1e20, 10.0, 0.0]),
        "targets": np.array([0.0, 0.0, -10.0, 1e-20]),
        "scale": np.array([1e-3, 1.0, 0.5, 1e10]),
    },
    smooth=False,
)

_ERRORS = {
    "zeros": [(0.0, 0.0)],
    "plus": [(INF, 0.0), (0.0, INF)],
    "minus": [(-INF, 0.0), (0.0, -INF)],
    "far": [(1e200, -1e200), (1e-200, 0.0)],
    "half": [(0.5, -1.25), (300.0, -2.0)],
}
row(
    "quantile_loss",
    "predictions targets",
    "predictions targets",
    {"quantiles": 0.25},
    kinks=[(1.0, 1.0), (-2.0, -2.0)],
    **_ERRORS,
)
row(
    "expectile_loss",
    "predictions targets",
    "predictions targets",
    {"expectile": 0.25},
    **_ERRORS | {"zeros": [at(0.0, 0.0, documented="where e >= 0", convention={"HVP": [0.75, -0.75]})]},
)
for _fair in (False, True):
    row(
        "crps_ensemble_loss",
        "predictions targets",
        "predictions targets",
        {"fair": _fair},
        zeros=[([0.0, 0.0, 0.0], 0.0)],
        kinks=[([1.0, 1.0, 3.0], 1.0), ([2.0, 1.0, 2.0], 0.5)],
        plus=[([INF, 1.0, 3.0], 0.0), ([0.0, 1.0, 3.0], INF)],
        minus=[([-INF, 1.0, 3.0], 0.0), ([0.0, 1.0, 3.0], -INF)],
        far=[([1e200, -1e200, 0.0], 1.0), ([1e-200, 0.0, -1e-200], 0.0)],
        half=[([0.5, -1.25, 2.0], 0.25), ([300.0, -2.0, 0.5], 300.0)],
    )
row(
    "crps_normal_loss",
    "predictions targets scale",
    "predictions targets scale",
    zeros=[
        at(
            *(0.0, 0.0, 0.0),
            above=("scale",),
            documented="At 0 second derivatives are 0",
            convention={"HVP": 0},
        ),
        at(0.0, 1.0, 0.0, above=("scale",)),
        (0.0, 0.0, 1.0),
    ],
    plus=[(INF, 0.0, 1.0), (0.0, INF, 1.0), (0.0, 0.0, INF)],
    minus=[(-INF, 0.0, 1.0), at(0.0, 0.0, -INF, documented="standard deviations >= 0")],
    far=[(1e200, -1e200, 1.0), (1.0, 0.0, 1e-200), (1.0, 0.0, 1e200)],
    half=[(0.5, -1.25, 0.75), (300.0, -2.0, 4.0)],
)
