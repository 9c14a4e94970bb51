"""Predicted against true values."""

from collections.abc import Callable

import numpy as np

from tests.case import Arrays, add


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
