"""One training step for every kind of JAX model: `TrainState`, `create_train_state` and `train_step`.

The step is a pure function of plain pytrees. It knows no model library, no loss and no device: NNX, Linen,
Equinox and hand-written models run through it unchanged, any callable that returns a scalar is a loss, and
one device or a mesh is a matter of where the arrays lie: `jax.device_put(state, NamedSharding(mesh, P()))`.
"""

import dataclasses
import functools
import reprlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from flax.training import train_state
from jax.tree_util import Partial

__all__ = ["TrainState", "create_train_state", "train_step"]


class TrainState(train_state.TrainState):
    """Everything that changes while a model trains, and what is needed to change it.

    Flax's own `TrainState` and one more field. `create_train_state` makes it, `train_step` renews it.

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


@dataclasses.dataclass(frozen=True)
class _ApplyModule:
    """An NNX module as a pure function; equal for modules of one architecture, which share a compilation."""

    graphdef: nnx.GraphDef[nnx.Module]

    def __call__(self, params: Any, *model_state_and_inputs: Any) -> Any:
        *model_state, inputs = model_state_and_inputs
        module = nnx.merge(self.graphdef, params, *model_state)
        outputs = module(inputs)
        if not model_state:
            return outputs
        return outputs, nnx.to_pure_dict(nnx.state(module, nnx.Not(nnx.Param)))


def create_train_state(
    model: nnx.Module | tuple[Callable[..., Any], Any] | tuple[Callable[..., Any], Any, Any],
    optimizer: optax.GradientTransformation,
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
            JAX, and a state that holds it compiles `train_step` anew.

    Returns:
        The state before the first step.

    Raises:
        TypeError: If `model` is none of the above.

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
    match model:
        case nnx.Module():
            graphdef, variables, others = nnx.split(model, nnx.Param, ...)
            apply_fn, params = _ApplyModule(graphdef), nnx.to_pure_dict(variables)
            model_state = nnx.to_pure_dict(others) or None
        case (apply_fn, params) if callable(apply_fn):
            pass
        case (apply_fn, params, model_state) if callable(apply_fn):
            pass
        case _:
            raise TypeError(
                "model must be a Flax NNX module, a pair (apply_fn, params) or a triple "
                f"(apply_fn, params, model_state) with a callable apply_fn; got {reprlib.repr(model)}"
            )
    state = TrainState(
        step=jnp.zeros((), jnp.int32),
        apply_fn=apply_fn,
        params=params,
        tx=optimizer,
        opt_state=optimizer.init(params),
        model_state=model_state,
    )
    # Donation deletes buffers. After this copy none of them is the caller's, and none is in the state twice,
    # as with an optimizer whose state starts as the parameters themselves.
    return jax.tree.map(jnp.copy, state)


def train_step(
    state: TrainState, inputs: Any, targets: Any, *, loss: Callable[[Any, Any], Any]
) -> tuple[TrainState, jax.Array]:
    """Takes one optimizer step and returns the new state with the loss before it.

    A pure function, compiled once per model, optimizer, loss and shapes. It donates `state`: the old state's
    arrays become the new one's and are gone, so write `state, value = train_step(state, ...)`.

    Args:
        state: The state from `create_train_state` or from the step before.
        inputs: What the model takes: an array with the batch in front, or any pytree of arrays.
        targets: What the loss takes as its second argument, array or pytree.
        loss: A callable `(outputs, targets) -> scalar`. Make it once: a new function compiles anew. Python
            options are bound with `functools.partial(loss, reduction="sum")`, arrays with
            `jax.tree_util.Partial(loss, weight=weight)`; these may change from step to step.

    Returns:
        `(state, value)`: the state after the step, and the scalar loss of this batch at the parameters before
        the step. Nothing waits for the device until `value` is read.

    Raises:
        TypeError: If `loss` is not callable, or if `apply_fn` is given a `model_state` and does not return a
            pair `(outputs, model_state)`.
        ValueError: If `loss` does not return a scalar.

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
    if not callable(loss):
        raise TypeError(f"loss must be a callable (outputs, targets) -> scalar; got {reprlib.repr(loss)}")
    # As a pytree, any callable passes through jit: the function is static, the arrays bound to it are traced.
    return _train_step(state, inputs, targets, loss if isinstance(loss, Partial) else Partial(loss))


def _apply(state: TrainState, params: Any, inputs: Any) -> tuple[Any, Any]:
    """The model's outputs and its next `model_state`."""
    if state.model_state is None:
        return state.apply_fn(params, inputs), None
    match state.apply_fn(params, state.model_state, inputs):
        # Only a tuple will do: a batch of two outputs unpacks as well, and its second row would be the state.
        case tuple() as pair if len(pair) == 2:
            return pair
        case other:
            raise TypeError(
                "apply_fn of a state with a model_state must return a pair (outputs, model_state); "
                f"got a {type(other).__name__}"
            )


@functools.partial(jax.jit, donate_argnums=0)
def _train_step(
    state: TrainState, inputs: Any, targets: Any, loss: Callable[[Any, Any], Any]
) -> tuple[TrainState, jax.Array]:
    def objective(params: Any) -> tuple[jax.Array, Any]:
        outputs, model_state = _apply(state, params, inputs)
        value = loss(outputs, targets)
        shape = jax.tree.map(jnp.shape, value)
        if shape != ():
            raise ValueError(f"loss must return a scalar, as with reduction='mean'; got shape {shape}")
        return value, model_state

    (value, model_state), gradients = jax.value_and_grad(objective, has_aux=True)(state.params)
    # Optax computes `decay**count`, a float to the power of an int32, which strict promotion refuses.
    with jax.numpy_dtype_promotion("standard"):
        updates, opt_state = state.tx.update(gradients, state.opt_state, state.params)
        params = optax.apply_updates(state.params, updates)
    state = state.replace(step=state.step + 1, params=params, opt_state=opt_state, model_state=model_state)
    return state, value
