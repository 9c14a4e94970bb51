"""What the examples share: the command line, the real data, the training loop and the curves."""

import argparse
import contextlib
import dataclasses
import functools
import operator
import os
import pathlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import optax
from flax import nnx
from jax.sharding import AxisType, Mesh
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator
from sklearn.model_selection import KFold

from jaxloss.training import (
    Checkpoints,
    TrainState,
    create_train_state,
    read_losses,
    shard_batch,
    shard_train_state,
    train_step,
)


def parse_arguments(
    argv: Sequence[str] | None,
    *,
    prog: str,
    description: str | None,
    steps: int | None,
    flags: Mapping[str, str] | None = None,
    has_devices: bool = False,
) -> argparse.Namespace:
    """Reads the options of the command line.

    Args:
        argv: The command line, by default that of the process.
        prog: How the example is called.
        description: What it does.
        steps: The default of `--steps`.
        flags: Further options that take no value, name to help.
        has_devices: Whether there is `--devices`.
    """
    parser = argparse.ArgumentParser(
        prog=prog, description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--steps",
        type=at_least(1),
        default=steps,
        help=f"training steps on the real data (default: {steps or 'as many as each example needs'})",
    )
    parser.add_argument(
        "--seed", type=at_least(0), default=0, help="seed of weights, random data and batches (default: 0)"
    )
    parser.add_argument(
        "--plot",
        type=pathlib.Path,
        metavar="FILE",
        help="draw the loss and the held-out metric, or the predictions, into this file, such as loss.png",
    )
    parser.add_argument(
        "--checkpoint",
        type=pathlib.Path,
        metavar="DIR",
        help="save the training in this folder now and then, and go on from what is there",
    )
    if has_devices:
        parser.add_argument("--devices", type=at_least(1), help="train on this many virtual CPU devices")
    for flag, text in (flags or {}).items():
        parser.add_argument(flag, action="store_true", help=text)
    arguments = parser.parse_args(argv)
    if arguments.plot:
        _check_plot(parser, arguments.plot)
    return arguments


def _check_plot(parser: argparse.ArgumentParser, file: pathlib.Path) -> None:
    if not file.parent.is_dir():
        parser.error(f"argument --plot: there is no folder {file.parent}")
    formats = Figure().canvas.get_supported_filetypes()
    if file.suffix.lower().lstrip(".") not in formats:
        parser.error(
            f"argument --plot: {file.name!r} must end in a format, such as .png; "
            f"there are {', '.join(formats)}"
        )


def enlarge_thread_pool() -> None:
    """Keeps concurrent collectives on one CPU from deadlock, which they can reach with a thread per core."""
    os.environ.setdefault("PJRT_NPROC", "32")


def make_mesh(devices: int) -> Mesh:
    """Returns a mesh of virtual CPU devices. Must be called before JAX initializes its devices."""
    enlarge_thread_pool()
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", devices)
    return jax.make_mesh((devices,), ("data",), axis_types=(AxisType.Auto,))


def at_least(minimum: int) -> Callable[[str], int]:
    """Reads an integer that is not too small."""

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


@dataclasses.dataclass
class History:
    """What a training was like: the loss of each step, and the held-out metric after some of them."""

    losses: np.ndarray
    metric_steps: np.ndarray
    metrics: np.ndarray

    def until(self, step: int) -> "History":
        """Returns the part up to a step."""
        seen = self.metric_steps <= step
        return History(self.losses[:step], self.metric_steps[seen], self.metrics[seen])

    def extended(self, losses: np.ndarray, metric: float) -> "History":
        """Returns a history with the losses of the next steps, and the metric after the last of them."""
        losses = np.append(self.losses, losses)
        return History(losses, np.append(self.metric_steps, len(losses)), np.append(self.metrics, metric))


def fit(
    model: nnx.Module,
    optimizer: optax.GradientTransformation,
    data: tuple[np.ndarray, Any, np.ndarray, Any],
    *,
    loss: Callable[..., jax.Array],
    metric: Callable[[Any, Any], float],
    batch_size: int,
    arguments: argparse.Namespace,
    fold: int,
    mesh: Mesh | None = None,
) -> History:
    """Trains the model on random batches, as many as `arguments.steps`, on all devices of the mesh if any.

    Targets are any tree of arrays. Afterwards the model has the trained weights. The batch of a step
    depends on the seed and the step's number alone. So a training that was killed goes on from its newest
    checkpoint as if nothing had happened.
    """
    inputs, targets, test_inputs, test_targets = data
    state = create_train_state(model, optimizer)
    state = state if mesh is None else shard_train_state(state, mesh)
    history = History(np.empty(0), np.empty(0, int), np.empty(0))
    report_every = max(1, arguments.steps // 10)
    folder = arguments.checkpoint and arguments.checkpoint.absolute() / f"seed_{arguments.seed}_fold_{fold}"
    with Checkpoints(folder) if folder else contextlib.nullcontext() as checkpoints:
        if checkpoints:
            state = checkpoints.restore(state)
            history = _load(folder.with_suffix(".npz"), history).until(int(state.step))
        losses: list[jax.Array] = []
        for step in range(int(state.step) + 1, arguments.steps + 1):
            random = np.random.default_rng((arguments.seed, step))
            batch = random.choice(len(inputs), batch_size, replace=False)
            rows = jax.tree.map(operator.itemgetter(batch), (inputs, targets))
            rows = rows if mesh is None else shard_batch(rows, mesh, "data")
            state, value = train_step(state, *rows, loss=loss)
            losses.append(value)
            # Reading a loss waits for its step, so only a report does: meanwhile the device is never idle.
            if step % report_every == 0 or step == arguments.steps:
                recent, losses = read_losses(losses, state, loss=loss), []
                history = history.extended(recent, metric(test_targets, _outputs(state, test_inputs)))
                if step % (5 * report_every) == 0:
                    print(f"  Step {step:5}/{arguments.steps}  Loss: {recent.mean():.4f}", flush=True)
                if checkpoints:
                    # The history first: it may know more than the checkpoint, but never less.
                    _save(folder.with_suffix(".npz"), history)
                    checkpoints.save(state)
    nnx.update(model, state.params)
    return history


@jax.jit
def _outputs(state: TrainState, inputs: np.ndarray) -> Any:
    return state.apply_fn(state.params, inputs)


def _save(file: pathlib.Path, history: History) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    unfinished = file.with_suffix(".tmp.npz")
    np.savez(unfinished, **dataclasses.asdict(history))
    unfinished.replace(file)


def _load(file: pathlib.Path, default: History) -> History:
    if not file.exists():
        return default
    with np.load(file) as arrays:
        return History(**arrays)


def save_curves(histories: list[History], metric: str, title: str, file: pathlib.Path | None) -> None:
    """Draws loss and held-out metric of each fold, and their means, where a file is given."""
    if file is None:
        return
    figure = Figure(figsize=(7, 6), layout="constrained")
    upper, lower = figure.subplots(2, sharex=True)
    # Folds that were trained further, or reported at other steps, are drawn as far as all have them.
    length = min(len(history.losses) for history in histories)
    losses = np.array([history.losses[:length] for history in histories])
    common = functools.reduce(np.intersect1d, [history.metric_steps for history in histories])
    metrics = np.array([h.metrics[np.isin(h.metric_steps, common)] for h in histories])
    window = max(1, length // 50)
    smooth = np.array([np.convolve(fold, np.full(window, 1 / window), mode="valid") for fold in losses])
    steps = np.arange(window, length + 1)
    _draw(upper, steps, smooth, f"training loss, mean of {window} steps")
    _draw(lower, common, metrics, metric)
    upper.set(title=title, yscale="log")
    upper.yaxis.set(major_formatter="{x:g}", minor_formatter="{x:g}", minor_locator=LogLocator(subs=(2, 5)))
    if len(histories) > 1:
        upper.legend()
    lower.set(xlabel="step")
    figure.savefig(file, dpi=150)
    print(f"Loss and {metric}: {file}")


def _draw(axes: Any, steps: np.ndarray, folds: np.ndarray, label: str) -> None:
    labels = ["each fold", *["_"] * (len(folds) - 1)]
    axes.plot(steps, folds.T, color="tab:blue", alpha=0.3, linewidth=1, label=labels)
    axes.plot(steps, folds.mean(axis=0), color="tab:blue", linewidth=2, label="mean of the folds")
    axes.set(ylabel=label)
    axes.grid(alpha=0.3)
