"""What the examples share: the command line, the real data, the training loop and the loss curve."""

import argparse
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
import optax
from flax import nnx
from matplotlib.figure import Figure

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


def load(dataset: Callable[..., Any]) -> tuple[np.ndarray, ...]:
    """Loads a data set of scikit-learn, holding out every fifth sample.

    Returns:
        `(inputs, targets, test_inputs, test_targets)`.
    """
    inputs, targets = dataset(return_X_y=True)
    held_out = np.arange(len(inputs)) % 5 == 1
    return inputs[~held_out], targets[~held_out], inputs[held_out], targets[held_out]


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
) -> None:
    """Trains the model on random batches, as many as `arguments.steps`, and reports now and then."""
    random = np.random.default_rng(arguments.seed)
    report_every = max(1, arguments.steps // 5)
    state = create_train_state(model, optimizer)
    losses: list[jax.Array] = []
    for step in range(1, arguments.steps + 1):
        batch = random.choice(len(inputs), batch_size, replace=False)
        state, value = train_step(state, inputs[batch], targets[batch], loss=loss)
        losses.append(value)
        # Reading a loss waits for its step, so only a report does: meanwhile the device is never idle.
        if step % report_every == 0:
            recent = np.mean(jax.device_get(losses[-report_every:]))
            print(f"Step {step:5}/{arguments.steps}  Loss: {recent:.4f}")
    nnx.update(model, state.params)
    if arguments.plot:
        _save_loss_curve(
            np.array(jax.device_get(losses)), f"Training of {type(model).__name__}", arguments.plot
        )


def _save_loss_curve(losses: np.ndarray, title: str, file: pathlib.Path) -> None:
    window = max(1, len(losses) // 20)
    running_mean = np.convolve(losses, np.full(window, 1 / window), mode="valid")
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot(title=title, xlabel="step", ylabel="training loss")
    axes.plot(np.arange(1, len(losses) + 1), losses, alpha=0.35, label="each batch")
    axes.plot(np.arange(window, len(losses) + 1), running_mean, label=f"mean of {window} batches")
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(file, dpi=150)
    print(f"Loss curve: {file}")
