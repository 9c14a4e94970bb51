"""Training epochs, and checks that losses are finite."""

import functools
import reprlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, overload

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from jaxloss._core.arguments import integer
from jaxloss.training.batches import (
    batch_from_host,
    check_no_options,
    limit_queue,
    read_batches,
    sample_count,
)
from jaxloss.training.objective import Measure, named, traceable, traceable_metrics
from jaxloss.training.state import TrainState, check_is_state, check_not_donated
from jaxloss.training.step import train_step

__all__ = ["NonFiniteLossError", "read_losses", "train_epoch"]


class NonFiniteLossError(FloatingPointError):
    """Raised if a loss is NaN or infinite; it has the state and the losses so far.

    Attributes:
        state: The state after the last step. Steps with a non-finite loss have not changed it.
        losses: The losses of all steps, a NumPy array.
    """

    def __init__(self, message: str, state: TrainState, losses: np.ndarray):
        super().__init__(message)
        self.state = state
        self.losses = losses


@overload
def train_epoch(
    state: TrainState,
    inputs: Any,
    targets: Any = None,
    *,
    loss: Measure,
    batch_size: int | None = None,
    key: jax.Array | None = None,
    micro_batches: int = 1,
    metrics: None = None,
    allow_non_finite: bool = False,
) -> tuple[TrainState, jax.Array]: ...
@overload
def train_epoch(
    state: TrainState,
    inputs: Any,
    targets: Any = None,
    *,
    loss: Measure,
    batch_size: int | None = None,
    key: jax.Array | None = None,
    micro_batches: int = 1,
    metrics: Mapping[str, Measure],
    allow_non_finite: bool = False,
) -> tuple[TrainState, jax.Array, dict[str, jax.Array]]: ...
def train_epoch(
    state: TrainState,
    inputs: Any,
    targets: Any = None,
    *,
    loss: Measure,
    batch_size: int | None = None,
    key: jax.Array | None = None,
    micro_batches: int = 1,
    metrics: Mapping[str, Measure] | None = None,
    allow_non_finite: bool = False,
) -> Any:
    """Runs one `train_step` per batch of a data set, given as arrays or as an iterable of batches.

    Arrays are shuffled, and all steps run in one compiled call, without dispatch time between them. Samples
    left over after the last whole batch are not used in this epoch. On a mesh, the compiler decides how the
    devices share the work of a step. On a CPU, XLA's convolutions are slow inside this call, up to 30 times:
    pass batches to train a convolutional network there.

    An iterable of batches may be a PyTorch `DataLoader` of NumPy arrays, a grain loader or a generator. While
    a step runs, the next batch is loaded and transferred. On a mesh, pass
    `(shard_batch(batch, mesh, "data") for batch in loader)`; to see the progress in a terminal, pass
    `tqdm.tqdm(loader, disable=None)`.

    Unlike `train_step`, this function does not donate `state`, so the state is still valid if the epoch
    fails.

    Args:
        state: The state from `create_train_state`, or from the previous step or epoch. It may be sharded.
        inputs: The inputs of all samples, along the first axis: an array or any pytree of arrays. Arrays that
            are already on the device are not copied to it again. They must not be sharded over `Explicit`
            mesh axes. Without `targets`, an iterable of batches `(inputs, targets)`.
        targets: The targets of all samples, likewise.
        loss: A loss as in `train_step`.
        batch_size: Number of samples per step, for arrays.
        key: PRNG key for the order of the samples, for arrays. Derive it from the epoch number, as in
            `jax.random.fold_in(key, epoch)`, so that a resumed run sees the same batches.
        micro_batches: As in `train_step`.
        metrics: As in `train_step`.
        allow_non_finite: Whether to accept losses that are NaN or infinite. By default they raise an error at
            the end of the epoch; the check does not slow down the steps.

    Returns:
        `(state, losses)`: the state after the epoch, and an array with the loss of each step. With metrics
        `(state, losses, measured)`, with a dict of such arrays.

    Raises:
        NonFiniteLossError: If a loss is NaN or infinite. The message names the loss and the step, counted
            from 1; the error has the state after the epoch.
        TypeError: As in `train_step`, or if `key` is not a PRNG key, `batch_size` is not an integer, or a
            batch is not a pair.
        ValueError: As in `train_step`, or if the numbers of inputs and targets differ or are smaller than
            `batch_size`, or an iterable has no batch, such as a generator that is already exhausted.

    Example:
        >>> import jax, optax
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from jaxloss import mse_loss
        >>> from jaxloss.models import LinearRegression
        >>> from jaxloss.training import create_train_state, train_epoch
        >>> inputs = jax.random.normal(jax.random.key(0), (100, 10))
        >>> targets = inputs[:, :1]
        >>> state = create_train_state(LinearRegression(rngs=nnx.Rngs(0)), optax.sgd(learning_rate=0.1))
        >>> for epoch in range(5):
        ...     key = jax.random.fold_in(jax.random.key(1), epoch)
        ...     state, losses = train_epoch(state, inputs, targets, loss=mse_loss, batch_size=32, key=key)
        >>> losses.shape
        (3,)
        >>> bool(losses[-1] < 0.1)
        True
        >>> batches = [(inputs[i : i + 25], targets[i : i + 25]) for i in range(0, 100, 25)]
        >>> state, losses = train_epoch(state, batches, loss=mse_loss)
        >>> losses.shape
        (4,)
    """
    check_not_donated(state)
    options = traceable(loss), traceable_metrics(metrics), integer("micro_batches", micro_batches)
    if targets is None:
        check_no_options(batch_size=batch_size, key=key)
        state, losses, measured = _train_on(state, read_batches(inputs), *options)
    else:
        if batch_size is None or key is None:
            raise TypeError(
                "arrays need batch_size and key, as in batch_size=32, key=jax.random.key(0); got "
                f"batch_size={batch_size}, key={reprlib.repr(key)}"
            )
        if not _is_key(key):
            raise TypeError(f"key must be one PRNG key, such as jax.random.key(0); got {reprlib.repr(key)}")
        size = integer("batch_size", batch_size)
        data = batch_from_host("inputs", inputs), batch_from_host("targets", targets)
        state, losses, measured = _train_epoch(state, data, key, *options, size)
    if not allow_non_finite:
        read_losses(losses, state, loss=loss)
    return (state, losses) if metrics is None else (state, losses, measured)


def _is_key(key: Any) -> bool:
    """Returns whether `key` is one PRNG key, typed or raw uint32."""
    if not isinstance(key, jax.Array | np.ndarray):
        return False
    is_typed = jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    return key.ndim == 0 if is_typed else key.ndim == 1 and key.dtype == np.uint32


Steps = tuple[TrainState, jax.Array, dict[str, jax.Array]]


def _train_on(
    state: TrainState,
    batches: Iterator[tuple[Any, Any]],
    loss: Partial,
    metrics: dict[str, Partial],
    micro_batches: int,
) -> Steps:
    """Runs a step per batch, each dispatched while the previous one runs."""
    state = jax.tree.map(jnp.copy, state)  # the first step donates the copy
    results: list[Any] = []
    for inputs, targets in batches:
        state, *result = train_step(
            state, inputs, targets, loss=loss, metrics=metrics, micro_batches=micro_batches
        )
        results.append(result)
        limit_queue(results)
    losses, measured = jax.tree.map(lambda *values: jnp.asarray(np.stack(values)), *jax.device_get(results))
    return state, losses, measured


@functools.partial(jax.jit, static_argnums=(5, 6))
def _train_epoch(
    state: TrainState,
    data: tuple[Any, Any],
    key: jax.Array,
    loss: Partial,
    metrics: dict[str, Partial],
    micro_batches: int,
    batch_size: int,
) -> Steps:
    count = sample_count(*data)
    if not 1 <= batch_size <= count:
        raise ValueError(f"batch_size must be in [1, {count}] for {count} samples, got {batch_size}")
    whole = count - count % batch_size
    batches = jax.random.permutation(key, count)[:whole].reshape(-1, batch_size)

    def step(state: TrainState, rows: jax.Array) -> tuple[TrainState, Any]:
        inputs, targets = jax.tree.map(lambda a: jnp.asarray(a)[rows], data)
        state, *result = train_step(
            state, inputs, targets, loss=loss, metrics=metrics, micro_batches=micro_batches
        )
        return state, result

    state, (losses, measured) = jax.lax.scan(step, state, batches)
    return state, losses, measured


def read_losses(losses: Sequence[jax.Array] | jax.Array, state: TrainState, *, loss: Measure) -> np.ndarray:
    """Waits for the losses of the last steps, checks that they are finite, and returns them.

    Reading a loss waits for its step, and the device is idle until the next step is dispatched. Therefore
    collect the losses of `train_step` unread, and read them at intervals, so that the check does not slow
    down the steps. In the meantime, `Checkpoints.save` refuses parameters that are not finite.

    Args:
        losses: The losses of the last steps, oldest first: an array of any shape, such as a scalar or the
            losses of `train_epoch`, or a list of arrays.
        state: The state after the last of these steps.
        loss: The loss function, for its name in the error message.

    Returns:
        The losses as a NumPy array with one axis.

    Raises:
        NonFiniteLossError: If a loss is NaN or infinite. The message names the loss and the step, counted
            from 1; the error has `state` and the losses.

    Example:
        >>> import optax
        >>> import jax.numpy as jnp
        >>> from jaxloss import mse_loss
        >>> from jaxloss.training import create_train_state, read_losses, train_step
        >>> state = create_train_state((jnp.multiply, jnp.ones(3)), optax.sgd(0.3))
        >>> losses = []
        >>> for _ in range(3):
        ...     state, value = train_step(state, jnp.ones(3), jnp.zeros(3), loss=mse_loss)
        ...     losses.append(value)
        >>> read_losses(losses, state, loss=mse_loss).tolist()
        [1.0, 0.64, 0.41]
    """
    check_is_state(state)
    parts = [np.zeros(0, np.float32), *map(np.ravel, jax.tree.leaves(jax.device_get(losses)))]
    values = np.concatenate(parts)
    if (bad := np.flatnonzero(~np.isfinite(values))).size:
        function = named(loss)
        step = int(state.step) - len(values) + int(bad[0]) + 1
        raise NonFiniteLossError(
            f"{getattr(function, '__name__', repr(function))} is {values[bad[0]]} at step {step}, which "
            "changed only the step number. Possible causes are out-of-range labels, a batch whose labels are "
            "all ignored, and a learning rate that is too high; jax.experimental.checkify finds the cause. "
            "The error has the `state` and the `losses` so far",
            state,
            values,
        )
    return values
