"""Holds the formulas of the losses beyond PyTorch against the packages that people use, once.

`python -m tests.reference_packages` prints a line for each loss: how far formula and package are apart on the
entries of the catalogue that the package can answer. Arguments name the losses, by default all. pytest does
not run it. It needs

    pip install torch==2.13.0 kornia scikit-learn scoringrules optax keras
"""

import functools
import importlib
import os
import sys
from collections.abc import Callable
from decimal import localcontext
from typing import Any

import jax
import numpy as np

from tests import formulas
from tests.catalogue import CASES, Case
from tests.oracle import decimals

Answer = Callable[..., Any]
REFERENCES: dict[str, list[tuple[str, Answer]]] = {}


def reference(package: str, *losses: str) -> Callable[[Answer], Answer]:
    """Registers what asks a package, given it and an entry's arrays and options, for the losses of "none".

    What the package cannot answer is NaN.
    """

    def register(answer: Answer) -> Answer:
        for loss in losses or (answer.__name__,):
            REFERENCES.setdefault(loss, []).append((package, answer))
        return answer

    return register


# Robust and relative errors.


@reference("kornia.losses")
def general_robust_loss(losses, predictions, targets, alpha=1.0, scale=1.0):
    members = {1: "charbonnier_loss", 0: "cauchy_loss", -2: "geman_mcclure_loss", -np.inf: "welsch_loss"}
    if float(alpha) not in members:
        return np.full(predictions.shape, np.nan)
    torch = importlib.import_module("torch")
    member = getattr(losses, members[float(alpha)])
    arrays = (torch.tensor(array / scale) for array in (predictions, targets))
    return member(*arrays, reduction="none").numpy()


@reference("keras")
def log_cosh_loss(keras, predictions, targets):
    keras.config.set_floatx("float64")
    losses = elementwise(keras.losses.LogCosh(reduction=None), targets, predictions)
    return np.where(np.abs(predictions - targets) < 0.1, np.nan, losses)  # where its digits cancel


@reference("sklearn.metrics")
def mape_loss(metrics, predictions, targets, eps=1e-6):
    losses = elementwise(metrics.mean_absolute_percentage_error, targets, predictions)
    return np.where(np.abs(targets) < eps, np.nan, losses)  # its own eps is another one


@reference("sklearn.metrics")
def msle_loss(metrics, predictions, targets):
    return elementwise(metrics.mean_squared_log_error, targets, predictions)


def elementwise(score, *arrays):
    """Returns the scores of batches of one."""
    scores = [
        np.asarray(score(*(np.array([x]) for x in one))) for one in zip(*map(np.ravel, arrays), strict=True)
    ]
    return np.reshape(scores, arrays[0].shape)


# Quantiles and distributions.


@reference("sklearn.metrics")
def quantile_loss(metrics, predictions, targets, quantiles=0.5):
    if np.ndim(quantiles):
        pairs = list(zip(np.moveaxis(predictions, -1, 0), quantiles, strict=True))
        return np.stack([quantile_loss(metrics, p, targets, q) for p, q in pairs], -1)
    return elementwise(functools.partial(metrics.mean_pinball_loss, alpha=quantiles), targets, predictions)


@reference("scoringrules")
def crps_ensemble_loss(scoringrules, predictions, targets, fair=False):
    if fair and predictions.shape[-1] == 1:  # divides by 0
        return np.full(targets.shape, np.nan)
    return scoringrules.crps_ensemble(targets, predictions, estimator="fair" if fair else "nrg")


@reference("scoringrules")
def crps_normal_loss(scoringrules, predictions, targets, scale):
    return scoringrules.crps_normal(targets, predictions, scale)


# Yes or no.


@reference("optax")
def hinge_loss(optax, scores, targets, margin=1.0, squared=False):
    losses = margin * optax.hinge_loss(scores / margin, targets)
    return np.asarray(losses ** (2 if squared else 1))


def main() -> None:
    """Prints the largest difference of each loss from each package."""
    os.environ["KERAS_BACKEND"] = "jax"
    jax.config.update("jax_enable_x64", True)
    for loss in sys.argv[1:] or REFERENCES:
        for package, answer in REFERENCES[loss]:
            compare(loss, package, answer)


def compare(loss: str, package: str, answer: Answer) -> None:
    """Prints the largest difference of a loss from a package, relative to the largest loss of the entry."""
    module, differences, answered, asked = importlib.import_module(package), [0.0], 0, 0
    for case in (case for case in CASES if case.loss == loss):
        ours, theirs = formula(case), np.asarray(answer(module, **case.arrays, **case.options))
        assert theirs.shape == ours.shape, (case.name, theirs.shape, ours.shape)
        known = ~np.isnan(theirs)
        differences.append(np.max(np.abs(ours - theirs)[known], initial=0) / np.max(np.abs(ours)))
        answered, asked = answered + known.sum(), asked + known.size
    print(f"{loss}: {max(differences):.1e} from {package}, which answers {answered} of {asked}")


def formula(case: Case) -> np.ndarray:
    """Returns the losses of an entry by their formula."""
    with localcontext(formulas.CONTEXT):
        arrays = {name: decimals(array) for name, array in case.arrays.items()}
        losses, _ = formulas.evaluate_batch(case.loss, arrays, case.options)
        return losses.astype(float)


if __name__ == "__main__":
    main()
