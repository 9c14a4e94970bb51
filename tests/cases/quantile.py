"""Quantiles, expectiles and predicted distributions: entries, formulas and rows of the certificate."""

from collections.abc import Callable
from decimal import Decimal

import numpy as np

from tests.case import Arrays, add
from tests.formulas import beyond_pytorch, kinked
from tests.situation import INF, row


@beyond_pytorch(None)
def quantile_loss(predictions, targets, quantiles=0.5):
    q = np.vectorize(Decimal, otypes=[object])(quantiles)
    error = np.vectorize(kinked, otypes=[object])((targets[..., None] if q.ndim else targets) - predictions)
    return np.maximum(q * error, (q - 1) * error)


def _quantiles(*shape: int, count: int | None = None) -> Callable[[np.random.RandomState], Arrays]:
    def make(rng: np.random.RandomState) -> Arrays:
        if count is None:
            return {"predictions": rng.randn(*shape), "targets": rng.randn(*shape)}
        predictions, targets = rng.randn(*shape, count), rng.randn(*shape)
        return {"predictions": predictions, "targets": targets, "quantiles": np.linspace(0, 1, count)}

    return make


add("quantile_loss", "matrix", _quantiles(4, 3))
add("quantile_loss", "upper", _quantiles(4, 3), quantiles=0.9)
add("quantile_loss", "several", _quantiles(4, 2, count=3), gradients=("predictions", "targets"))
_ties = {"predictions": np.array([0.0, 1.0, -2.0, 1e20]), "targets": np.array([0.0, 1.0, 1.0, -1e20])}
add("quantile_loss", "ties", lambda rng: _ties, smooth=False, quantiles=0.25)

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
