"""What the examples share: the command line, random batches, the last lines that they print, and plots."""

import argparse
import contextlib
import logging
import operator
import os
import pathlib
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.sharding import AxisType, Mesh
from matplotlib.figure import Figure

from jaxloss.training import Checkpoints, TrainState


def parse_arguments(
    argv: Sequence[str] | None,
    *,
    prog: str,
    description: str | None,
    steps: int | None,
    flags: Mapping[str, str] | None = None,
) -> argparse.Namespace:
    """Returns the options of the command line, and `started`, the time of this call.

    Args:
        argv: The command line. Default: that of the process.
        prog: The command that runs the example.
        description: The text at the top of `--help`.
        steps: The default of `--steps`.
        flags: Further options without a value, from name to help.
    """
    parser = argparse.ArgumentParser(
        prog=prog, description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    default = steps or "that of each example"
    parser.add_argument(
        "--steps",
        type=at_least(1),
        default=steps,
        help=f"optimizer steps of each training on real data (default: {default})",
    )
    parser.add_argument(
        "--seed", type=at_least(0), default=0, help="seed of weights, random data and batches (default: 0)"
    )
    parser.add_argument(
        "--plot", type=pathlib.Path, metavar="FILE", help="save a picture of the results, such as plot.png"
    )
    parser.add_argument(
        "--checkpoint",
        type=pathlib.Path,
        metavar="DIR",
        help="save checkpoints in this directory and resume from the latest ones",
    )
    for flag, text in (flags or {}).items():
        parser.add_argument(flag, action="store_true", help=text)
    arguments = parser.parse_args(argv, argparse.Namespace(started=time.perf_counter()))
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


def at_least(minimum: int) -> Callable[[str], int]:
    """Returns a converter of text to an integer that is not less than `minimum`."""

    def integer(text: str) -> int:
        if (number := int(text)) < minimum:
            raise argparse.ArgumentTypeError(f"must be at least {minimum}, got {number}")
        return number

    return integer


class NoCheckpoints(contextlib.nullcontext[Any]):
    """The interface of `Checkpoints` without files, for a run without `--checkpoint`."""

    def __enter__(self) -> "NoCheckpoints":
        """Returns this object."""
        return self

    def restore(self, state: TrainState) -> TrainState:
        """Returns the state."""
        return state

    def save(self, state: TrainState) -> None:
        """Does nothing."""


def open_checkpoints(arguments: argparse.Namespace, name: str) -> Checkpoints | NoCheckpoints:
    """Returns the checkpoints of one training in a subdirectory of `--checkpoint`, if that was given."""
    if arguments.checkpoint is None:
        return NoCheckpoints()
    # `Checkpoints` logs the step that it restores.
    logging.basicConfig(format="  %(message)s", stream=sys.stdout, force=True)
    logging.getLogger("jaxloss.training").setLevel(logging.INFO)
    return Checkpoints(arguments.checkpoint / f"{name}_seed_{arguments.seed}")


def batches(data: Any, batch_size: int, steps: range, seed: int) -> Iterator[Any]:
    """Yields a random batch of a pytree of arrays for each step.

    A batch depends only on the seed and the number of its step, so a resumed run sees the same batches.
    """
    count = len(jax.tree.leaves(data)[0])
    for step in steps:
        # NumPy pads seeds with zeros: (seed, 0) would be the seed of other random data, `seed`.
        rows = np.random.default_rng((seed, step + 1)).choice(count, batch_size, replace=False)
        yield jax.tree.map(operator.itemgetter(rows), data)


def enlarge_thread_pool() -> None:
    """Prevents a deadlock of concurrent collectives, which a CPU with few cores can reach."""
    os.environ.setdefault("PJRT_NPROC", "32")


def mesh_of_all_devices() -> Mesh:
    """Returns a mesh with one axis, "data"."""
    return jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))


class Result(NamedTuple):
    """A measured quantity and the same quantity of a baseline, with the format of both numbers."""

    quantity: str
    value: float
    baseline: str
    baseline_value: float
    form: str = "z.3f"

    def __str__(self) -> str:
        """Returns one line."""
        value, baseline_value = format(self.value, self.form), format(self.baseline_value, self.form)
        return f"{self.quantity}: {value} ({self.baseline}: {baseline_value})"


def print_end(arguments: argparse.Namespace, suggestion: str) -> None:
    """Prints the time since the arguments were parsed, and what to try next."""
    print(f"Took {time.perf_counter() - arguments.started:.1f} s. Next: {suggestion}")


def bins_from_zero(values: np.ndarray) -> list[float]:
    """Returns edges of about forty bins of a histogram, with an edge at zero."""
    low, high = min(values.min(), 0), max(values.max(), 0)
    width = (high - low) / 40 or 1
    return [width * edge for edge in range(int(low // width), int(high // width) + 2)]


def save_figure(figure: Figure, file: pathlib.Path) -> None:
    """Saves a figure and prints where."""
    figure.savefig(file, dpi=110)
    print(f"Plot: {file}")
