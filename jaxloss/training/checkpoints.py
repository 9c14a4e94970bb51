"""Checkpoints of a training run that resume it exactly.

A thin layer over Orbax, which writes in the background and gives a checkpoint its final name only when it is
complete.
"""

import logging
import math
import pathlib
import threading
import weakref
from collections.abc import Mapping
from os import PathLike
from typing import Any, Literal, Self

import jax
import orbax.checkpoint as ocp
from etils import epath
from jax.typing import ArrayLike

from jaxloss._core.arguments import integer
from jaxloss.training.checkpoint_arrays import are_equal, named_arrays, not_finite, with_arrays
from jaxloss.training.checkpoint_files import (
    StepNames,
    checked_metrics,
    find_steps,
    read_arrays,
    read_metrics,
)
from jaxloss.training.state import TrainState, check_is_state, check_not_donated
from jaxloss.training.writer_lock import lock_for_writing, of_first_process

__all__ = ["Checkpoints"]

_LOGGER = logging.getLogger("jaxloss.training")


class Checkpoints:
    """A directory with the checkpoints of one training run, used as a context manager.

    The end of the `with` block waits until pending checkpoints are complete. Without a `with` block, call
    `close`: a program that exits earlier may lose its last checkpoint.

    Any number of programs may read while one writes. Only `save` changes files: the first call creates the
    directory, locks it against other writers until `close`, and removes incomplete checkpoints of killed
    runs. Threads may share one object.

    Truncated and missing files are detected. Flipped bytes are not: Orbax stores no checksums of the arrays,
    only of its index, which also holds arrays of less than about 1 kB.

    Args:
        directory: The directory, local or mounted. In a program with several processes, all of them must see
            it.
        keep: Number of the newest checkpoints to keep, at least 1. Older ones are deleted when a newer one is
            complete.
        best: Name of the metric whose best checkpoint is kept, too. Each `save` then needs this metric.
        best_mode: "max" if larger values are better, as for an accuracy, or "min", as for a loss.
        keep_period: If given, checkpoints at multiples of this number of steps are never deleted.

    Raises:
        TypeError: If `keep` or `keep_period` is not an integer.
        ValueError: If `keep` or `keep_period` is less than 1, `best_mode` is unknown, or `directory` is a
            URL.
        NotADirectoryError: If `directory` is a file.

    Example:
        >>> import tempfile
        >>> import jax.numpy as jnp
        >>> import optax
        >>> from jaxloss import mse_loss
        >>> from jaxloss.training import Checkpoints, create_train_state, train_step
        >>> folder = tempfile.mkdtemp()
        >>> def train(steps):
        ...     state = create_train_state((jnp.multiply, jnp.ones(3)), optax.adam(0.1))
        ...     with Checkpoints(folder) as checkpoints:
        ...         state = checkpoints.restore(state)
        ...         for step in range(int(state.step), steps):
        ...             state, _ = train_step(state, jnp.ones(3), jnp.zeros(3), loss=mse_loss)
        ...             if (step + 1) % 10 == 0:
        ...                 checkpoints.save(state)
        ...     return state.step
        >>> train(25)
        Array(25, dtype=int32)
        >>> with Checkpoints(folder) as checkpoints:
        ...     checkpoints.newest
        20
    """

    def __init__(
        self,
        directory: str | PathLike[str],
        *,
        keep: int = 2,
        best: str | None = None,
        best_mode: Literal["max", "min"] = "max",
        keep_period: int | None = None,
    ):
        for name, count in (("keep", keep), ("keep_period", keep_period)):
            if (name == "keep" or count is not None) and integer(name, count) < 1:
                raise ValueError(f"{name} must be at least 1, got {count}")
        if best_mode not in ("max", "min"):
            raise ValueError(f"best_mode must be 'max' or 'min', got {best_mode!r}")
        if "://" in str(directory):
            raise ValueError(f"directory must be local or mounted, got {directory}")
        self._directory = epath.Path(pathlib.Path(directory).expanduser().absolute())
        if self._directory.is_file():
            raise NotADirectoryError(f"directory must not be a file, got {self._directory}")
        self._keep, self._keep_period = keep, keep_period
        self._best, self._best_mode = best, best_mode
        self._manager: ocp.CheckpointManager | None = None  # created by the first save
        self._mutex = threading.RLock()  # Orbax's manager is not thread-safe
        self._is_closed = False

    def __enter__(self) -> Self:
        """Returns these checkpoints."""
        return self

    def __exit__(self, *error: object) -> None:
        """Waits until pending checkpoints are complete."""
        self.close()

    def close(self) -> None:
        """Waits until pending checkpoints are complete; nothing can be saved or restored afterwards."""
        with self._mutex:
            self._is_closed = True
            if self._manager is not None:
                try:
                    self._manager.close()
                finally:
                    self._manager = None
                    self._unlock()

    def _check_open(self) -> None:
        # Orbax itself would fail in the background, without an error here.
        if self._is_closed:
            raise ValueError(
                f"the checkpoints in {self._directory} are closed, as at the end of a with block; create "
                "a new Checkpoints object"
            )

    def _writer(self) -> ocp.CheckpointManager:
        """Returns the manager that saves, after locking the directory for this object."""
        self._check_open()
        if self._manager is None:
            unlock = lock_for_writing(pathlib.Path(self._directory))
            try:
                self._manager = ocp.CheckpointManager(
                    self._directory, options=self._options(), item_handlers=ocp.PyTreeCheckpointHandler()
                )
            except BaseException:
                unlock()
                raise
            # Without a close, the lock ends with the manager, which stays alive while it writes.
            self._unlock = weakref.finalize(self._manager, unlock)
        return self._manager

    def _options(self) -> ocp.CheckpointManagerOptions:
        policies: list[ocp.checkpoint_managers.PreservationPolicy] = [
            ocp.checkpoint_managers.LatestN(self._keep)
        ]
        if self._best is not None:
            policies.append(
                ocp.checkpoint_managers.BestN(
                    get_metric_fn=self._value, n=1, keep_checkpoints_without_metrics=False
                )
            )
        if self._keep_period is not None:
            policies.append(ocp.checkpoint_managers.EveryNSteps(self._keep_period))
        return ocp.CheckpointManagerOptions(
            preservation_policy=ocp.checkpoint_managers.AnyPreservationPolicy(policies),
            best_fn=None if self._best is None else self._value,  # Orbax then saves metrics.
            step_name_format=StepNames(),
            cleanup_tmp_directories=True,
        )

    def _value(self, metrics: Mapping[str, float]) -> float:
        """Returns a number that is larger for better checkpoints, and -inf without the metric."""
        metric = metrics.get(self._best or "", math.nan)
        if math.isnan(metric):
            return -math.inf
        return metric if self._best_mode == "max" else -metric

    def _steps(self) -> list[int]:
        """Waits for pending checkpoints, and returns the steps of all complete ones."""
        self._check_open()
        if self._manager is not None:
            self._manager.wait_until_finished()
        return find_steps(self._directory)

    @property
    def newest(self) -> int | None:
        """Step of the newest checkpoint, or None if there is none.

        Waits until pending checkpoints are complete.
        """
        with self._mutex:
            step = of_first_process(max(self._steps(), default=-1))
        return step if step >= 0 else None

    @property
    def best(self) -> int | None:
        """Step of the best checkpoint by the metric `best`, or None if no checkpoint has it.

        Waits until pending checkpoints are complete.

        Raises:
            ValueError: If these checkpoints were created without `best`.
        """
        if self._best is None:
            raise ValueError('best needs the name of a metric, as in Checkpoints(directory, best="accuracy")')
        with self._mutex:
            steps = self._steps()
            scores = [self._value(read_metrics(self._directory, step)) for step in steps]
            score, step = max(zip(scores, steps, strict=True), default=(-math.inf, -1))
            step = of_first_process(step if score > -math.inf else -1)
        return step if step >= 0 else None

    def save(self, state: TrainState, metrics: Mapping[str, ArrayLike] | None = None) -> None:
        """Saves a state under its step number.

        Waits for the device and for a copy to host memory. The checkpoint is then written in the background
        while the next steps run, and exists once it is complete. Saving the same state again does nothing.

        Args:
            state: The state from a step.
            metrics: Scalars by name to save with the state, such as `{"accuracy": 0.9}`. A metric that is NaN
                is never the best.

        Raises:
            FileExistsError: If a file or folder that is not a checkpoint has the name of the step.
            FloatingPointError: If a parameter is NaN or infinite, or another array holds NaN. Existing
                checkpoints do not change.
            RuntimeError: If the directory has another writer. The message names it.
            TypeError: If `state` is not a `TrainState`, has a leaf that JAX cannot hold, or a metric is not a
                number.
            ValueError: If the directory has a checkpoint of a later step, or another state of this step, such
                as from another training run; if these checkpoints are closed; if `metrics` lack the one named
                `best`; or if `state` was donated to a step, or has an array of size 0.
        """
        check_not_donated(state)
        numbers = checked_metrics(metrics, self._best)
        arrays = named_arrays(_saved(state))
        if empty := [name for name, array in arrays.items() if not array.size]:
            raise ValueError(f"a checkpoint cannot hold arrays of size 0, got {', '.join(empty)}")
        step = int(state.step)
        with self._mutex:
            if broken := not_finite(arrays):
                raise FloatingPointError(
                    f"{', '.join(broken)} of the state are not finite at step {step}; nothing was saved, and "
                    f"the newest checkpoint in {self._directory} is of step {self.newest}"
                )
            manager = self._writer()
            newest, path = manager.latest_step(), self._directory / str(step)  # including pending ones
            if newest is not None and step < newest:
                raise ValueError(
                    f"the newest checkpoint in {self._directory} is of step {newest}, later than step {step} "
                    "of the state; restore it, delete it, or use another directory"
                )
            if step == newest:
                if not are_equal(arrays, self._read(arrays, step)[1]):
                    raise ValueError(
                        f"the newest checkpoint in {self._directory} is of step {step}, too, and has another "
                        "state; restore it, or use another directory"
                    )
            elif path.exists():  # Orbax would overwrite it.
                raise FileExistsError(f"{path} is not a checkpoint; move it, or use another directory")
            else:
                manager.save(step, args=ocp.args.PyTreeSave(arrays), metrics=numbers)

    def restore(self, state: TrainState, step: int | None = None) -> TrainState:
        """Returns a checkpoint, or `state` if there is none.

        Waits until pending checkpoints are complete, and logs the step to "jaxloss.training".

        Args:
            state: A state of the same model and optimizer, such as the initial state. The restored arrays
                have its sharding.
            step: Step of the checkpoint. Default: the newest.

        Returns:
            The saved state.

        Raises:
            RuntimeError: If the checkpoint cannot be read, for example because it is damaged. The message
                names the newest earlier one that can be read.
            TypeError: If `state` is not a `TrainState`, or has a leaf that JAX cannot hold.
            ValueError: If these checkpoints are closed, the directory has no checkpoint of this `step`, or
                the checkpoint has another model, optimizer, shape or dtype. The message names the
                differences. The files do not change.
        """
        check_is_state(state)
        with self._mutex:
            if step is None and self.newest is None:
                _LOGGER.info("no checkpoint in %s", self._directory)
                return state
            saved = _saved(state)
            restored, arrays = self._read(named_arrays(saved), step)
        _LOGGER.info("restored step %d from %s", restored, self._directory)
        return state.replace(**with_arrays(saved, arrays))

    def restore_params(self, params: Any, step: int | None = None) -> Any:
        """Returns the parameters of a checkpoint with any optimizer, to evaluate or fine-tune a model.

        Only the parameters are read, and the step is logged to "jaxloss.training".

        Args:
            params: Parameters of the same model, such as `state.params` of a new state. The restored arrays
                have their sharding.
            step: Step of the checkpoint. Default: the newest.

        Returns:
            The saved parameters.

        Raises:
            FileNotFoundError: If the directory has no checkpoint.
            RuntimeError: If the checkpoint cannot be read. The message names the newest earlier one that can
                be read.
            TypeError: If `params` has a leaf that JAX cannot hold.
            ValueError: If these checkpoints are closed, the directory has no checkpoint of this `step`, or
                the checkpoint has other parameters, shapes or dtypes.
        """
        saved = {"params": params}
        with self._mutex:
            if step is None and self.newest is None:
                raise FileNotFoundError(f"no checkpoint in {self._directory}")
            restored, arrays = self._read(named_arrays(saved), step, "['params']")
        _LOGGER.info("restored the parameters of step %d from %s", restored, self._directory)
        return with_arrays(saved, arrays)["params"]

    def _read(
        self, targets: dict[str, jax.Array], step: int | None, prefix: str = ""
    ) -> tuple[int, dict[str, jax.Array]]:
        """Returns the step and the arrays of a checkpoint; of the newest if `step` is None."""
        chosen = self._chosen(step)
        try:
            arrays, different = read_arrays(self._directory, chosen, targets, prefix)
        except Exception as error:
            # The writer may have replaced it by a newer one in the meantime. Several processes cannot try
            # again: the others may have read it.
            if jax.process_count() == 1 and self._chosen(step) != chosen:
                return self._read(targets, step, prefix)
            raise RuntimeError(self._unreadable(chosen, targets, prefix)) from error
        if different:
            given = "these parameters" if prefix else "this state"
            raise ValueError(
                f"the checkpoint of step {chosen} in {self._directory} does not match {given}: {different}"
            )
        return chosen, arrays

    def _chosen(self, step: int | None) -> int:
        """Returns `step` if it has a checkpoint; the newest step if `step` is None."""
        if step is None and (newest := self.newest) is not None:
            return newest
        steps = self._steps()
        if step is None or integer("step", step) not in steps:
            found = f"available steps: {', '.join(map(str, steps))}" if steps else "the directory has none"
            raise ValueError(f"no checkpoint of step {step} in {self._directory}; {found}")
        return step

    def _unreadable(self, step: int, targets: dict[str, jax.Array], prefix: str) -> str:
        """Returns the message about a checkpoint that cannot be read."""

        def is_readable(step: int) -> bool:
            try:
                return not read_arrays(self._directory, step, targets, prefix)[1]
            except Exception:
                return False

        earlier = (other for other in reversed(self._steps()) if other < step and is_readable(other))
        if (complete := next(earlier, None)) is None:
            remedy = "no earlier one is complete"
        else:
            remedy = (
                f"the newest complete one before it is of step {complete}: call "
                f"restore{'_params' if prefix else ''}({'params' if prefix else 'state'}, step={complete}), "
                f"and delete {self._directory / str(step)} before training continues from there"
            )
        return f"the checkpoint of step {step} in {self._directory} cannot be read; {remedy}"


def _saved(state: TrainState) -> dict[str, Any]:
    """Returns the fields of a state that a checkpoint holds."""
    return {name: getattr(state, name) for name in ("step", "params", "opt_state", "model_state")}
