"""Training that survives its process: the newest states on disk, complete or not there at all.

A thin layer over Orbax, which writes in the background, and gives a checkpoint its name only when all of it
is on disk.
"""

import pathlib
from os import PathLike
from typing import Any, Self

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp
from jax.tree_util import keystr, tree_flatten_with_path, tree_leaves_with_path, tree_unflatten

from jaxloss._core.arguments import integer
from jaxloss.training.step import TrainState, refuse_other_than_state, refuse_what_was_taken
from jaxloss.training.trees import differences

__all__ = ["Checkpoints"]


class Checkpoints:
    """A folder of checkpoints of one training, to be used in a `with` statement.

    At its end the statement waits until what was saved is on disk. Without one, `close` does so; a program
    that ends before may lose its last checkpoint.

    Args:
        directory: The folder, a local or mounted one; it is made if it is not there. In a program of several
            processes, all see it.
        keep: How many checkpoints stay, at least 1; older ones are removed once a newer one is complete.

    Raises:
        TypeError: If `keep` is no integer.
        ValueError: If `keep` is less than 1, or `directory` is a URL.
        NotADirectoryError: If `directory` is a file.

    Example:
        >>> import tempfile
        >>> import jax.numpy as jnp
        >>> import optax
        >>> from jaxloss import mse_loss
        >>> from jaxloss.training import Checkpoints
        >>> from jaxloss.training import create_train_state, train_step
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
            raise ValueError(f"directory must be a local or mounted folder, got {directory}")
        self._directory = pathlib.Path(directory).expanduser().absolute()
        if self._directory.is_file():
            raise NotADirectoryError(f"directory must be a folder, got the file {self._directory}")
        self._manager = ocp.CheckpointManager(
            self._directory,
            options=ocp.CheckpointManagerOptions(max_to_keep=keep, cleanup_tmp_directories=True),
            item_handlers=ocp.StandardCheckpointHandler(),
        )
        self._is_closed = False

    def __enter__(self) -> Self:
        """Returns the folder itself."""
        return self

    def __exit__(self, *error: object) -> None:
        """Waits until what was saved is on disk."""
        self.close()

    def close(self) -> None:
        """Waits until what was saved is on disk; nothing can be saved or restored after that."""
        if not self._is_closed:
            self._manager.close()
        self._is_closed = True

    def _open(self) -> ocp.CheckpointManager:
        # Orbax would fail in the background, where nobody hears it.
        if self._is_closed:
            raise ValueError(
                f"the checkpoints in {self._directory} are closed, as at the end of a with statement: open "
                "them anew"
            )
        return self._manager

    @property
    def newest(self) -> int | None:
        """The step of the newest checkpoint, None where there is none.

        Waits until what was saved is complete.
        """
        manager = self._open()
        manager.wait_until_finished()
        return manager.latest_step()

    def save(self, state: TrainState) -> None:
        """Saves a state under the number of its step.

        Waits for the device and for a copy in memory. The rest happens in the background, while the next
        steps run; the checkpoint counts once it is complete. The newest step is not saved again.

        Args:
            state: The state from a step.

        Raises:
            FloatingPointError: If a parameter is NaN or infinite. The checkpoints stay as they are.
            TypeError: If `state` is no `TrainState`.
            ValueError: If the folder has a later step, as when another training wrote it, or is closed; or a
                step has taken the state, or an array in it has size 0.
        """
        refuse_what_was_taken(state)
        manager = self._open()
        arrays = _arrays(state)
        if empty := [name for name, array in arrays.items() if not array.size]:
            raise ValueError(f"a checkpoint cannot hold arrays without numbers: {', '.join(empty)}")
        step = int(state.step)
        sound = _finite(state.params)
        broken = [keystr(path) for path, finite in tree_leaves_with_path(sound) if not finite]
        if broken:
            raise FloatingPointError(
                f"the parameters {', '.join(broken)} are not finite at step {step}, so they are not saved; "
                f"the newest checkpoint in {self._directory} is of step {self.newest}"
            )
        latest = manager.latest_step()  # complete or under way
        if latest is not None and step < latest:
            raise ValueError(
                f"the newest checkpoint in {self._directory} is of step {latest}, after step {step}: restore "
                "it, or use another folder"
            )
        if step != latest:
            manager.save(step, args=ocp.args.StandardSave(arrays))

    def restore(self, state: TrainState) -> TrainState:
        """Returns the newest checkpoint, or `state` where there is none.

        Waits until what was saved is complete.

        Args:
            state: A state of the same model and optimizer, such as that before the first step. What is read
                is laid on the devices as its arrays are.

        Returns:
            The state that was saved.

        Raises:
            TypeError: If `state` is no `TrainState`.
            ValueError: If the folder is closed, or the checkpoint is of another model or optimizer, or of
                other shapes or dtypes. The message names what differs. The files stay as they are.
        """
        refuse_other_than_state(state)
        step = self.newest
        if step is None:
            return state
        arrays = _arrays(state)
        saved: Any = self._manager.item_metadata(step)
        # As they are written, but the parameters first: they say most.
        order = sorted(arrays, key=lambda name: not name.startswith("['params']"))
        expected = {name: _kind(arrays[name]) for name in order}
        if found := differences({name: _kind(array) for name, array in saved.items()}, expected):
            raise ValueError(
                f"the checkpoint of step {step} in {self._directory} does not fit this state: {found}"
            )
        targets = {
            name: jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=array.sharding)
            for name, array in arrays.items()
        }
        restored: Any = self._manager.restore(step, args=ocp.args.StandardRestore(targets))
        return _with_arrays(state, restored)


def _kind(array: Any) -> str:
    # As it is written: JAX would call float64 float32 while it has no more than 32 bits.
    return f"{array.dtype}{list(array.shape)}"


@jax.jit
def _finite(params: Any) -> Any:
    return jax.tree.map(lambda parameter: jnp.isfinite(parameter).all(), params)


def _arrays(state: TrainState) -> dict[str, jax.Array]:
    """The arrays of a state by their paths; of a typed key its bits."""
    leaves = tree_leaves_with_path(_saved(state))
    return {keystr(path): jax.random.key_data(leaf) if _is_key(leaf) else leaf for path, leaf in leaves}


def _with_arrays(state: TrainState, arrays: dict[str, jax.Array]) -> TrainState:
    """The state with other arrays in its places."""
    leaves, structure = tree_flatten_with_path(_saved(state))
    restored = [
        jax.random.wrap_key_data(arrays[keystr(path)], impl=jax.random.key_impl(leaf))
        if _is_key(leaf)
        else arrays[keystr(path)]
        for path, leaf in leaves
    ]
    return state.replace(**tree_unflatten(structure, restored))


def _saved(state: TrainState) -> dict[str, Any]:
    return {name: getattr(state, name) for name in ("step", "params", "opt_state", "model_state")}


def _is_key(array: jax.Array) -> bool:
    return jnp.issubdtype(array.dtype, jax.dtypes.prng_key)
