"""Quantile regression: a prediction interval for each of 442 diabetes patients.

One linear model predicts the quantiles 0.1, 0.5 and 0.9 at once. Of the held-out patients, about 80 % should
lie between the first and the last of them. The baseline is the interval between the same quantiles of all
patients, which is the same for everyone.
"""

import argparse
from collections.abc import Sequence

import jax
import numpy as np
import optax
from flax import nnx
from matplotlib.figure import Figure
from sklearn.datasets import load_diabetes
from sklearn.model_selection import KFold
from sklearn.preprocessing import StandardScaler

from examples._common import Result, open_checkpoints, parse_arguments, print_end, save_figure
from jaxloss import quantile_loss
from jaxloss.models import LinearRegression
from jaxloss.training import create_train_state, train_epoch

QUANTILES = np.array([0.1, 0.5, 0.9], np.float32)


def main(argv: Sequence[str] | None = None) -> Result:
    """Runs the example and returns the mean width of the intervals."""
    arguments = parse_arguments(
        argv, prog="python -m examples.quantile_regression", description=__doc__, steps=100
    )
    targets, predictions = cross_validate(arguments)
    constants = np.tile(np.quantile(targets, QUANTILES), (len(targets), 1))
    covered = Result(
        "Held-out patients within their intervals",
        coverage(targets, predictions),
        "constant interval",
        coverage(targets, constants),
    )
    width = Result(
        "Mean width of the intervals",
        mean_width(predictions),
        "constant interval",
        mean_width(constants),
        ".0f",
    )
    print(covered, width, sep="\n")
    if arguments.plot:
        save_figure(draw(targets, predictions, covered), arguments.plot)
    print_end(arguments, "predict more quantiles: add 0.25 and 0.75 to QUANTILES.")
    return width


def cross_validate(arguments: argparse.Namespace) -> tuple[np.ndarray, np.ndarray]:
    """Trains five times, and returns targets and predicted quantiles of the patients that were held out."""
    inputs, targets = map(np.asarray, load_diabetes(return_X_y=True))
    predictions = np.empty((len(targets), len(QUANTILES)))
    loss = jax.tree_util.Partial(quantile_loss, quantiles=QUANTILES)
    optimizer = optax.adam(learning_rate=0.05)
    rngs, key, batch_size = nnx.Rngs(arguments.seed), jax.random.key(arguments.seed), 64
    print(f"Real data: {len(inputs)} patients, a fifth of them held out of each of five trainings")
    folds = KFold(n_splits=5, shuffle=True, random_state=arguments.seed)
    for fold, (train, test) in enumerate(folds.split(inputs), start=1):
        scaled = StandardScaler().fit(inputs[train]).transform(inputs)
        mean, deviation = targets[train].mean(), targets[train].std()
        scaled_targets = (targets - mean) / deviation
        state = create_train_state(LinearRegression(10, len(QUANTILES), rngs=rngs), optimizer)
        with open_checkpoints(arguments, f"fold_{fold}") as checkpoints:
            state = checkpoints.restore(state)
            while (step := int(state.step)) < arguments.steps:
                rows = train[: batch_size * (arguments.steps - step)]  # fewer only if steps end mid-epoch
                state, _ = train_epoch(
                    state,
                    scaled[rows],
                    scaled_targets[rows],
                    loss=loss,
                    batch_size=batch_size,
                    key=jax.random.fold_in(key, step),
                )
                checkpoints.save(state)
        predictions[test] = mean + deviation * np.asarray(state.apply_fn(state.params, scaled[test]))
        print(f"  Fold {fold}: {coverage(targets[test], predictions[test]):.1%} are within their intervals")
    return targets, predictions


def coverage(targets: np.ndarray, quantiles: np.ndarray) -> float:
    """Returns the share of the targets between the first and the last quantile."""
    return float(np.mean((quantiles[:, 0] <= targets) & (targets <= quantiles[:, -1])))


def mean_width(quantiles: np.ndarray) -> float:
    """Returns the mean distance between the first and the last quantile."""
    return float(np.mean(quantiles[:, -1] - quantiles[:, 0]))


def draw(targets: np.ndarray, quantiles: np.ndarray, covered: Result) -> Figure:
    """Returns a figure of the intervals of all patients, ordered by the predicted median."""
    figure = Figure(figsize=(7, 5), layout="constrained")
    axes, order = figure.subplots(), np.argsort(quantiles[:, len(QUANTILES) // 2])
    low, *_, high = quantiles[order].T
    median = quantiles[order, len(QUANTILES) // 2]
    patients = np.arange(1, len(order) + 1)
    axes.vlines(patients, low, high, color="tab:blue", alpha=0.25, label="predicted quantiles 0.1 to 0.9")
    axes.plot(patients, median, color="tab:blue", linewidth=2, label="predicted median")
    inside = (low <= targets[order]) & (targets[order] <= high)
    for name, chosen, color in (("inside", inside, "black"), ("outside", ~inside, "tab:orange")):
        axes.plot(
            patients[chosen], targets[order][chosen], ".", color=color, label=f"held-out patients {name}"
        )
    axes.set(
        title=f"Prediction intervals: {covered.value:.1%} of the patients lie inside",
        xlabel="patients, ordered by the predicted median",
        ylabel="progression of diabetes after one year (score)",
    )
    axes.legend()
    return figure


if __name__ == "__main__":
    main()
