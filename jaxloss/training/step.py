"""One training step for any JAX model: `TrainState`, `create_train_state` and `train_step`.

The step is a pure function of pytrees and depends on no model library, loss or device: NNX, Linen, Equinox
and plain functions run through it unchanged, any callable that returns a scalar is a loss, and the sharding
of the arrays determines the devices.
"""

import dataclasses
import functools
import reprlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen, nnx, struct
from flax.training import train_state
from jax.core import Tracer
from jax.typing import DTypeLike

from jaxloss._core.arguments import arithmetic_dtype, integer, tree_from_host, widened
from jaxloss._core.reduction import mean
from jaxloss.training.objective import (
    sample_count,
    scalar_loss_error,
    traceable,
    value_and_weight,
)
from jaxloss.training.trees import differences, dtypes_and_shapes

__all__ = ["TrainState", "create_train_state", "train_step"]


class TrainState(train_state.TrainState):
    """State of a training run: parameters, optimizer state, and the functions that update them.

    Flax's `TrainState` with two more fields. `create_train_state` creates it and `train_step` updates it.

    Attributes:
        step: Number of optimizer steps taken, an int32 scalar.
        apply_fn: The model as a pure function, `apply_fn(params, inputs) -> outputs`, or with a `model_state`
            `apply_fn(params, model_state, inputs) -> (outputs, model_state)`.
        params: The trained parameters, any pytree of floating-point arrays.
        tx: The Optax optimizer.
        opt_state: The state of the optimizer.
        model_state: State that the model itself updates, such as batch statistics and dropout keys: any
            pytree of arrays, or None.
        eval_fn: The model as `evaluate` calls it, `eval_fn(params, inputs) -> outputs` or
            `eval_fn(params, model_state, inputs) -> outputs`; None if it is not known.

    Example:
        >>> import jax.numpy as jnp
        >>> import optax
        >>> from jaxloss.training import create_train_state
        >>> state = create_train_state((jnp.dot, jnp.ones(3)), optax.sgd(0.1))
        >>> state.apply_fn(state.params, jnp.ones(3))
        Array(3., dtype=float32)
    """

    params: Any
    model_state: Any = None
    eval_fn: Callable[..., Any] | None = struct.field(pytree_node=False, default=None)


@dataclasses.dataclass(frozen=True)
class _ApplyModule:
    """An NNX module as a pure function; modules of equal architecture compare equal and compile once."""

    graphdef: nnx.GraphDef[nnx.Module]
    evaluates: bool = False

    def __call__(self, params: Any, *model_state_and_inputs: Any) -> Any:
        *model_state, inputs = model_state_and_inputs
        try:
            module = nnx.merge(self.graphdef, params, *model_state)
        except ValueError as error:
            found = {"params": params} | ({"model_state": model_state[0]} if model_state else {})
            raise ValueError(
                f"params and model_state must match the model; got {dtypes_and_shapes(found)}"
            ) from error
        outputs = module(inputs)
        if self.evaluates or not model_state:
            return outputs
        return outputs, nnx.to_pure_dict(nnx.state(module, nnx.Not(nnx.Param)))


@dataclasses.dataclass(frozen=True)
class _ComputeIn:
    """A model that casts its parameters and floating-point inputs to a dtype, but not `model_state`."""

    apply_fn: Callable[..., Any]
    dtype: np.dtype

    def __call__(self, params: Any, *model_state_and_inputs: Any) -> Any:
        *model_state, inputs = model_state_and_inputs
        params, inputs = jax.tree.map(self._cast, (params, inputs))
        return self.apply_fn(params, *model_state, inputs)

    def _cast(self, array: Any) -> Any:
        floating = jnp.issubdtype(jnp.result_type(array), jnp.floating)
        return jnp.asarray(array, self.dtype) if floating else array


def create_train_state(
    model: nnx.Module | tuple[Callable[..., Any], Any] | tuple[Callable[..., Any], Any, Any],
    optimizer: optax.GradientTransformation,
    *,
    eval_fn: Callable[..., Any] | None = None,
    compute_dtype: DTypeLike | None = None,
) -> TrainState:
    """Creates the state for `train_step` from a model and an optimizer.

    The state holds copies, so training never changes the arrays of the model. After training,
    `nnx.update(model, state.params)` writes the trained parameters into an NNX module, and
    `nnx.update(model, state.params, state.model_state)` also writes batch statistics and dropout keys.

    Args:
        model: One of

            * a Flax NNX module;
            * a pair `(apply_fn, params)` with `apply_fn(params, inputs) -> outputs`: for Linen
              `(module.apply, variables)` if `params` are its only variables, for Equinox a function that
              combines arrays and static parts, and the arrays, or any other function and its arrays;
            * a triple `(apply_fn, params, model_state)` with
              `apply_fn(params, model_state, inputs) -> (outputs, model_state)`, for a model that updates a
              state of its own. For a Linen module with batch normalization and dropout::

                  def apply_fn(params, model_state, inputs):
                      key, dropout = jax.random.split(model_state["dropout"])
                      variables = {"params": params, "batch_stats": model_state["batch_stats"]}
                      outputs, updates = module.apply(
                          variables, inputs, rngs={"dropout": dropout}, mutable=["batch_stats"]
                      )
                      return outputs, {"dropout": key, **updates}

        optimizer: An Optax optimizer. Create it once: JAX treats the results of two calls of `optax.adam` as
            different optimizers and compiles `train_step` for each. Optimizers that need the loss, such as
            `optax.contrib.reduce_on_plateau`, receive the loss of the batch. Optimizers that evaluate the
            model, such as `optax.lbfgs` with its line search, are not supported.
        eval_fn: The model as `evaluate` calls it, `eval_fn(params, inputs) -> outputs`, or with a
            `model_state` `eval_fn(params, model_state, inputs) -> outputs`. Default: the NNX module after
            `eval()`, or the `apply_fn` of a pair.
        compute_dtype: Dtype of the computations in the model, such as `jnp.bfloat16`: parameters and
            floating-point inputs are cast to it before they enter the model. Parameters, gradients, optimizer
            state and `model_state` keep their dtypes, and the losses of jaxloss are still float32. A layer
            with float32 statistics returns float32 unless its own dtype is set, as in
            `nnx.BatchNorm(dtype=jnp.bfloat16)`. Default: the dtypes of the arrays.

    Returns:
        The initial state.

    Raises:
        TypeError: If `model` or `optimizer` is none of the above, a parameter is not a floating-point array,
            `eval_fn` is not callable, `compute_dtype` is not a floating-point dtype, or `params` are the
            variables of a Linen module with more than parameters, such as batch statistics.

    Example:
        >>> import optax
        >>> from flax import nnx
        >>> from jaxloss.models import LinearRegression
        >>> from jaxloss.training import create_train_state
        >>> model = LinearRegression(rngs=nnx.Rngs(0))
        >>> state = create_train_state(model, optax.sgd(learning_rate=0.01))
        >>> state.params["linear"]["kernel"].shape
        (10, 1)
    """
    model_state = None
    first: Any = model[0] if isinstance(model, tuple) and model else None
    if isinstance(first, linen.Module):
        raise TypeError("pass a Linen module as the pair (module.apply, variables), got the module itself")
    if isinstance(first, nnx.Module):
        raise TypeError("pass an NNX module alone, since it holds its parameters; got a tuple with it")
    if eval_fn is not None and not callable(eval_fn):
        raise TypeError(f"eval_fn must be callable, got {reprlib.repr(eval_fn)}")
    match model:
        case nnx.Module():
            graphdef, variables, others = nnx.split(model, nnx.Param, ...)
            apply_fn, params = _ApplyModule(graphdef), nnx.to_pure_dict(variables)
            model_state = nnx.to_pure_dict(others) or None
            evaluated = nnx.merge(graphdef, variables, others)
            evaluated.eval()
            eval_fn = eval_fn or _ApplyModule(nnx.graphdef(evaluated), evaluates=True)
        case (apply_fn, params) if callable(apply_fn):
            eval_fn = eval_fn or apply_fn
        case (apply_fn, params, model_state) if callable(apply_fn):
            pass
        case _:
            raise TypeError(
                "model must be a Flax NNX module, a pair (apply_fn, params) or a triple "
                f"(apply_fn, params, model_state) with a callable apply_fn; got {reprlib.repr(model)}"
            )
    params = _checked_params(params)
    if not hasattr(optimizer, "init"):
        raise TypeError(
            f"optimizer must be an Optax optimizer, such as optax.sgd(0.01); got {reprlib.repr(optimizer)}"
        )
    if compute_dtype is not None:
        dtype = _floating_dtype(compute_dtype)
        apply_fn, eval_fn = _ComputeIn(apply_fn, dtype), eval_fn and _ComputeIn(eval_fn, dtype)
    state = TrainState(
        step=jnp.zeros((), jnp.int32),
        apply_fn=apply_fn,
        params=params,
        tx=optimizer,
        opt_state=optimizer.init(params),
        model_state=model_state,
        eval_fn=eval_fn,
    )
    # A step donates these buffers: none may belong to the caller or occur twice, as when an optimizer's state
    # starts as the parameters. An explicit dtype is not weak, so all steps share one compilation.
    return jax.tree.map(lambda array: jnp.array(array, jnp.result_type(array)), state)


def _checked_params(params: Any) -> Any:
    """Returns parameters that are all floating-point arrays to train, or raises a TypeError."""
    params = tree_from_host("params", params)
    if isinstance(params, Mapping) and "params" in params and len(params) > 1:
        others = ", ".join(sorted(set(params) - {"params"}))
        raise TypeError(
            f"params must hold only what is trained, got the variables of a Linen module with {others}; pass "
            '(apply_fn, variables["params"], model_state), as help(create_train_state) shows'
        )
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        is_array = isinstance(leaf, jax.Array | np.ndarray | np.generic | float)
        if not is_array or not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
            is_complex = is_array and jnp.iscomplexobj(leaf)
            hint = "; hold real and imaginary parts apart" if is_complex else ""
            raise TypeError(
                f"params must hold only floating-point arrays, got {reprlib.repr(leaf)} for "
                f"params{jax.tree_util.keystr(path)}{hint}"
            )
    return params


def _floating_dtype(compute_dtype: DTypeLike) -> np.dtype:
    """Returns a floating-point dtype, or raises a TypeError."""
    try:
        dtype = jnp.dtype(compute_dtype)
    except TypeError:
        dtype = None
    if dtype is None or not jnp.issubdtype(dtype, jnp.floating):
        raise TypeError(f"compute_dtype must be a floating-point dtype, got {dtype or compute_dtype}")
    return dtype


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


def check_is_state(state: Any) -> None:
    """Raises a TypeError unless `state` is a `TrainState`."""
    if not isinstance(state, TrainState):
        raise TypeError(
            f"state must be a TrainState, as returned by create_train_state; got {reprlib.repr(state)}"
        )


def check_not_donated(state: Any) -> None:
    """Raises an error unless `state` is a `TrainState` that was not donated to a step."""
    check_is_state(state)
    arrays = (leaf for leaf in jax.tree.leaves(state) if isinstance(leaf, jax.Array))
    if any(array.is_deleted() for array in arrays if not isinstance(array, Tracer)):
        raise ValueError(
            "state was donated to an earlier train_step, which deleted its arrays; use the state that it "
            "returned, as in `state, value = train_step(state, ...)`"
        ) from None


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
