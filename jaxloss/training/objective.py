"""Losses and metrics of training and evaluation: checks and conversions."""

import functools
import inspect
import reprlib
import warnings
from collections.abc import Callable, Hashable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from jaxloss._core.arguments import as_array, tree_from_host, widened
from jaxloss._core.reduction import mean

Measure = Callable[[Any, Any], Any]
Pair = tuple[jax.Array, jax.Array | None]


def gradient_norm(outputs: Any, targets: Any) -> jax.Array:
    """Global norm of the gradients, as a metric of `train_step` and `train_epoch`.

    The gradients are those of the mean loss of the batch, before the optimizer clips or scales them. Do not
    call this function, but pass it: `metrics={"gradient_norm": gradient_norm}`.

    Example:
        >>> import optax
        >>> import jax.numpy as jnp
        >>> from jaxloss import mse_loss
        >>> from jaxloss.training import create_train_state, gradient_norm, train_step
        >>> state = create_train_state((jnp.multiply, jnp.ones(3)), optax.sgd(0.1))
        >>> data = jnp.ones(3), jnp.zeros(3)
        >>> state, value, measured = train_step(state, *data, loss=mse_loss, metrics={"norm": gradient_norm})
        >>> measured["norm"]  # each of the three gradients is 2/3
        Array(1.1547, dtype=float32)
    """
    raise TypeError("gradient_norm is only a metric of train_step and train_epoch, which compute gradients")


def traceable(loss: Measure, name: str = "loss") -> Partial:
    """Returns a loss that passes through `jit`: its function is static, its bound arrays are traced."""
    if not callable(loss):
        raise TypeError(f"{name} must be a callable (outputs, targets) -> scalar; got {reprlib.repr(loss)}")
    if not isinstance(loss, Partial):
        return Partial(_same(loss, name))
    for argument, bound in (*enumerate(loss.args), *loss.keywords.items()):
        if any(isinstance(leaf, str) for leaf in jax.tree.leaves(bound)):
            raise TypeError(
                f"jax.tree_util.Partial can bind only arrays and numbers to a {name}; use functools.partial "
                f"for argument {argument}, got {bound!r}"
            )
    return tree_from_host(name, Partial(_same(loss.func, name), *loss.args, **loss.keywords))


def traceable_metrics(metrics: Mapping[str, Measure] | None) -> dict[str, Partial]:
    """Returns metrics that pass through `jit`, as `traceable` does for a loss."""
    if not metrics:
        return {}
    if not hasattr(metrics, "items"):
        raise TypeError(
            "metrics must be a mapping of names to callables (outputs, targets) -> scalar, such as "
            f'{{"accuracy": accuracy}}; got {reprlib.repr(metrics)}'
        )
    return {name: traceable(metric, f"metrics[{name!r}]") for name, metric in metrics.items()}


def _same(function: Any, name: str) -> Any:
    """Returns one shared object for equal partials, each of which `jit` would otherwise compile.

    Arguments of different types, such as 1 and True, are not equal.
    """
    if not hasattr(function, "keywords"):  # not a partial, nor the object in which `Partial` wraps one
        try:
            hash(function)
        except TypeError as error:
            raise TypeError(
                f"{name} must be hashable, got a {type(function).__name__}, which holds arrays or other "
                "unhashable values; write a function of them, and bind them with jax.tree_util.Partial"
            ) from error
        return function
    keywords = tuple(sorted(function.keywords.items()))
    types = tuple(map(type, (*function.args, *function.keywords.values())))
    try:
        return _partial(_same(function.func, name), function.args, keywords, types)
    except TypeError:  # an argument is not hashable
        return functools.partial(function.func, *function.args, **function.keywords)


@functools.lru_cache(maxsize=256)
def _partial(
    function: Any, args: tuple[Any, ...], keywords: tuple[tuple[str, Any], ...], types: tuple[type, ...]
) -> Any:
    return functools.partial(function, *args, **dict(keywords))


def named(loss: Any) -> Any:
    """Returns the function within partials, for its name."""
    # functools.partial has `func`; jax.tree_util.Partial wraps one in an object with `fun`.
    while inner := getattr(loss, "func", None) or getattr(loss, "fun", None):
        loss = inner
    return loss


@functools.lru_cache(maxsize=256)
def _functions_seen(code: Hashable, context: Hashable) -> set[int]:
    return set()


def count_compilation(loss: Partial, metrics: Mapping[str, Partial], *arguments: Any) -> None:
    """Warns at the third compilation that only a newly created loss or metric has caused.

    It runs while a program is traced, so it adds no cost to a call.

    Args:
        loss: The loss.
        metrics: The metrics.
        arguments: All other arguments that the program depends on.
    """
    leaves, structure = jax.tree.flatten(arguments)
    context = structure, tuple(map(jax.typeof, leaves))
    for function in map(named, (loss, *metrics.values())):
        if not inspect.isfunction(function):
            continue
        code = function.__code__
        seen = _functions_seen(code, context)
        is_new = id(function) not in seen
        seen.add(id(function))
        if is_new and len(seen) == 3:
            warnings.warn(
                f"{function.__qualname__} of {code.co_filename}, line {code.co_firstlineno}, is a new "
                "function at each call and is compiled each time, now for the third time. Create it once, "
                "before the loop; bind options with functools.partial and arrays with jax.tree_util.Partial",
                stacklevel=2,
            )


def value_and_weight(value: Any, name: str = "loss", *, of_gradient: bool = False) -> Pair:
    """Returns the mean and None, or the sum and its weight in one dtype, from the value of a loss."""
    found: Any = jax.tree.map(functools.partial(as_array, f"{name}(outputs, targets)"), value)
    dtypes = [array.dtype for array in jax.tree.leaves(found)]
    if of_gradient and dtypes and not jnp.issubdtype(dtypes[0], jnp.floating):
        raise ValueError(f"{name} must return a floating-point number to be differentiable; got {dtypes[0]}")
    if isinstance(found, jax.Array) and not found.ndim:
        return found, None
    match jax.tree.map(jnp.shape, found):
        case ((), ()):
            total, weight = widened(*found)
            return total, weight
        case shape:
            raise ValueError(
                f"{name} must return a scalar, as with reduction='mean', or the pair (sum, weight) of "
                f"reduction='sum_and_weight'; got shape {shape}"
            )


def measures(metrics: Mapping[str, Partial], outputs: Any, targets: Any) -> dict[str, Pair]:
    """Returns `value_and_weight` of each metric."""
    outputs = jax.lax.stop_gradient(outputs)
    return {
        name: value_and_weight(metric(outputs, targets), f"metrics[{name!r}]")
        for name, metric in metrics.items()
    }


def check_are_pairs(purpose: str, weight: jax.Array | None, measured: Mapping[str, Pair]) -> None:
    """Raises a ValueError for a scalar where only pairs (sum, weight) give the exact mean."""
    weights = {"loss": weight} | {f"metrics[{name!r}]": weight for name, (_, weight) in measured.items()}
    for name, found in weights.items():
        if found is None:
            raise ValueError(
                f"{name} must return the pair (sum, weight) for {purpose}, as with "
                "functools.partial(loss, reduction='sum_and_weight'); got a scalar"
            )


def means(measured: Mapping[str, Pair]) -> dict[str, jax.Array]:
    """Returns the means of pairs, and scalars as they are."""
    return {
        name: value if weight is None else mean(value, weight) for name, (value, weight) in measured.items()
    }
