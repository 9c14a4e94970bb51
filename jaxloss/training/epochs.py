"""Whole epochs of `train_step`, exact means over a data set, and losses that are checked when read."""

import functools
import reprlib
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxloss._core.arguments import integer
from jaxloss._core.reduction import mean
from jaxloss.training.objective import no_pair, sample_count, traceable, value_and_weight
from jaxloss.training.step import TrainState, refuse_other_than_state, refuse_what_was_taken, train_step

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
    """Takes a step with each batch of a shuffled data set, all in one compiled call.

    The steps are those of `train_step`, without the time between them. What the shuffled samples leave over
    after the last whole batch is not seen in this epoch. Unlike `train_step` it does not donate `state`:
    where an epoch fails, the state before it is still there.

    On a mesh the devices share the work of a step as the compiler sees fit. To be sure that they do, take the
    steps one by one, with `jaxloss.training.shard_batch`.

    Args:
        state: The state from `create_train_state`, or from the step or the epoch before.
        inputs: All inputs, with the samples along the first axis: an array or any pytree of arrays. Arrays
            that already lie on the device are not sent again. They must not be split over mesh axes that are
            `Explicit`; a state may.
        targets: The targets of all samples, likewise.
        loss: The loss as `train_step` takes it.
        batch_size: The number of samples of a step.
        key: Decides the order of the samples. Derive it from the epoch's number, as in
            `jax.random.fold_in(key, epoch)`, and a run that is resumed sees what it would have seen.
        micro_batches: As in `train_step`.
        allow_non_finite: Whether a loss may be NaN or infinite. By default that is an error, raised when the
            epoch is over; looking for it costs a step nothing.

    Returns:
        `(state, losses)`: the state after the epoch, and the loss of each step.

    Raises:
        FloatingPointError: If a loss is NaN or infinite. It names the loss and the step; the first is 1.
        TypeError: As in `train_step`; or `key` is no key, or `batch_size` no integer.
        ValueError: As in `train_step`; or inputs and targets differ in number, or are fewer than a batch.

    Example:
        >>> import jax, optax
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from jaxloss import mse_loss
        >>> from jaxloss.training import train_epoch
        >>> from jaxloss.models import LinearRegression
        >>> from jaxloss.training import create_train_state
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
    refuse_what_was_taken(state)
    if not _is_key(key):
        raise TypeError(f"key must be a key, such as jax.random.key(0); got {reprlib.repr(key)}")
    size, parts = integer("batch_size", batch_size), integer("micro_batches", micro_batches)
    state, losses = _train_epoch(state, inputs, targets, key, traceable(loss), size, parts)
    if not allow_non_finite:
        read_losses(losses, state, loss=loss)
    return state, losses


def _is_key(key: Any) -> bool:
    """Whether it is one key: a typed one, or the bits of one."""
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
        raise ValueError(f"batch_size must lie in [1, {count}], the number of samples; got {batch_size}")
    whole = count - count % batch_size
    batches = jax.random.permutation(key, count)[:whole].reshape(-1, batch_size)

    def step(state: TrainState, rows: jax.Array) -> tuple[TrainState, jax.Array]:
        batch_inputs, batch_targets = jax.tree.map(lambda a: jnp.asarray(a)[rows], (inputs, targets))
        return train_step(state, batch_inputs, batch_targets, loss=loss, micro_batches=micro_batches)

    return jax.lax.scan(step, state, batches)


def evaluate(
    state: TrainState, inputs: Any, targets: Any, *, loss: Callable[[Any, Any], Any], batch_size: int
) -> jax.Array:
    """Returns the mean of a loss, or of any measure, over a data set, which it takes batch by batch.

    The mean is that of all samples, though the last batch is smaller. The model runs as in use and not as in
    training: without dropout and with the batch statistics that `state` holds. Nothing in `state` changes.

    Args:
        state: The state whose parameters are judged.
        inputs: All inputs, with the samples along the first axis: an array or any pytree of arrays, not split
            over mesh axes that are `Explicit`.
        targets: The targets of all samples, likewise.
        loss: A callable `(outputs, targets) -> (sum, weight)`, such as
            `functools.partial(loss, reduction="sum_and_weight")` or, for a measure of your own, one that ends
            in `jaxloss.reduce(..., reduction="sum_and_weight")`. Make it once, as for `train_step`.
        batch_size: The largest number of samples that the model is given at once.

    Returns:
        The mean, a scalar: the sum of all sums divided by the sum of all weights.

    Raises:
        TypeError: If `state` is no `TrainState`, `loss` is not callable, or `batch_size` is no integer.
        ValueError: If `loss` does not return a pair, inputs and targets differ in number or there are none,
            `batch_size` is no positive number, a step has taken `state`, or it is not known how the model is
            evaluated.

    Example:
        >>> import functools, jax, optax
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> import jaxloss
        >>> from jaxloss.training import evaluate
        >>> from jaxloss.models import Classifier
        >>> from jaxloss.training import create_train_state
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
    refuse_what_was_taken(state)
    if state.eval_fn is None:
        raise ValueError(
            "evaluate must know how a model with a model_state runs outside training: "
            "give create_train_state an eval_fn(params, model_state, inputs) -> outputs"
        )
    return _evaluate(state, inputs, targets, traceable(loss), integer("batch_size", batch_size))


@functools.partial(jax.jit, static_argnums=4)
def _evaluate(
    state: TrainState, inputs: Any, targets: Any, loss: Callable[[Any, Any], Any], batch_size: int
) -> jax.Array:
    count = sample_count(inputs, targets)
    if batch_size < 1 or not count:
        raise ValueError(f"evaluate needs samples and a batch_size >= 1; got {count} and {batch_size}")
    eval_fn: Any = state.eval_fn
    model_state = () if state.model_state is None else (state.model_state,)

    def pair(batch: tuple[Any, Any]) -> tuple[jax.Array, jax.Array]:
        outputs = eval_fn(state.params, *model_state, batch[0])
        value, weight = value_and_weight(loss(outputs, batch[1]))
        if weight is None:
            raise no_pair("evaluate")
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
    """Waits for the losses of the last steps, checks them, and returns them as numbers.

    Reading a loss waits for its step, and the device idles until the next one is sent. So keep the losses of
    `train_step` as they come, and read them now and then: a loss that is NaN or infinite is noticed then, and
    costs a step nothing. Meanwhile `jaxloss.training` saves no parameters that are not finite.

    Args:
        losses: The losses of the last steps, oldest first: an array of any shape, such as a scalar or what
            `train_epoch` returns, or a list of them.
        state: The state after the last of them.
        loss: What returned them, which is named in the error.

    Returns:
        The losses as an array with one axis.

    Raises:
        FloatingPointError: If a loss is NaN or infinite. It names the loss and the step; the first is 1.

    Example:
        >>> import optax
        >>> import jax.numpy as jnp
        >>> from jaxloss import mse_loss
        >>> from jaxloss.training import read_losses
        >>> from jaxloss.training import create_train_state, train_step
        >>> state = create_train_state((jnp.multiply, jnp.ones(3)), optax.sgd(0.3))
        >>> losses = []
        >>> for _ in range(3):
        ...     state, value = train_step(state, jnp.ones(3), jnp.zeros(3), loss=mse_loss)
        ...     losses.append(value)
        >>> read_losses(losses, state, loss=mse_loss).tolist()
        [1.0, 0.64, 0.41]
    """
    refuse_other_than_state(state)
    parts = [np.zeros(0, np.float32), *map(np.ravel, jax.tree.leaves(jax.device_get(losses)))]
    values = np.concatenate(parts)
    if (bad := np.flatnonzero(~np.isfinite(values))).size:
        named: Any = loss
        # `func` is what a functools.partial holds, and `fun` what JAX's own puts around one.
        while inner := getattr(named, "func", None) or getattr(named, "fun", None):
            named = inner
        name = getattr(named, "__name__", repr(named))
        step = int(state.step) - len(values) + int(bad[0]) + 1
        raise FloatingPointError(f"{name} is {values[bad[0]]} at step {step}")
    return values
