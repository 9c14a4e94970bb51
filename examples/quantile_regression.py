"""Quantile regression: a prediction interval for each of 442 diabetes patients.

One linear model predicts the quantiles 0.1, 0.5 and 0.9 at once. Of the patients that were held out, about
80 % should lie between the first and the last of them.
"""

from collections.abc import Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from matplotlib.figure import Figure
from sklearn.datasets import load_diabetes

from examples._common import fit, folds, parse_arguments, standardize
from jaxloss import quantile_loss
from jaxloss.models import LinearRegression

QUANTILES = np.array([0.1, 0.5, 0.9], np.float32)


def main(argv: Sequence[str] | None = None) -> float:
    """Runs the example and returns the share of the held-out patients within their intervals."""
    arguments = parse_arguments(
        argv, prog="python -m examples.quantile_regression", description=__doc__, steps=500
    )
    rngs = nnx.Rngs(arguments.seed)
    criterion = jax.tree_util.Partial(quantile_loss, quantiles=QUANTILES)
    held_out, predicted, constant = [], [], []
    for fold, (inputs, targets, test_inputs, test_targets) in enumerate(
        folds(load_diabetes, arguments.seed), start=1
    ):
        inputs, test_inputs = standardize(inputs, test_inputs)
        mean, deviation = targets.mean(), targets.std()
        model = LinearRegression(10, len(QUANTILES), rngs=rngs)
        fit(
            model,
            optax.adam(learning_rate=0.02),
            (inputs, (targets - mean) / deviation, test_inputs, (test_targets - mean) / deviation),
            loss=criterion,
            metric=coverage,
            batch_size=64,
            arguments=arguments,
            fold=fold,
        )
        held_out.append(test_targets)
        predicted.append(mean + deviation * np.asarray(model(jnp.asarray(test_inputs))))
        constant.append(np.tile(np.quantile(targets, QUANTILES), (len(test_targets), 1)))
    targets, intervals, constants = map(np.concatenate, (held_out, predicted, constant))
    for name, quantiles in (("Predicted", intervals), ("Constant", constants)):
        width = np.mean(quantiles[:, 2] - quantiles[:, 0])
        print(
            f"{name} interval: covers {coverage(targets, quantiles):.3f} of the held-out patients, "
            f"mean width {width:.0f}"
        )
    save_band(targets, intervals, arguments.plot)
    return coverage(targets, intervals)


def coverage(targets: np.ndarray, quantiles: jax.Array | np.ndarray) -> float:
    """Returns the share of the targets between the first and the last quantile."""
    low, high = np.asarray(quantiles)[:, 0], np.asarray(quantiles)[:, -1]
    return float(np.mean((low <= targets) & (targets <= high)))


def save_band(targets: np.ndarray, quantiles: np.ndarray, file: Path | None) -> None:
    """Draws the intervals of all patients, in the order of their medians, where a file is given."""
    if file is None:
        return
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes, order = figure.subplots(), np.argsort(quantiles[:, 1])
    low, median, high = quantiles[order].T
    patients = np.arange(len(order))
    axes.fill_between(patients, low, high, color="tab:blue", alpha=0.25, label="quantiles 0.1 to 0.9")
    axes.plot(patients, median, color="tab:blue", linewidth=2, label="quantile 0.5")
    axes.plot(patients, targets[order], ".", color="tab:orange", label="patients, when held out")
    axes.set(
        title=f"Quantile regression: {coverage(targets, quantiles):.1%} of the patients in the band",
        xlabel="patients, in the order of the predicted median",
        ylabel="progression of the disease",
    )
    axes.legend()
    figure.savefig(file, dpi=150)
    print(f"Intervals: {file}")


if __name__ == "__main__":
    main()
