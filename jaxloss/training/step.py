"""One training step for every kind of JAX model: `TrainState`, `create_train_state` and `train_step`.

The step is a pure function of plain pytrees. It knows no model library, no loss and no device: NNX, Linen,
Equinox and hand-written models run through it unchanged, any callable that returns a scalar is a loss, and
one device or a mesh is a matter of where the arrays lie, which `jaxloss.training` arranges.
"""

import dataclasses
import functools
import reprlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen, nnx, struct
from flax.training import train_state
from jax.core import Tracer
from jax.typing import DTypeLike

from jaxloss._core.arguments import arithmetic_dtype, integer, widened
from jaxloss._core.reduction import mean
from jaxloss.training.objective import no_pair, sample_count, traceable, value_and_weight
from jaxloss.training.trees import differences, kinds

__all__ = ["TrainState", "create_train_state", "train_step"]


class TrainState(train_state.TrainState):
    """Everything that changes while a model trains, and what is needed to change it.

    Flax's own `TrainState` and two more fields. `create_train_state` makes it, `train_step` renews it.

    Attributes:
        step: Number of optimizer steps taken, an int32 scalar.
        apply_fn: The model as a pure function. Without `model_state` it is called as
            `apply_fn(params, inputs) -> outputs`, with it as
            `apply_fn(params, model_state, inputs) -> (outputs, model_state)`.
        params: The parameters that the optimizer moves, any pytree of floating-point arrays.
        tx: The Optax optimizer.
        opt_state: The optimizer's state.
        model_state: What the model itself changes while it runs (batch statistics, dropout keys), any pytree
            of arrays; None for a model that changes nothing.
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
    """An NNX module as a pure function; equal for modules of one architecture, which share a compilation."""

    graphdef: nnx.GraphDef[nnx.Module]
    evaluates: bool = False

    def __call__(self, params: Any, *model_state_and_inputs: Any) -> Any:
        *model_state, inputs = model_state_and_inputs
        try:
            module = nnx.merge(self.graphdef, params, *model_state)
        except ValueError as error:
            came = {"params": params} | ({"model_state": model_state[0]} if model_state else {})
            raise ValueError(f"the model does not have such parameters or state: {kinds(came)}") from error
        outputs = module(inputs)
        if self.evaluates or not model_state:
            return outputs
        return outputs, nnx.to_pure_dict(nnx.state(module, nnx.Not(nnx.Param)))


@dataclasses.dataclass(frozen=True)
class _ComputeIn:
    """A model that works in another dtype than its parameters have; `model_state` stays as it is."""

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
    """Puts a model and an optimizer into the state that `train_step` works on.

    The state holds copies: training never touches the arrays of the model that was given. After training,
    `nnx.update(model, state.params)` writes the trained parameters into an NNX module; where it also holds
    batch statistics or dropout keys, `nnx.update(model, state.params, state.model_state)`.

    Args:
        model: One of

            * a Flax NNX module;
            * a pair `(apply_fn, params)`, called as `apply_fn(params, inputs) -> outputs`: a Linen module's
              `(module.apply, variables)`, the arrays of an Equinox module and a function that combines them
              with the rest, or any function and its arrays;
            * a triple `(apply_fn, params, model_state)`, called as
              `apply_fn(params, model_state, inputs) -> (outputs, model_state)`, for a model that changes
              something itself. A Linen module with batch normalization and dropout keeps both there::

                  def apply_fn(params, model_state, inputs):
                      key, dropout = jax.random.split(model_state["dropout"])
                      variables = {"params": params, "batch_stats": model_state["batch_stats"]}
                      outputs, updates = module.apply(
                          variables, inputs, rngs={"dropout": dropout}, mutable=["batch_stats"]
                      )
                      return outputs, {"dropout": key, **updates}

        optimizer: An Optax optimizer. Make it once: each call of, say, `optax.adam` is another optimizer to
            JAX, and a state that holds it compiles `train_step` anew. One that asks for the loss, as
            `optax.contrib.reduce_on_plateau` does, is given that of the batch; one that evaluates the model
            itself, as the line search of `optax.lbfgs` does, is not supported.
        eval_fn: The model as `evaluate` calls it: `eval_fn(params, inputs) -> outputs`, and of a triple
            `eval_fn(params, model_state, inputs) -> outputs`. Default: an NNX module after `eval()`, or the
            `apply_fn` of a pair.
        compute_dtype: What the model computes in, such as `jnp.bfloat16`: parameters and floating inputs are
            cast to it on their way into the model. Parameters, their gradients, the optimizer's state and
            `model_state` keep their dtype, and the losses here are float32 all the same. A layer with float32
            statistics returns float32 unless it is told otherwise, as by `nnx.BatchNorm(dtype=jnp.bfloat16)`.
            Default: whatever the arrays have.

    Returns:
        The state before the first step.

    Raises:
        TypeError: If `model` or `optimizer` is none of the above, parameters are not floating-point arrays,
            `eval_fn` is not callable, or `compute_dtype` is not a floating-point dtype.

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
        raise TypeError("a Linen module is given as the pair (module.apply, variables), got the module")
    if isinstance(first, nnx.Module):
        raise TypeError("an NNX module is given alone, as it holds its parameters; got a tuple with it")
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
    _refuse_what_does_not_train(params)
    if not hasattr(optimizer, "init"):
        raise TypeError(f"optimizer must be Optax's, such as optax.sgd(0.01); got {reprlib.repr(optimizer)}")
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
    # Donation deletes buffers. After this copy none of them is the caller's, and none is in the state twice,
    # as with an optimizer whose state starts as the parameters themselves. A dtype that is said is not weak,
    # as the one that a step returns: it compiles once.
    return jax.tree.map(lambda array: jnp.array(array, jnp.result_type(array)), state)


def _refuse_what_does_not_train(params: Any) -> None:
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        is_array = isinstance(leaf, jax.Array | np.ndarray | np.generic | float)
        if not is_array or not jnp.issubdtype(jnp.result_type(leaf), jnp.inexact):
            raise TypeError(
                f"params must hold floating-point arrays alone, got {reprlib.repr(leaf)} for "
                f"params{jax.tree_util.keystr(path)}"
            )


def _floating_dtype(compute_dtype: DTypeLike) -> np.dtype:
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
    """Takes one optimizer step and returns the new state with the loss before it.

    A pure function, compiled once per model, optimizer, loss and shapes. It donates `state`: the old state's
    arrays become the new one's and are gone, so write `state, value = train_step(state, ...)`. A call that is
    refused takes nothing.

    Args:
        state: The state from `create_train_state` or from the step before.
        inputs: What the model takes: an array with the batch in front, or any pytree of arrays.
        targets: What the loss takes as its second argument, array or pytree.
        loss: A callable `(outputs, targets) -> scalar`, or one that returns the pair (sum, weight) of
            `reduction="sum_and_weight"`, which stands for its mean, sum / weight, with a weight that does not
            depend on the outputs. Make it once: a new function compiles anew. Python options are bound with
            `functools.partial(loss, reduction="sum")`, arrays with
            `jax.tree_util.Partial(loss, weight=weight)`; these may change from step to step.
        micro_batches: The number of parts that the batch is computed in, one after the other, to hold the
            intermediate values of one part only; part i has the samples i, i + micro_batches, and so on, so
            that a batch that is split over devices stays where it is. The loss then returns a pair: sums and
            weights add up to the mean of the whole batch, however unevenly masks leave the parts filled.
            `model_state` passes from part to part, and gradients are added up in at least float32.

    Returns:
        `(state, value)`: the state after the step, and the scalar loss of this batch at the parameters before
        the step. Nothing waits for the device until `value` is read.

    Raises:
        TypeError: If `state` is no `TrainState`, `loss` is not callable, or `apply_fn` is given a
            `model_state` and does not return a pair `(outputs, model_state)` with a `model_state` of the same
            structure, shapes and dtypes.
        ValueError: If `loss` returns something else, the batch does not divide by `micro_batches`, the parts
            of `state` are of different models, or a step before has taken them.

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
    refuse_other_than_state(state)
    try:
        return _train_step(state, inputs, targets, traceable(loss), integer("micro_batches", micro_batches))
    except (AttributeError, RuntimeError, TypeError, ValueError):
        refuse_what_was_taken(state)
        _refuse_foreign_parts(state)
        raise


def refuse_other_than_state(state: Any) -> None:
    """Says so where something else is given, such as a model, or the pair that a step returns."""
    if not isinstance(state, TrainState):
        raise TypeError(
            f"state must be a TrainState, as create_train_state returns it; got {reprlib.repr(state)}"
        )


def refuse_what_was_taken(state: Any) -> None:
    """Says so where something else than a state is given, or one whose arrays a step has taken."""
    refuse_other_than_state(state)
    arrays = (leaf for leaf in jax.tree.leaves(state) if isinstance(leaf, jax.Array))
    if any(array.is_deleted() for array in arrays if not isinstance(array, Tracer)):
        raise ValueError(
            "state was given to a step before, which took its arrays: use the one that it returned, as in "
            "`state, value = train_step(state, ...)`"
        ) from None


def _refuse_foreign_parts(state: TrainState) -> None:
    """Says so where a call failed because parameters and optimizer state are of different models."""
    expected = jax.eval_shape(state.tx.init, state.params)
    if found := differences(kinds(state.opt_state), kinds(expected)):
        raise ValueError(f"opt_state must belong to params; opt_state{found}")


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
        # The mean over no weight is NaN with a gradient of 0, as in the losses.
        scale = jnp.where(weight == 0, 1, weight)
        gradients = jax.tree.map(functools.partial(_quotient, scale), gradients, state.params)
    optimizer = optax.with_extra_args_support(state.tx)
    # Optax computes `decay**count`, a float to the power of an int32, which strict promotion refuses.
    with jax.numpy_dtype_promotion("standard"):
        updates, opt_state = optimizer.update(gradients, state.opt_state, state.params, value=value)
        params = optax.apply_updates(state.params, updates)
    state = state.replace(step=state.step + 1, params=params, opt_state=opt_state, model_state=model_state)
    return state, value


def _quotient(scale: jax.Array, gradient: jax.Array, parameter: jax.Array) -> jax.Array:
    """Returns the gradient divided by the scale, in the dtype of the parameter."""
    gradient, scale = widened(gradient, scale)
    return (gradient / scale).astype(parameter.dtype)


def _gradients(
    state: TrainState, inputs: Any, targets: Any, loss: Callable[[Any, Any], Any]
) -> tuple[jax.Array, jax.Array | None, Any, Any]:
    """Returns the loss or its sum, the weight of a sum, the next `model_state`, and the gradients."""

    def objective(params: Any) -> tuple[jax.Array, tuple[jax.Array | None, Any]]:
        outputs, model_state = _apply(state, params, inputs)
        value, weight = value_and_weight(loss(outputs, targets), of_gradient=True)
        return value, (weight, model_state)

    (value, (weight, model_state)), gradients = jax.value_and_grad(objective, has_aux=True)(state.params)
    return value, weight, model_state, gradients


def _accumulated(
    state: TrainState, inputs: Any, targets: Any, loss: Callable[[Any, Any], Any], micro_batches: int
) -> tuple[jax.Array, jax.Array, Any, Any]:
    """The sums of what `_gradients` returns for each part of the batch."""
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
            raise no_pair("micro_batches")
        sums = jax.tree.map(lambda total, gradient: total + gradient.astype(total.dtype), sums, gradients)
        return (model_state, sums), (value, weight)

    zeros = jax.tree.map(lambda array: jnp.zeros_like(array, arithmetic_dtype(array)), state.params)
    start = (state.model_state, zeros)
    (model_state, gradients), pairs = jax.lax.scan(add, start, jax.tree.map(split, (inputs, targets)))
    total, weight = jax.tree.map(jnp.sum, pairs)
    return total, weight, model_state, gradients


def _apply(state: TrainState, params: Any, inputs: Any) -> tuple[Any, Any]:
    """The model's outputs and its next `model_state`."""
    if state.model_state is None:
        return state.apply_fn(params, inputs), None
    match state.apply_fn(params, state.model_state, inputs):
        # Only a tuple will do: a batch of two outputs unpacks as well, and its second row would be the state.
        case tuple() as pair if len(pair) == 2:
            found = differences(kinds(pair[1]), kinds(state.model_state))
            came, expected = map(jax.tree.structure, (pair[1], state.model_state))
            if found or came != expected:
                raise TypeError(
                    "a model must return a model_state of the structure, shapes and dtypes that it is given; "
                    f"model_state{found or f' is {came}, expected {expected}'}"
                )
            return pair
        case other:
            raise TypeError(
                "apply_fn of a state with a model_state must return a pair (outputs, model_state); "
                f"got a {type(other).__name__}"
            )
