"""Linear regression: one step on random data, then the progression of diabetes in 442 patients.

In PyTorch: Linear(10, 1), with MSELoss() and SGD(lr=0.01).
"""

import argparse
import functools
from collections.abc import Sequence

import jax
import numpy as np
import optax
from flax import nnx
from matplotlib.figure import Figure
from sklearn.datasets import load_diabetes
from sklearn.metrics import r2_score
from sklearn.model_selection import KFold
from sklearn.preprocessing import StandardScaler

from examples._common import Result, open_checkpoints, parse_arguments, print_end, save_figure
from jaxloss import mse_loss
from jaxloss.models import LinearRegression
from jaxloss.training import create_train_state, evaluate, train_epoch, train_step


def main(argv: Sequence[str] | None = None) -> Result:
    """Runs the example and returns R² on the held-out patients."""
    arguments = parse_arguments(argv, prog="python -m examples.regression", description=__doc__, steps=165)
    rngs = nnx.Rngs(arguments.seed)
    step_on_random_data(rngs)
    targets, predictions = cross_validate(arguments, rngs)
    r2, r2_of_mean = (
        r2_score(targets, found) for found in (predictions, np.full_like(targets, targets.mean()))
    )
    result = Result("R² on held-out patients", r2, "their mean", r2_of_mean)
    print(result)
    if arguments.plot:
        save_figure(draw(targets, predictions, result), arguments.plot)
    print_end(arguments, "replace mse_loss by huber_loss, on which outliers have less influence.")
    return result


def step_on_random_data(rngs: nnx.Rngs) -> None:
    """Takes one optimizer step, and prints the loss before and after it."""
    print("One step on random data. In PyTorch: Linear(10, 1), MSELoss(), SGD(lr=0.01), batch of 32")
    inputs = jax.random.normal(rngs(), (32, 10))
    targets = jax.random.normal(rngs(), (32, 1))
    model = LinearRegression(rngs=rngs)
    criterion = mse_loss
    optimizer = optax.sgd(learning_rate=0.01)
    print(f"Initial Loss: {criterion(model(inputs), targets):.4f}")

    # One compiled function for loss.backward() and optimizer.step(). It changes nothing in place: the new
    # weights are in the state that it returns.
    state = create_train_state(model, optimizer)
    state, _ = train_step(state, inputs, targets, loss=criterion)
    nnx.update(model, state.params)
    print(f"Loss after one optimization step: {criterion(model(inputs), targets):.4f}")


def cross_validate(arguments: argparse.Namespace, rngs: nnx.Rngs) -> tuple[np.ndarray, np.ndarray]:
    """Trains five times, and returns targets and predictions of the patients that were held out."""
    # Ten measurements per patient, and a score of the progression of the disease after one year.
    inputs, targets = map(np.asarray, load_diabetes(return_X_y=True))
    targets = targets[:, None]
    predictions = np.empty_like(targets)
    squared_error = functools.partial(mse_loss, reduction="sum_and_weight")
    optimizer = optax.sgd(learning_rate=0.03)
    key, batch_size = jax.random.key(arguments.seed), 32
    print(f"Real data: {len(inputs)} patients, a fifth of them held out of each of five trainings")
    folds = KFold(n_splits=5, shuffle=True, random_state=arguments.seed)
    for fold, (train, test) in enumerate(folds.split(inputs), start=1):
        scaled = StandardScaler().fit(inputs[train]).transform(inputs)
        scaler = StandardScaler().fit(targets[train])
        scaled_targets = scaler.transform(targets)
        state = create_train_state(LinearRegression(rngs=rngs), optimizer)
        with open_checkpoints(arguments, f"fold_{fold}") as checkpoints:
            state = checkpoints.restore(state)
            while (step := int(state.step)) < arguments.steps:
                rows = train[: batch_size * (arguments.steps - step)]  # fewer only if steps end mid-epoch
                state, _ = train_epoch(
                    state,
                    scaled[rows],
                    scaled_targets[rows],
                    loss=mse_loss,
                    batch_size=batch_size,
                    key=jax.random.fold_in(key, step),
                )
                checkpoints.save(state)
        error = evaluate(state, scaled[test], scaled_targets[test], loss=squared_error, batch_size=100)
        print(f"  Fold {fold}: held-out loss {error:.3f} after {state.step} steps")
        predictions[test] = scaler.inverse_transform(state.apply_fn(state.params, scaled[test]))
    return targets, predictions


def draw(targets: np.ndarray, predictions: np.ndarray, result: Result) -> Figure:
    """Returns a figure of the predictions over the targets."""
    figure = Figure(figsize=(6, 5), layout="constrained")
    axes = figure.subplots()
    axes.scatter(targets, predictions, s=14, alpha=0.7, label="held-out patients")
    axes.axline((150, 150), slope=1, color="black", linewidth=1, label="prediction equals measurement")
    axes.set(
        title=f"Linear regression of diabetes progression: R² = {result.value:.2f}",
        xlabel="measured progression after one year (score)",
        ylabel="predicted progression (score)",
    )
    axes.legend()
    return figure


if __name__ == "__main__":
    main()
