"""`TrainState`, and its creation from a model and an optimizer."""

import reprlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen, nnx, struct
from flax.linen.fp8_ops import OVERWRITE_WITH_GRADIENT
from flax.training import train_state
from jax.core import Tracer
from jax.typing import DTypeLike

from jaxloss._core.arguments import tree_from_host
from jaxloss.training.modules import ApplyLinen, ApplyNNX, ComputeIn, is_linen_apply
from jaxloss.training.trees import has_replaced, optimized

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
    wrt: nnx.filterlib.Filter = nnx.Param,
    eval_fn: Callable[..., Any] | None = None,
    compute_dtype: DTypeLike | None = None,
) -> TrainState:
    """Creates the state for `train_step` from a model and an optimizer.

    The state holds copies, so training never changes the arrays of the model. After training,
    `nnx.update(model, state.params)` writes the trained parameters into an NNX module, and
    `nnx.update(model, state.params, state.model_state)` also writes batch statistics and dropout keys. The
    module then shares the arrays of the state: write a copy if training continues.

    Args:
        model: One of

            * a Flax NNX module;
            * a pair `(apply_fn, params)` with `apply_fn(params, inputs) -> outputs`: for Linen
              `(module.apply, variables)` if `params` are its only variables, for Equinox a function that
              combines arrays and static parts, and the arrays, or any other function and its arrays. The
              variables may also have the collection `_overwrite_with_gradient` of FP8 layers;
            * a triple `(apply_fn, params, model_state)` with
              `apply_fn(params, model_state, inputs) -> (outputs, model_state)`, for a model that updates its
              own state.

            If the call of an NNX or Linen module takes several arguments, `inputs` may be a tuple of them, or
            a dict with their names. For a Linen module with batch normalization and dropout, the `apply_fn`
            of a triple is

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
            model, such as `optax.lbfgs` with its line search, are not supported. To train only a part of the
            `params` of a pair, use `optax.partition` with `optax.set_to_zero()` for the rest.
        wrt: The variables of an NNX module to train, a filter as in `nnx.grad`, such as `nnx.LoRAParam`. The
            others have neither gradients nor optimizer state, and are part of `model_state`.
        eval_fn: The model as `evaluate` calls it, `eval_fn(params, inputs) -> outputs`, or with a
            `model_state` `eval_fn(params, model_state, inputs) -> outputs`. Default: the NNX module after
            `eval()`, or the `apply_fn` of a pair.
        compute_dtype: Dtype of the computations in the model, such as `jnp.bfloat16`: trained parameters and
            floating-point inputs are cast to it before they enter the model. Parameters, gradients, optimizer
            state and `model_state` keep their dtypes, and the losses of jaxloss are still float32. A layer
            with float32 statistics returns float32 unless its own dtype is set, as in
            `nnx.BatchNorm(dtype=jnp.bfloat16)`. Default: the dtypes of the arrays.

    Returns:
        The initial state.

    Raises:
        TypeError: If `model` or `optimizer` is none of the above, a parameter is not a floating-point array,
            `eval_fn` is not callable, `compute_dtype` is not a floating-point dtype, or `params` are Linen
            variables with further collections, such as batch statistics.
        ValueError: If the optimizer evaluates the model, or `wrt` selects no variable.

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
    _check_optimizer(optimizer)
    if eval_fn is not None and not callable(eval_fn):
        raise TypeError(f"eval_fn must be callable, got {reprlib.repr(eval_fn)}")
    apply_fn, params, model_state, default_eval_fn = _functional(model, wrt)
    eval_fn = eval_fn or default_eval_fn
    params = _checked_params(params)
    opt_state = optimizer.init(optimized(params))
    _check_line_search(opt_state)
    if compute_dtype is not None:
        dtype = _floating_dtype(compute_dtype)
        apply_fn, eval_fn = ComputeIn(apply_fn, dtype), eval_fn and ComputeIn(eval_fn, dtype)
    state = TrainState(
        step=jnp.zeros((), jnp.int32),
        apply_fn=apply_fn,
        params=params,
        tx=optimizer,
        opt_state=opt_state,
        model_state=model_state,
        eval_fn=eval_fn,
    )
    # A step donates these buffers, so none may belong to the caller or occur twice, as when an optimizer's
    # state starts as the parameters. An explicit dtype is not weak, so all steps share one compilation.
    return jax.tree.map(lambda array: jnp.array(array, jnp.result_type(array)), state)


def _functional(
    model: Any, wrt: nnx.filterlib.Filter
) -> tuple[Callable[..., Any], Any, Any, Callable[..., Any] | None]:
    """Returns a model as `apply_fn`, `params`, `model_state` and `eval_fn`."""
    first: Any = model[0] if isinstance(model, tuple) and model else None
    if isinstance(first, linen.Module):
        raise TypeError("pass a Linen module as the pair (module.apply, variables), got the module itself")
    if isinstance(first, nnx.Module):
        raise TypeError(
            "pass an NNX module alone, since it holds its parameters; got a tuple that contains it"
        )
    if not isinstance(model, nnx.Module) and wrt is not nnx.Param:
        raise ValueError(
            "wrt selects variables of an NNX module; for other models use optax.partition with "
            f"optax.set_to_zero() for the parameters to freeze; got {wrt}"
        )
    match model:
        case nnx.Module():
            module = nnx.clone(model)
            nnx.pop(module, nnx.Intermediate)  # left by earlier calls
            graphdef, variables, others = nnx.split(module, wrt, ...)
            module.eval()
            evaluated = ApplyNNX(nnx.graphdef(module), evaluates=True)
            params, model_state = nnx.to_pure_dict(variables), nnx.to_pure_dict(others)
            if not params:
                raise ValueError(f"wrt must select variables of the model, got {wrt}, which selects none")
            return ApplyNNX(graphdef), params, model_state or None, evaluated
        case (apply_fn, params) if callable(apply_fn):
            apply_fn = ApplyLinen(apply_fn) if is_linen_apply(apply_fn) else apply_fn
            return apply_fn, params, None, apply_fn
        case (apply_fn, params, model_state) if callable(apply_fn):
            return apply_fn, params, model_state, None
        case _:
            raise TypeError(
                "model must be a Flax NNX module, a pair (apply_fn, params) or a triple "
                f"(apply_fn, params, model_state) with a callable apply_fn; got {reprlib.repr(model)}"
            )


def _check_optimizer(optimizer: Any) -> None:
    """Raises a TypeError unless `optimizer` is an Optax optimizer."""
    if hasattr(optimizer, "init") and hasattr(optimizer, "update"):
        return
    is_model = isinstance(optimizer, nnx.Module | linen.Module | tuple)
    hint = "; create_train_state(model, optimizer) takes the model first" if is_model else ""
    raise TypeError(
        f"optimizer must be an Optax optimizer, such as optax.sgd(0.01); got {reprlib.repr(optimizer)}{hint}"
    )


def _check_line_search(opt_state: Any) -> None:
    """Raises a ValueError if an optimizer evaluates the model to choose its step."""
    searches = optax.ScaleByZoomLinesearchState, optax.ScaleByBacktrackingLinesearchState
    nodes = jax.tree.leaves(opt_state, is_leaf=lambda node: isinstance(node, searches))
    if any(isinstance(node, searches) for node in nodes):
        raise ValueError(
            "optimizer must not evaluate the model, as the line search of optax.lbfgs does; pass "
            "linesearch=None, or write the step yourself as in the recipe for L-BFGS in examples/README.md"
        )


def _checked_params(params: Any) -> Any:
    """Returns parameters that are all floating-point arrays to train, or raises a TypeError."""
    params = tree_from_host("params", params)
    is_linen = isinstance(params, Mapping) and "params" in params
    if is_linen and (others := params.keys() - {"params", OVERWRITE_WITH_GRADIENT}):
        others = ", ".join(sorted(map(str, others)))
        raise TypeError(
            f"params must hold only trained parameters, got Linen variables that include {others}; pass "
            '(apply_fn, variables["params"], model_state), as help(create_train_state) shows'
        )
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        is_array = isinstance(leaf, jax.Array | np.ndarray | np.generic | float)
        if not is_array or not jnp.issubdtype(jnp.result_type(leaf), jnp.floating):
            is_complex = is_array and jnp.iscomplexobj(leaf)
            hint = "; store real and imaginary parts separately" if is_complex else ""
            raise TypeError(
                f"params must hold only floating-point arrays, got {reprlib.repr(leaf)} for "
                f"params{jax.tree_util.keystr(path)}{hint}"
            )
    return dict(params) if has_replaced(params) else params


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


def is_deleted(leaf: Any) -> bool:
    """Returns whether an array of a state was donated to a step."""
    return isinstance(leaf, jax.Array) and not isinstance(leaf, Tracer) and leaf.is_deleted()


def check_not_donated(state: Any) -> None:
    """Raises an error if `state` is not a `TrainState`, or was donated to a step."""
    check_is_state(state)
    if any(map(is_deleted, jax.tree.leaves(state))):
        raise ValueError(
            "state was donated to an earlier train_step, which deleted its arrays; use the state that it "
            "returned, as in `state, value = train_step(state, ...)`"
        )
