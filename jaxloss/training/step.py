"""One training step for any JAX model: `train_step`.

The step is a pure function of pytrees and depends on no model library, loss or device: NNX, Linen, Equinox
and plain functions run through it unchanged, any callable that returns a scalar is a loss, and the sharding
of the arrays determines the devices.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxloss._core.arguments import arithmetic_dtype, integer, tree_from_host, widened
from jaxloss._core.reduction import mean
from jaxloss.training.objective import (
    sample_count,
    scalar_loss_error,
    traceable,
    value_and_weight,
)
from jaxloss.training.state import TrainState, check_is_state, check_not_donated
from jaxloss.training.trees import differences, dtypes_and_shapes

__all__ = ["train_step"]


def train_step(
    state: TrainState, inputs: Any, targets: Any, *, loss: Callable[[Any, Any], Any], micro_batches: int = 1
) -> tuple[TrainState, jax.Array]:
    """Runs one optimizer step and returns the new state and the loss before the step.

    A pure function, compiled once per model, optimizer, loss and shapes. It donates `state`: the arrays of
    the old state are deleted, so write `state, value = train_step(state, ...)`. A call that raises one of
    the errors below donates nothing.

    Args:
        state: The state from `create_train_state` or from the previous step.
        inputs: The model's inputs: an array with the batch along its first axis, or any pytree of arrays.
        targets: The second argument of the loss, an array or any pytree of arrays.
        loss: A callable `(outputs, targets) -> scalar`, or one that returns the pair (sum, weight) of
            `reduction="sum_and_weight"`, whose mean sum / weight is minimized; the weight must not depend on
            the outputs. Create it once, as each new function compiles again; equal partials of one function
            do not. Bind Python options with `functools.partial(loss, reduction="sum")`, and arrays, which may
            change from step to step, with `jax.tree_util.Partial(loss, weight=weight)`.
        micro_batches: Number of parts that the batch is computed in, one after the other, to save memory.
            Part i has the samples i, i + micro_batches, and so on, so a batch that is sharded over devices
            does not move. The loss must then return a pair: sums and weights add up to the mean of the whole
            batch, also if masks make the parts unequal. `model_state` passes from part to part, and
            gradients are accumulated in at least float32.

    Returns:
        `(state, value)`: the state after the step, and the scalar loss of this batch at the parameters before
        the step. The call returns before the device has finished; reading `value` waits for it.

    Raises:
        TypeError: If `state` is not a `TrainState`, `loss` is not callable, inputs or targets hold NumPy
            masked arrays, or `apply_fn` is called with a `model_state` and does not return a pair
            `(outputs, model_state)` with a `model_state` of the same structure, shapes and dtypes.
        ValueError: If `loss` returns something else, `micro_batches` does not divide the batch, the parts of
            `state` belong to different models, or `state` was donated to an earlier step.

    Example:
        >>> import jax, optax
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from jaxloss import mse_loss
        >>> from jaxloss.models import LinearRegression
        >>> from jaxloss.training import create_train_state, train_step
        >>> inputs = jax.random.normal(jax.random.key(0), (32, 10))
        >>> targets = jnp.ones((32, 1))
        >>> state = create_train_state(LinearRegression(rngs=nnx.Rngs(0)), optax.sgd(learning_rate=0.01))
        >>> state, first = train_step(state, inputs, targets, loss=mse_loss)
        >>> state, second = train_step(state, inputs, targets, loss=mse_loss)
        >>> bool(second < first)
        True
    """
    check_is_state(state)
    inputs, targets = tree_from_host("inputs", inputs), tree_from_host("targets", targets)
    try:
        return _train_step(state, inputs, targets, traceable(loss), integer("micro_batches", micro_batches))
    except (AttributeError, RuntimeError, TypeError, ValueError) as error:
        # An error while the step runs leaves the state deleted, too: JAX's own message tells the two apart.
        if "deleted" in str(error):
            check_not_donated(state)
        elif not isinstance(error, RuntimeError):
            _check_opt_state(state)
        raise


def _check_opt_state(state: TrainState) -> None:
    """Raises a ValueError if parameters and optimizer state belong to different models."""
    expected = jax.eval_shape(state.tx.init, state.params)
    if found := differences(dtypes_and_shapes(state.opt_state), dtypes_and_shapes(expected)):
        raise ValueError(f"opt_state must match params; opt_state{found}")


@functools.partial(jax.jit, donate_argnums=0, static_argnums=4)
def _train_step(
    state: TrainState, inputs: Any, targets: Any, loss: Callable[[Any, Any], Any], micro_batches: int
) -> tuple[TrainState, jax.Array]:
    if micro_batches == 1:
        value, weight, model_state, gradients = _gradients(state, inputs, targets, loss)
    else:
        value, weight, model_state, gradients = _accumulated(state, inputs, targets, loss, micro_batches)
    if weight is not None:
        value = mean(value, weight)
        # A mean over total weight 0 is NaN with gradient 0, as in the losses.
        scale = jnp.where(weight == 0, 1, weight)
        gradients = jax.tree.map(functools.partial(_quotient, scale), gradients, state.params)
    optimizer = optax.with_extra_args_support(state.tx)
    # Strict dtype promotion refuses Optax's `decay**count`, a float to the power of an int32.
    with jax.numpy_dtype_promotion("standard"):
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params, value=value)
        params = optax.apply_updates(state.params, updates)
    state = state.replace(step=state.step + 1, params=params, opt_state=opt_state, model_state=model_state)
    return state, value


def _quotient(scale: jax.Array, gradient: jax.Array, parameter: jax.Array) -> jax.Array:
    """Returns gradient / scale in the dtype of the parameter."""
    gradient, scale = widened(gradient, scale)
    return (gradient / scale).astype(parameter.dtype)


def _gradients(
    state: TrainState, inputs: Any, targets: Any, loss: Callable[[Any, Any], Any]
) -> tuple[jax.Array, jax.Array | None, Any, Any]:
    """Returns the loss or its sum, the weight of the sum or None, the new `model_state` and the gradients."""

    def objective(params: Any) -> tuple[jax.Array, tuple[jax.Array | None, Any]]:
        outputs, model_state = _apply(state, params, inputs)
        value, weight = value_and_weight(loss(outputs, targets), of_gradient=True)
        return value, (weight, model_state)

    (value, (weight, model_state)), gradients = jax.value_and_grad(objective, has_aux=True)(state.params)
    return value, weight, model_state, gradients


def _accumulated(
    state: TrainState, inputs: Any, targets: Any, loss: Callable[[Any, Any], Any], micro_batches: int
) -> tuple[jax.Array, jax.Array, Any, Any]:
    """Returns the results of `_gradients`, summed over the parts of the batch."""
    count = sample_count(inputs, targets)
    if micro_batches < 1 or count % micro_batches:
        raise ValueError(f"micro_batches must divide the batch of {count} samples, got {micro_batches}")

    def split(array: Any) -> jax.Array:
        return jnp.moveaxis(jnp.reshape(array, (-1, micro_batches, *jnp.shape(array)[1:])), 1, 0)

    def add(carry: Any, part: Any) -> tuple[Any, Any]:
        model_state, sums = carry
        value, weight, model_state, gradients = _gradients(
            state.replace(model_state=model_state), part[0], part[1], loss
        )
        if weight is None:
            raise scalar_loss_error("micro_batches")
        sums = jax.tree.map(lambda total, gradient: total + gradient.astype(total.dtype), sums, gradients)
        return (model_state, sums), (value, weight)

    zeros = jax.tree.map(lambda array: jnp.zeros_like(array, arithmetic_dtype(array)), state.params)
    start = (state.model_state, zeros)
    (model_state, gradients), pairs = jax.lax.scan(add, start, jax.tree.map(split, (inputs, targets)))
    total, weight = jax.tree.map(jnp.sum, pairs)
    return total, weight, model_state, gradients


def _apply(state: TrainState, params: Any, inputs: Any) -> tuple[Any, Any]:
    """Returns the model's outputs and its new `model_state`."""
    if state.model_state is None:
        return state.apply_fn(params, inputs), None
    match state.apply_fn(params, state.model_state, inputs):
        # Must be a tuple: an array with a batch of two outputs would unpack, too.
        case tuple() as pair if len(pair) == 2:
            found = differences(dtypes_and_shapes(pair[1]), dtypes_and_shapes(state.model_state))
            structure, expected = map(jax.tree.structure, (pair[1], state.model_state))
            if found or structure != expected:
                raise TypeError(
                    "apply_fn must return a model_state of the structure, shapes and dtypes of its argument; "
                    f"model_state{found or f' is {structure}, expected {expected}'}"
                )
            return pair
        case other:
            raise TypeError(
                "apply_fn must return a pair (outputs, model_state) for a state with a model_state; "
                f"got a {type(other).__name__}"
            )
