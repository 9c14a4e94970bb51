"""Epochs in one compiled call, evaluation over a data set, and checked losses."""

import functools
import reprlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxloss._core.arguments import integer, tree_from_host
from jaxloss._core.reduction import mean
from jaxloss.training.objective import (
    sample_count,
    scalar_loss_error,
    traceable,
    value_and_weight,
)
from jaxloss.training.state import TrainState, check_is_state, check_not_donated
from jaxloss.training.step import train_step

__all__ = ["evaluate", "read_losses", "train_epoch"]


def train_epoch(
    state: TrainState,
    inputs: Any,
    targets: Any,
    *,
    loss: Callable[[Any, Any], Any],
    batch_size: int,
    key: jax.Array,
    micro_batches: int = 1,
    allow_non_finite: bool = False,
) -> tuple[TrainState, jax.Array]:
    """Runs one `train_step` per batch of a shuffled data set, all in one compiled call.

    There is no dispatch time between the steps. Samples left over after the last whole batch are not used in
    this epoch. Unlike `train_step`, this function does not donate `state`, so the state is still valid if the
    epoch fails.

    On a mesh, the compiler decides how the devices share the work of a step. To control it, run the steps
    one by one with `shard_batch` and `train_step`.

    Args:
        state: The state from `create_train_state`, or from the previous step or epoch. It may be sharded.
        inputs: The inputs of all samples, along the first axis: an array or any pytree of arrays. Arrays that
            are already on the device are not copied to it again. They must not be sharded over `Explicit`
            mesh axes.
        targets: The targets of all samples, likewise.
        loss: A loss as in `train_step`.
        batch_size: Number of samples per step.
        key: PRNG key for the order of the samples. Derive it from the epoch number, as in
            `jax.random.fold_in(key, epoch)`, so that a resumed run sees the same batches.
        micro_batches: As in `train_step`.
        allow_non_finite: Whether to accept losses that are NaN or infinite. By default they raise an error at
            the end of the epoch; the check does not slow down the steps.

    Returns:
        `(state, losses)`: the state after the epoch, and an array with the loss of each step.

    Raises:
        FloatingPointError: If a loss is NaN or infinite. The message names the loss and the step, counted
            from 1.
        TypeError: As in `train_step`, or if `key` is not a PRNG key or `batch_size` is not an integer.
        ValueError: As in `train_step`, or if the numbers of inputs and targets differ or are smaller than
            `batch_size`.

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
    """
    check_not_donated(state)
    if not _is_key(key):
        raise TypeError(f"key must be one PRNG key, such as jax.random.key(0); got {reprlib.repr(key)}")
    size, parts = integer("batch_size", batch_size), integer("micro_batches", micro_batches)
    inputs, targets = tree_from_host("inputs", inputs), tree_from_host("targets", targets)
    state, losses = _train_epoch(state, inputs, targets, key, traceable(loss), size, parts)
    if not allow_non_finite:
        read_losses(losses, state, loss=loss)
    return state, losses


def _is_key(key: Any) -> bool:
    """Returns whether `key` is one PRNG key, typed or raw uint32."""
    if not isinstance(key, jax.Array | np.ndarray):
        return False
    is_typed = jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    return key.ndim == 0 if is_typed else key.ndim == 1 and key.dtype == np.uint32


@functools.partial(jax.jit, static_argnums=(5, 6))
def _train_epoch(
    state: TrainState,
    inputs: Any,
    targets: Any,
    key: jax.Array,
    loss: Callable[[Any, Any], Any],
    batch_size: int,
    micro_batches: int,
) -> tuple[TrainState, jax.Array]:
    count = sample_count(inputs, targets)
    if not 1 <= batch_size <= count:
        raise ValueError(f"batch_size must be in [1, {count}] for {count} samples, got {batch_size}")
    whole = count - count % batch_size
    batches = jax.random.permutation(key, count)[:whole].reshape(-1, batch_size)

    def step(state: TrainState, rows: jax.Array) -> tuple[TrainState, jax.Array]:
        batch_inputs, batch_targets = jax.tree.map(lambda a: jnp.asarray(a)[rows], (inputs, targets))
        return train_step(state, batch_inputs, batch_targets, loss=loss, micro_batches=micro_batches)

    return jax.lax.scan(step, state, batches)


def evaluate(
    state: TrainState, inputs: Any, targets: Any, *, loss: Callable[[Any, Any], Any], batch_size: int
) -> jax.Array:
    """Returns the mean of a loss or a metric over a data set, computed batch by batch.

    The mean is exact over all samples, also if the last batch is smaller. The model runs in evaluation mode:
    without dropout, and with the batch statistics in `state`. `state` does not change.

    Args:
        state: The state with the parameters to evaluate.
        inputs: The inputs of all samples, along the first axis: an array or any pytree of arrays, not sharded
            over `Explicit` mesh axes.
        targets: The targets of all samples, likewise.
        loss: A callable `(outputs, targets) -> (sum, weight)`, such as
            `functools.partial(loss, reduction="sum_and_weight")`, or a custom metric that ends in
            `jaxloss.reduce(..., reduction="sum_and_weight")`. Create it once, as for `train_step`.
        batch_size: Largest number of samples per call of the model.

    Returns:
        The mean, a scalar: the sum over all batches divided by the weight of all batches.

    Raises:
        TypeError: If `state` is not a `TrainState`, `loss` is not callable, `batch_size` is not an integer,
            or inputs or targets hold NumPy masked arrays.
        ValueError: If `loss` does not return a pair, the numbers of inputs and targets differ or are 0,
            `batch_size` is less than 1, `state` was donated to a step, or a model with a `model_state` has
            no `eval_fn`.

    Example:
        >>> import functools, jax, optax
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> import jaxloss
        >>> from jaxloss.models import Classifier
        >>> from jaxloss.training import create_train_state, evaluate
        >>> state = create_train_state(Classifier(8, 4, 2, rngs=nnx.Rngs(0)), optax.sgd(0.1))
        >>> inputs, labels = jnp.ones((100, 8)), jnp.arange(100) % 2
        >>> loss = functools.partial(jaxloss.cross_entropy, reduction="sum_and_weight")
        >>> evaluate(state, inputs, labels, loss=loss, batch_size=64).shape
        ()
        >>> def accuracy(logits, labels):
        ...     return jaxloss.reduce(logits.argmax(axis=-1) == labels, reduction="sum_and_weight")
        >>> evaluate(state, inputs, labels, loss=accuracy, batch_size=64)
        Array(0.5, dtype=float32)
    """
    check_not_donated(state)
    if state.eval_fn is None:
        raise ValueError(
            "evaluate needs an eval_fn for a model with a model_state; pass "
            "eval_fn(params, model_state, inputs) -> outputs to create_train_state"
        )
    inputs, targets = tree_from_host("inputs", inputs), tree_from_host("targets", targets)
    return _evaluate(state, inputs, targets, traceable(loss), integer("batch_size", batch_size))


@functools.partial(jax.jit, static_argnums=4)
def _evaluate(
    state: TrainState, inputs: Any, targets: Any, loss: Callable[[Any, Any], Any], batch_size: int
) -> jax.Array:
    count = sample_count(inputs, targets)
    if batch_size < 1 or not count:
        raise ValueError(
            f"evaluate needs at least one sample and batch_size >= 1; got {count} samples and "
            f"batch_size={batch_size}"
        )
    eval_fn: Any = state.eval_fn
    model_state = () if state.model_state is None else (state.model_state,)

    def pair(batch: tuple[Any, Any]) -> tuple[jax.Array, jax.Array]:
        outputs = eval_fn(state.params, *model_state, batch[0])
        value, weight = value_and_weight(loss(outputs, batch[1]))
        if weight is None:
            raise scalar_loss_error("evaluate")
        return value, weight

    whole = count - count % batch_size
    data = jax.tree.map(jnp.asarray, (inputs, targets))
    batches = jax.tree.map(lambda a: a[:whole].reshape(-1, batch_size, *a.shape[1:]), data)
    pairs = [jax.tree.map(jnp.sum, jax.lax.map(pair, batches))] if whole else []
    if whole < count:
        pairs.append(pair(jax.tree.map(lambda a: a[whole:], data)))
    return mean(*jax.tree.map(lambda *parts: functools.reduce(jnp.add, parts), *pairs))


def read_losses(
    losses: Sequence[jax.Array] | jax.Array, state: TrainState, *, loss: Callable[[Any, Any], Any]
) -> np.ndarray:
    """Waits for the losses of the last steps, checks that they are finite, and returns them.

    Reading a loss waits for its step, and the device is idle until the next step is dispatched. So collect
    the losses of `train_step` unread, and read them at intervals: the check then costs the steps nothing.
    `Checkpoints.save` refuses parameters that are not finite in the meantime.

    Args:
        losses: The losses of the last steps, oldest first: an array of any shape, such as a scalar or the
            losses of `train_epoch`, or a list of arrays.
        state: The state after the last of these steps.
        loss: The loss function, for its name in the error message.

    Returns:
        The losses as a NumPy array with one axis.

    Raises:
        FloatingPointError: If a loss is NaN or infinite. The message names the loss and the step, counted
            from 1.

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
        named: Any = loss
        # functools.partial has `func`; jax.tree_util.Partial wraps one in an object with `fun`.
        while inner := getattr(named, "func", None) or getattr(named, "fun", None):
            named = inner
        name = getattr(named, "__name__", repr(named))
        step = int(state.step) - len(values) + int(bad[0]) + 1
        raise FloatingPointError(f"{name} is {values[bad[0]]} at step {step}")
    return values
