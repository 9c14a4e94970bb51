"""Checkpoints of a training run that resume it exactly.

A thin layer over Orbax, which writes in the background and gives a checkpoint its final name only when it is
complete.
"""

import functools
import pathlib
from os import PathLike
from typing import Any, Self

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from jax.tree_util import keystr, tree_flatten_with_path, tree_leaves_with_path, tree_unflatten

from jaxloss._core.arguments import integer
from jaxloss.training.state import TrainState, check_is_state, check_not_donated
from jaxloss.training.trees import differences

__all__ = ["Checkpoints"]


class Checkpoints:
    """A directory with the checkpoints of one training run, used as a context manager.

    At the end of the `with` block, pending checkpoints are completed. Otherwise call `close`: a program that
    exits earlier may lose its last checkpoint.

    Args:
        directory: The directory, local or mounted; it is created if it does not exist. In a program with
            several processes, all of them must see it.
        keep: Number of checkpoints to keep, at least 1. Older ones are deleted when a newer one is complete.

    Raises:
        TypeError: If `keep` is not an integer.
        ValueError: If `keep` is less than 1, or `directory` is a URL.
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

    def __init__(self, directory: str | PathLike[str], *, keep: int = 2):
        if integer("keep", keep) < 1:
            raise ValueError(f"keep must be at least 1, got {keep}")
        if "://" in str(directory):
            raise ValueError(f"directory must be local or mounted, got {directory}")
        self._directory = pathlib.Path(directory).expanduser().absolute()
        if self._directory.is_file():
            raise NotADirectoryError(f"directory must not be a file, got {self._directory}")
        self._manager = ocp.CheckpointManager(
            self._directory,
            options=ocp.CheckpointManagerOptions(max_to_keep=keep, cleanup_tmp_directories=True),
            item_handlers=ocp.StandardCheckpointHandler(),
        )
        self._is_closed = False

    def __enter__(self) -> Self:
        """Returns these checkpoints."""
        return self

    def __exit__(self, *error: object) -> None:
        """Waits until pending checkpoints are complete."""
        self.close()

    def close(self) -> None:
        """Waits until pending checkpoints are complete; nothing can be saved or restored afterwards."""
        if not self._is_closed:
            self._manager.close()
        self._is_closed = True

    def _open(self) -> ocp.CheckpointManager:
        # Orbax itself would fail in the background, without an error here.
        if self._is_closed:
            raise ValueError(
                f"the checkpoints in {self._directory} are closed, as at the end of a with block; create "
                "another Checkpoints"
            )
        return self._manager

    @property
    def newest(self) -> int | None:
        """Step of the newest checkpoint, or None if there is none.

        Waits until pending checkpoints are complete.
        """
        manager = self._open()
        manager.wait_until_finished()
        return manager.latest_step()

    def save(self, state: TrainState) -> None:
        """Saves a state under its step number.

        Waits for the device and for a copy to host memory. The checkpoint is then written in the background
        while the next steps run, and counts once it is complete. Saving the same state again does nothing.

        Args:
            state: The state from a step.

        Raises:
            FloatingPointError: If a parameter is NaN or infinite, or another array holds NaN. Existing
                checkpoints do not change.
            TypeError: If `state` is not a `TrainState`.
            ValueError: If the directory has a later step, or another state of this step, as from another
                training run, or is closed; or if `state` was donated to a step, or has an array of size 0.
        """
        check_not_donated(state)
        manager = self._open()
        arrays = _arrays(state)
        if empty := [name for name, array in arrays.items() if not array.size]:
            raise ValueError(f"a checkpoint cannot hold arrays of size 0, got {', '.join(empty)}")
        step = int(state.step)
        if broken := [
            keystr(path) for path, sound in tree_leaves_with_path(_are_sound(_saved(state))) if not sound
        ]:
            raise FloatingPointError(
                f"{', '.join(broken)} of the state are not finite at step {step}; nothing was saved, and the "
                f"newest checkpoint in {self._directory} is of step {self.newest}"
            )
        latest = manager.latest_step()  # including pending ones
        if latest is not None and step < latest:
            raise ValueError(
                f"the newest checkpoint in {self._directory} is of step {latest}, after step {step}; restore "
                "it, or use another directory"
            )
        if step != latest:
            manager.save(step, args=ocp.args.StandardSave(arrays))
        elif not _are_equal(arrays, _arrays(self.restore(state))):
            raise ValueError(
                f"the newest checkpoint in {self._directory} is of step {step}, too, and has another state; "
                "restore it, or use another directory"
            )

    def restore(self, state: TrainState) -> TrainState:
        """Returns the newest checkpoint, or `state` if there is none.

        Waits until pending checkpoints are complete.

        Args:
            state: A state of the same model and optimizer, such as the initial state. The restored arrays
                have its sharding.

        Returns:
            The saved state.

        Raises:
            TypeError: If `state` is not a `TrainState`.
            ValueError: If the directory is closed, or the checkpoint has another model, optimizer, shape or
                dtype. The message names the differences. The files do not change.
        """
        check_is_state(state)
        step = self.newest
        if step is None:
            return state
        arrays = _arrays(state)
        saved: Any = self._manager.item_metadata(step)
        # Differences in the parameters come first: they are the most informative.
        order = sorted(arrays, key=lambda name: not name.startswith("['params']"))
        expected = {name: _dtype_and_shape(arrays[name]) for name in order}
        if found := differences({name: _dtype_and_shape(array) for name, array in saved.items()}, expected):
            raise ValueError(
                f"the checkpoint of step {step} in {self._directory} does not match this state: {found}"
            )
        targets = {
            name: jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=array.sharding)
            for name, array in arrays.items()
        }
        restored: Any = self._manager.restore(step, args=ocp.args.StandardRestore(targets))
        return _with_arrays(state, restored)


def _dtype_and_shape(array: Any) -> str:
    """Returns the dtype as saved: jnp.result_type would turn float64 into float32 unless x64 is enabled."""
    return f"{array.dtype}{list(array.shape)}"


@jax.jit
def _are_sound(saved: dict[str, Any]) -> dict[str, Any]:
    """Returns for each array whether it may be saved: parameters must be finite, other arrays free of NaN.

    Optimizers may start from an infinite best loss.
    """

    def is_sound(name: str, array: jax.Array) -> jax.Array:
        if not jnp.issubdtype(array.dtype, jnp.inexact):
            return jnp.bool(True)
        return jnp.all(jnp.isfinite(array) if name == "params" else ~jnp.isnan(array))

    return {name: jax.tree.map(functools.partial(is_sound, name), tree) for name, tree in saved.items()}


@jax.jit
def _are_equal(arrays: dict[str, jax.Array], others: dict[str, jax.Array]) -> jax.Array:
    """Returns whether all arrays are equal, NaN to NaN."""
    is_float = {name: jnp.issubdtype(array.dtype, jnp.inexact) for name, array in arrays.items()}
    same = [jnp.array_equal(arrays[name], others[name], equal_nan=is_float[name]) for name in arrays]
    return jnp.stack(same).all()


def _arrays(state: TrainState) -> dict[str, jax.Array]:
    """Returns the arrays of a state by path, with the key data of typed PRNG keys."""
    leaves = tree_leaves_with_path(_saved(state))
    return {keystr(path): jax.random.key_data(leaf) if _is_key(leaf) else leaf for path, leaf in leaves}


def _with_arrays(state: TrainState, arrays: dict[str, jax.Array]) -> TrainState:
    """Returns the state with its arrays replaced by those of the same path."""
    leaves, structure = tree_flatten_with_path(_saved(state))
    restored = [
        jax.random.wrap_key_data(arrays[keystr(path)], impl=jax.random.key_impl(leaf))
        if _is_key(leaf)
        else arrays[keystr(path)]
        for path, leaf in leaves
    ]
    return state.replace(**tree_unflatten(structure, restored))


def _saved(state: TrainState) -> dict[str, Any]:
    """Returns the fields of a state that a checkpoint holds."""
    return {name: getattr(state, name) for name in ("step", "params", "opt_state", "model_state")}


def _is_key(array: jax.Array) -> bool:
    return jnp.issubdtype(array.dtype, jax.dtypes.prng_key)
