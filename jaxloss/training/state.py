"""`TrainState`, and how it is created from a model and an optimizer."""

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

from jaxloss._core.arguments import tree_from_host
from jaxloss.training.modules import ApplyModule, ComputeIn

__all__ = ["TrainState", "create_train_state"]


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
            apply_fn, params = ApplyModule(graphdef), nnx.to_pure_dict(variables)
            model_state = nnx.to_pure_dict(others) or None
            evaluated = nnx.merge(graphdef, variables, others)
            evaluated.eval()
            eval_fn = eval_fn or ApplyModule(nnx.graphdef(evaluated), evaluates=True)
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
        apply_fn, eval_fn = ComputeIn(apply_fn, dtype), eval_fn and ComputeIn(eval_fn, dtype)
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
