"""Regression losses: entries and, for those that PyTorch does not have, formulas and certificate rows."""

from collections.abc import Callable
from decimal import Decimal

import numpy as np

from tests.case import Arrays, add
from tests.formulas import absolute, beyond_pytorch, log
from tests.situation import INF, at, row


@beyond_pytorch("(),()->()")
def mape_loss(predictions, targets, eps=1e-6):
    return absolute(predictions - targets) / max(abs(targets), Decimal(eps))


@beyond_pytorch("(),()->()")
def msle_loss(predictions, targets):
    return (log(1 + predictions) - log(1 + targets)) ** 2 if predictions != targets else Decimal(0)


def _pair(*shape: int) -> Callable[[np.random.RandomState], Arrays]:
    return lambda rng: {"predictions": rng.randn(*shape), "targets": rng.randn(*shape)}


def _weighted_pair(rng: np.random.RandomState) -> Arrays:
    return {**_pair(6, 3)(rng), "weight": rng.rand(6, 3)}


def _at_errors(*errors: float) -> Callable[[np.random.RandomState], Arrays]:
    return lambda rng: {"predictions": np.array(errors), "targets": np.zeros(len(errors))}


for _loss in ("mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss"):
    add(_loss, "matrix", _pair(6, 4))
    add(_loss, "scalar", _pair())
    add(_loss, "cube", _pair(4, 2, 3))
    add(_loss, "huge", _at_errors(1e30, -1e18, 1e9, 3e4) if _loss != "mse_loss" else _at_errors(1e15, -3e4))
for _loss in ("mse_loss", "l1_loss", "huber_loss"):
    add(_loss, "weight", _weighted_pair)
add("l1_loss", "ties", _at_errors(0.0, 1.0, -2.0, 0.0), smooth=False)
add("l1_loss", "infinite", _at_errors(np.inf, -np.inf, 1.0), smooth=False)
add("smooth_l1_loss", "kinks", _at_errors(0.0, 0.5, -0.5, 0.25, 2.0), smooth=False, beta=0.5)
add("smooth_l1_loss", "beta-zero", _at_errors(0.0, 1.0, -2.0), smooth=False, beta=0.0)
add("smooth_l1_loss", "infinite", _at_errors(np.inf, -np.inf, 1.0), smooth=False)
add("smooth_l1_loss", "wide", _pair(5, 2), beta=3.0)
add("huber_loss", "kinks", _at_errors(0.0, 0.5, -0.5, 0.25, 2.0), smooth=False, delta=0.5)
add("huber_loss", "infinite", _at_errors(np.inf, -np.inf, 1.0), smooth=False)
add("huber_loss", "narrow", _pair(5, 2), delta=0.1)


def _counts(*shape: int, rates: bool = False) -> Callable[[np.random.RandomState], Arrays]:
    def make(rng: np.random.RandomState) -> Arrays:
        predictions = rng.uniform(0.5, 4, shape) if rates else rng.randn(*shape)
        return {"predictions": predictions, "targets": rng.uniform(0.1, 5, shape)}

    return make


add("poisson_nll_loss", "matrix", _counts(6, 3))
add("poisson_nll_loss", "scalar", _counts())
add("poisson_nll_loss", "full", _counts(6, 3), full=True)
add("poisson_nll_loss", "rates", _counts(6, 3, rates=True), log_input=False)
add("poisson_nll_loss", "rates-full-eps", _counts(6, 3, rates=True), log_input=False, full=True, eps=0.1)
add(
    "poisson_nll_loss",
    "corners",
    lambda rng: {"predictions": np.array([-np.inf, -200.0, 0.0, 1.0]), "targets": np.array([1.0, 0, 0, 1])},
    smooth=False,
)
add(
    "poisson_nll_loss",
    "no-rate",
    lambda rng: {"predictions": np.array([0.0, 0.0, 2.0]), "targets": np.array([0.0, 1.0, 0.0])},
    smooth=False,
    gradients=("predictions",),
    log_input=False,
    full=True,
    eps=1e-3,
)


def _normal(*shape: int, var: tuple[int, ...]) -> Callable[[np.random.RandomState], Arrays]:
    return lambda rng: {**_pair(*shape)(rng), "var": rng.uniform(0.2, 2, var)}


add("gaussian_nll_loss", "matrix", _normal(6, 3, var=(6, 3)))
add("gaussian_nll_loss", "scalar", _normal(var=()))
add("gaussian_nll_loss", "row-variances-full", _normal(6, 3, var=(6,)), full=True)
add("gaussian_nll_loss", "last-axis-shared", _normal(6, 3, var=(6, 1)), full=True, eps=0.1)
add("gaussian_nll_loss", "first-axis-shared", _normal(6, 3, var=(1, 3)))
add("gaussian_nll_loss", "one-variance", _normal(6, var=()))
add("gaussian_nll_loss", "number", _pair(6, 3), var=0.7)
add(
    "gaussian_nll_loss",
    "bounded",
    lambda rng: {**_at_errors(0.0, 1.0, -2.0, 0.5)(rng), "var": np.array([0.0, 0.0, 0.05, 0.1])},
    smooth=False,
    eps=0.1,
)


def _above_minus_1(*shape: int) -> Callable[[np.random.RandomState], Arrays]:
    return lambda rng: {name: rng.uniform(-0.9, 3, shape) for name in ("predictions", "targets")}


add("mape_loss", "matrix", _pair(4, 3), eps=0.25)
_near_zero = {"predictions": np.array([1.0, 0.0, 1e20]), "targets": np.array([0.0, 1e-7, -1e20])}
add("mape_loss", "near-zero", lambda rng: _near_zero, eps=1e-6)
add("msle_loss", "matrix", _above_minus_1(4, 3))
_far_apart = {"predictions": np.array([1e20, 1e-20, 1.0, 0.5]), "targets": np.array([0.0, 1e-10, 1e20, 0.5])}
add("msle_loss", "far-apart", lambda rng: _far_apart)

_BOTH, _OUT = "predictions targets", {"documented": "True values >= -1"}
row(
    "mape_loss",
    _BOTH,
    _BOTH,
    zeros=[(1.0, 0.0), (0.0, 0.0)],
    kinks=[(1.0, 1.0)],
    plus=[(INF, 1.0), (1.0, INF)],
    minus=[(-INF, 1.0), (1.0, -INF)],
    far=[(1e200, -1e200), (1e-200, 1.0)],
    half=[(0.5, -1.25), (300.0, -2.0)],
)
row(
    "msle_loss",
    _BOTH,
    _BOTH,
    zeros=[(0.0, 0.0), (0.0, 1.0)],
    plus=[(INF, 0.0), (0.0, INF)],
    minus=[at(-INF, 0.0, **_OUT), at(0.0, -INF, **_OUT)],
    far=[(1e200, 1.0), (1.0, 1e200), (1e-200, 0.0)],
    half=[(0.5, 1.25), (300.0, 2.0)],
)
