"""What the examples share: the command line, the real data, the training loop and the loss curves."""

import argparse
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
import optax
from flax import nnx
from matplotlib.figure import Figure
from sklearn.model_selection import KFold

from jaxloss.training import create_train_state, train_step


def parse_arguments(
    argv: Sequence[str] | None, *, prog: str, description: str | None, steps: int | None
) -> argparse.Namespace:
    """Reads `--steps`, `--seed` and `--plot` from the command line; `steps` is the default of the first."""
    parser = argparse.ArgumentParser(
        prog=prog, description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--steps",
        type=_at_least(1),
        default=steps,
        help=f"training steps on the real data (default: {steps or 'as many as each example needs'})",
    )
    parser.add_argument(
        "--seed", type=_at_least(0), default=0, help="seed of weights, random data and batches (default: 0)"
    )
    parser.add_argument(
        "--plot", type=pathlib.Path, metavar="FILE", help="draw the loss curve into this file"
    )
    arguments = parser.parse_args(argv)
    if arguments.plot and not arguments.plot.parent.is_dir():
        parser.error(f"argument --plot: there is no folder {arguments.plot.parent}")
    return arguments


def _at_least(minimum: int) -> Callable[[str], int]:
    def integer(text: str) -> int:
        if (number := int(text)) < minimum:
            raise argparse.ArgumentTypeError(f"must be at least {minimum}, got {number}")
        return number

    return integer


def folds(dataset: Callable[..., Any], seed: int) -> Iterator[tuple[np.ndarray, ...]]:
    """Splits a data set of scikit-learn five times, so that each sample is held out once.

    A single split of so few samples says little: R² on a fifth of the patients varies by 0.1.

    Yields:
        `(inputs, targets, test_inputs, test_targets)`.
    """
    inputs, targets = dataset(return_X_y=True)
    splits = KFold(n_splits=5, shuffle=True, random_state=seed).split(inputs)
    for fold, (train, test) in enumerate(splits, start=1):
        print(f"Fold {fold} of 5: {len(train)} samples to learn from, {len(test)} held out")
        yield inputs[train], targets[train], inputs[test], targets[test]


def standardize(train: np.ndarray, test: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Gives the columns of `train` mean 0 and deviation 1, and moves and scales those of `test` alike."""
    mean, deviation = train.mean(axis=0), train.std(axis=0)
    return (train - mean) / deviation, (test - mean) / deviation


def fit(
    model: nnx.Module,
    optimizer: optax.GradientTransformation,
    inputs: np.ndarray,
    targets: np.ndarray,
    *,
    loss: Callable[..., jax.Array],
    batch_size: int,
    arguments: argparse.Namespace,
) -> np.ndarray:
    """Trains the model on random batches, as many as `arguments.steps`, and returns their losses."""
    random = np.random.default_rng(arguments.seed)
    report_every = max(1, arguments.steps // 3)
    state = create_train_state(model, optimizer)
    losses: list[jax.Array] = []
    for step in range(1, arguments.steps + 1):
        batch = random.choice(len(inputs), batch_size, replace=False)
        state, value = train_step(state, inputs[batch], targets[batch], loss=loss)
        losses.append(value)
        # Reading a loss waits for its step, so only a report does: meanwhile the device is never idle.
        if step % report_every == 0:
            recent = np.mean(jax.device_get(losses[-report_every:]))
            print(f"  Step {step:5}/{arguments.steps}  Loss: {recent:.4f}")
    nnx.update(model, state.params)
    return np.array(jax.device_get(losses))


def save_loss_curves(losses: list[np.ndarray], title: str, file: pathlib.Path | None) -> None:
    """Draws each fold's losses and their running mean over all folds, where a file is given."""
    if file is None:
        return
    mean = np.mean(losses, axis=0)
    window = max(1, len(mean) // 20)
    running_mean = np.convolve(mean, np.full(window, 1 / window), mode="valid")
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot(title=title, xlabel="step", ylabel="training loss")
    axes.plot(np.arange(1, len(mean) + 1), np.transpose(losses), color="tab:blue", alpha=0.15)
    axes.plot(np.arange(window, len(mean) + 1), running_mean, label=f"mean of {window} batches of each fold")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(file, dpi=150)
    print(f"Loss curves: {file}")
