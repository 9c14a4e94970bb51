"""One training step for any JAX model: `train_step`.

The step is a pure function of pytrees and depends on no model library, loss or device: NNX, Linen, Equinox
and plain functions run through it unchanged, any callable that returns a scalar is a loss, and the sharding
of the arrays determines the devices.
"""

import functools
from collections.abc import Mapping
from typing import Any, overload

import jax
import jax.numpy as jnp
import optax
from jax.tree_util import Partial

from jaxloss._core.arguments import arithmetic_dtype, integer, widened
from jaxloss._core.reduction import mean
from jaxloss.training.batches import batch_from_host, sample_count
from jaxloss.training.objective import (
    Measure,
    Pair,
    check_are_pairs,
    count_compilation,
    gradient_norm,
    means,
    measures,
    traceable,
    traceable_metrics,
    value_and_weight,
)
from jaxloss.training.state import TrainState, check_is_state, check_not_donated, is_deleted
from jaxloss.training.trees import (
    differences,
    dtypes_and_shapes,
    has_replaced,
    optimized,
    with_optimized,
)

__all__ = ["train_step"]


@overload
def train_step(
    state: TrainState,
    inputs: Any,
    targets: Any,
    *,
    loss: Measure,
    micro_batches: int = 1,
    metrics: None = None,
) -> tuple[TrainState, jax.Array]: ...
@overload
def train_step(
    state: TrainState,
    inputs: Any,
    targets: Any,
    *,
    loss: Measure,
    micro_batches: int = 1,
    metrics: Mapping[str, Measure],
) -> tuple[TrainState, jax.Array, dict[str, jax.Array]]: ...
def train_step(
    state: TrainState,
    inputs: Any,
    targets: Any,
    *,
    loss: Measure,
    micro_batches: int = 1,
    metrics: Mapping[str, Measure] | None = None,
) -> Any:
    """Runs one optimizer step and returns the new state and the loss before the step.

    A pure function, compiled once per model, optimizer, loss and shapes. It donates `state`: the arrays of
    the old state are deleted, so write `state, value = train_step(state, ...)`. A call that raises one of
    the errors below donates nothing. If the loss is NaN or infinite, for example because all labels of the
    batch are ignored, only the step number of the state changes.

    Args:
        state: The state from `create_train_state` or from the previous step.
        inputs: The model's inputs: an array with the batch along its first axis, or any pytree of arrays. JAX
            may read a NumPy array while the step runs: pass a copy, or do not modify it before you have read
            `value`.
        targets: The second argument of the loss, an array or any pytree of arrays.
        loss: A callable `(outputs, targets) -> scalar`, or one that returns the pair (sum, weight) of
            `reduction="sum_and_weight"`, whose mean sum / weight is minimized; the weight must not depend on
            the outputs. Create it once: each new function is compiled again, but equal partials of one
            function are not. Bind Python options with `functools.partial(loss, reduction="sum")`, and arrays,
            which may change from step to step, with `jax.tree_util.Partial(loss, weight=weight)`.
        micro_batches: Number of parts into which the batch is split to save memory; they run one after the
            other. Part i has the samples i, i + micro_batches, and so on, so a batch that is sharded over
            devices does not move. The loss must then return a pair: the sums and weights give the mean of the
            whole batch, even if masks make the parts unequal. `model_state` passes from part to part, and
            gradients are accumulated in at least float32.
        metrics: Further measures of the same outputs, such as `{"accuracy": accuracy}`: callables like the
            loss, or `gradient_norm`. With micro-batches, they must return pairs, too.

    Returns:
        `(state, value)`: the state after the step, and the scalar loss of this batch at the parameters before
        the step. With metrics `(state, value, measured)`, with a dict of scalars. The call returns before the
        device has finished; reading `value` waits for it.

    Raises:
        TypeError: If `state` is not a `TrainState`, `loss` or a metric is not callable, inputs or targets
            contain anything other than arrays of numbers, or `apply_fn` is called with a `model_state` and
            does not return a pair `(outputs, model_state)` with a `model_state` of the same structure, shapes
            and dtypes.
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
    if is_deleted(state.step):
        check_not_donated(state)  # before XLA logs an error of its own
    inputs, targets = batch_from_host("inputs", inputs), batch_from_host("targets", targets)
    parts = integer("micro_batches", micro_batches)
    measured = traceable_metrics(metrics)
    try:
        result = _train_step(state, inputs, targets, traceable(loss), measured, parts)
    except (AttributeError, RuntimeError, TypeError, ValueError) as error:
        # An error while the step runs also leaves the state deleted; JAX's message distinguishes the two.
        if "deleted" in str(error):
            check_not_donated(state)
        elif not isinstance(error, RuntimeError):
            _check_opt_state(state)
        raise
    return result if metrics is not None else result[:2]


def _check_opt_state(state: TrainState) -> None:
    """Raises a ValueError if parameters and optimizer state belong to different models."""
    expected = jax.eval_shape(state.tx.init, optimized(state.params))
    if found := differences(dtypes_and_shapes(state.opt_state), dtypes_and_shapes(expected)):
        raise ValueError(f"opt_state must match params; opt_state{found}")


@functools.partial(jax.jit, donate_argnums=0, static_argnums=5)
def _train_step(
    state: TrainState,
    inputs: Any,
    targets: Any,
    loss: Partial,
    metrics: dict[str, Partial],
    micro_batches: int,
) -> tuple[TrainState, jax.Array, dict[str, jax.Array]]:
    count_compilation(loss, metrics, state, inputs, targets, micro_batches)
    norms = {name for name, metric in metrics.items() if metric.func is gradient_norm}
    of_outputs = {name: metric for name, metric in metrics.items() if name not in norms}
    if micro_batches == 1:
        result = _gradients(state, inputs, targets, loss, of_outputs)
    else:
        result = _accumulated(state, inputs, targets, loss, of_outputs, micro_batches)
    (value, weight), measured, model_state, gradients = result
    if weight is not None:
        value = mean(value, weight)
        divided = functools.partial(_quotient, weight)
        scaled = jax.tree.map(divided, optimized(gradients), optimized(state.params))
        gradients = with_optimized(gradients, scaled)
    params, opt_state = _updated(state, gradients, value)
    new = state.replace(params=params, opt_state=opt_state, model_state=model_state)
    is_finite = jnp.isfinite(value)
    new = jax.tree.map(lambda new, old: jax.lax.select(is_finite, new, old), new, state)
    measured = means(measured) | {name: _norm(gradients) for name in norms}
    return new.replace(step=state.step + 1), value, measured


def _updated(state: TrainState, gradients: Any, value: jax.Array) -> tuple[Any, Any]:
    """Returns the parameters and the optimizer's state after a step, as Flax's `apply_gradients` does."""
    optimizer = optax.with_extra_args_support(state.tx)
    params = optimized(state.params)
    # Strict dtype promotion refuses Optax's `decay**count`, a float to the power of an int32.
    with jax.numpy_dtype_promotion("standard"):
        updates, opt_state = optimizer.update(optimized(gradients), state.opt_state, params, value=value)
        return with_optimized(gradients, optax.apply_updates(params, updates)), opt_state


def _quotient(weight: jax.Array, gradient: jax.Array, parameter: jax.Array) -> jax.Array:
    """Returns gradient / weight in the dtype of the parameter."""
    gradient, weight = widened(gradient, weight)
    return (gradient / weight).astype(parameter.dtype)


def _norm(gradients: Any) -> jax.Array:
    """Returns the global norm of the gradients."""
    return optax.tree.norm(widened(*jax.tree.leaves(optimized(gradients))))


def _gradients(
    state: TrainState, inputs: Any, targets: Any, loss: Partial, metrics: Mapping[str, Partial]
) -> tuple[Pair, dict[str, Pair], Any, Any]:
    """Returns the loss, the metrics, the new `model_state` and the gradients."""

    def objective(params: Any) -> tuple[jax.Array, tuple[jax.Array | None, dict[str, Pair], Any]]:
        outputs, model_state = _apply(state, params, inputs)
        value, weight = value_and_weight(loss(outputs, targets), of_gradient=True)
        return value, (weight, measures(metrics, outputs, targets), model_state)

    (value, (weight, measured, model_state)), gradients = jax.value_and_grad(objective, has_aux=True)(
        state.params
    )
    return (value, weight), measured, model_state, gradients


def _accumulated(
    state: TrainState,
    inputs: Any,
    targets: Any,
    loss: Partial,
    metrics: Mapping[str, Partial],
    micro_batches: int,
) -> tuple[Pair, dict[str, Pair], Any, Any]:
    """Returns the results of `_gradients`, summed over the parts of the batch."""
    count = sample_count(inputs, targets)
    if micro_batches < 1 or count % micro_batches:
        raise ValueError(f"micro_batches must divide the batch of {count} samples, got {micro_batches}")

    def split(array: Any) -> jax.Array:
        return jnp.moveaxis(jnp.reshape(array, (-1, micro_batches, *jnp.shape(array)[1:])), 1, 0)

    def add(carry: Any, part: Any) -> tuple[Any, Any]:
        state, sums = carry
        pair, measured, model_state, gradients = _gradients(state, part[0], part[1], loss, metrics)
        check_are_pairs("micro_batches", pair[1], measured)
        sums = jax.tree.map(
            lambda total, gradient: total + gradient.astype(total.dtype), sums, optimized(gradients)
        )
        if has_replaced(gradients):
            state = state.replace(params=with_optimized(gradients, optimized(state.params)))
        return (state.replace(model_state=model_state), sums), (pair, measured)

    zeros = jax.tree.map(
        lambda array: jnp.zeros_like(array, arithmetic_dtype(array)), optimized(state.params)
    )
    (state, sums), parts = jax.lax.scan(add, (state, zeros), jax.tree.map(split, (inputs, targets)))
    pair, measured = jax.tree.map(jnp.sum, parts)
    return pair, measured, state.model_state, with_optimized(state.params, sums)


def _apply(state: TrainState, params: Any, inputs: Any) -> tuple[Any, Any]:
    """Returns the model's outputs and its new `model_state`."""
    if state.model_state is None:
        return state.apply_fn(params, inputs), None
    match state.apply_fn(params, state.model_state, inputs):
        # Only a tuple: an array with a batch of two outputs would also unpack.
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
