"""The files of checkpoints: the steps in a directory, and their arrays and metrics."""

from collections.abc import Iterator, Mapping
from os import PathLike
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from jaxloss.training.trees import differences

_Metadata = ocp.path.step.Metadata
_NUMBERS = ocp.path.step.standard_name_format()

# The items of a checkpoint of ocp.CheckpointManager.
_ARRAYS, _METRICS = "default", "metrics"
# Orbax writes all of these. A directory with some of them is a checkpoint, which may be damaged. If its
# deletion was interrupted, the next save deletes it.
_MARKS = (
    "_CHECKPOINT_METADATA",
    "commit_success.txt",
    *(f"{_ARRAYS}/{name}" for name in ("_METADATA", "manifest.ocdbt", "d", "ocdbt.process_0")),
)


class StepNames(ocp.path.step.NameFormat[_Metadata]):
    """Orbax's step names, which are plain numbers, restricted to directories that Orbax wrote."""

    def build_name(self, step: int) -> str:
        """Returns the name of the directory of a step."""
        return _NUMBERS.build_name(step)

    def find_all(self, base_path: str | PathLike[str]) -> Iterator[_Metadata]:
        """Returns the complete checkpoints."""
        return (found for found in _NUMBERS.find_all(base_path) if self._is_checkpoint(found))

    def find_step(self, base_path: str | PathLike[str], step: int) -> _Metadata:
        """Returns one checkpoint, or raises a ValueError."""
        found = _NUMBERS.find_step(base_path, step)
        if not self._is_checkpoint(found):
            raise ValueError(f"{found.path} is not a checkpoint")
        return found

    @staticmethod
    def _is_checkpoint(found: _Metadata) -> bool:
        return any((found.path / mark).exists() for mark in _MARKS)


def find_steps(directory: epath.Path) -> list[int]:
    """Returns the steps of the complete checkpoints, in increasing order."""

    def listed() -> list[int]:
        return sorted(found.step for found in StepNames().find_all(directory))

    # A listing may miss a checkpoint that is just being completed, and find the previous one deleted.
    steps, again = listed(), listed()
    while steps != again:
        steps, again = again, listed()
    return steps


def read_arrays(
    directory: epath.Path, step: int, targets: Mapping[str, jax.Array], prefix: str
) -> tuple[dict[str, Any], str]:
    """Returns the arrays of a checkpoint whose names begin with `prefix`, sharded like `targets`.

    If names, shapes or dtypes differ from those of `targets`, no array is read, and the second result
    describes the differences.
    """
    # Handlers, unlike the manager, have no barrier at which other processes would wait for one that failed.
    handler, path = ocp.PyTreeCheckpointHandler(), directory / str(step) / _ARRAYS
    saved: Any = handler.metadata(path).tree
    found = {name: _dtype_and_shape(array) for name, array in saved.items() if name.startswith(prefix)}
    # Differences in the parameters come first: they are the most informative.
    order = sorted(targets, key=lambda name: not name.startswith("['params']"))
    if different := differences(found, {name: _dtype_and_shape(targets[name]) for name in order}):
        return {}, different
    target = {
        name: jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=array.sharding)
        for name, array in targets.items()
    }
    restore_args = ocp.checkpoint_utils.construct_restore_args(target)
    args = ocp.args.PyTreeRestore(target, restore_args=restore_args, partial_restore=True)
    return handler.restore(path, args=args), ""


def _dtype_and_shape(array: Any) -> str:
    """Returns the dtype as saved: jnp.result_type would turn float64 into float32 unless x64 is enabled."""
    return f"{array.dtype}{list(array.shape)}"


def read_metrics(directory: epath.Path, step: int) -> Mapping[str, float]:
    """Returns the metrics that were saved with a checkpoint."""
    handler = ocp.JsonCheckpointHandler(filename=_METRICS)
    try:
        return handler.restore(directory / str(step) / _METRICS)
    except FileNotFoundError:
        return {}


def checked_metrics(metrics: Any, best: str | None) -> dict[str, float] | None:
    """Returns metrics as floats; `best` names a required metric, and None means that there must be none."""
    if metrics is None and best is None:
        return None
    if best is None:
        raise ValueError(
            'metrics can be saved only if best names one, as in Checkpoints(directory, best="accuracy")'
        )
    if not isinstance(metrics, Mapping) or best not in metrics:
        found = f"metrics {', '.join(metrics)}" if isinstance(metrics, Mapping) else repr(metrics)
        raise ValueError(f"metrics must be a mapping that has {best!r}, the name given as best; got {found}")
    for name, metric in metrics.items():
        dtype = np.asarray(metric).dtype
        is_real = jnp.issubdtype(dtype, jnp.floating) or jnp.issubdtype(dtype, jnp.integer)
        if np.shape(metric) or not is_real:
            raise TypeError(f"metrics must be real scalars, got {metric!r} for {name!r}")
    return {name: float(metric) for name, metric in metrics.items()}
