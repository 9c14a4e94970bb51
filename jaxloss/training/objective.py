"""The loss and the samples of training and evaluation: checks and conversions."""

import functools
import reprlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import Partial, keystr, tree_leaves_with_path

from jaxloss._core.arguments import as_array, tree_from_host, widened


def traceable(loss: Callable[[Any, Any], Any]) -> Partial:
    """Returns a loss that passes through `jit`: its function is static, its bound arrays are traced."""
    if not callable(loss):
        raise TypeError(f"loss must be a callable (outputs, targets) -> scalar; got {reprlib.repr(loss)}")
    if not isinstance(loss, Partial):
        return Partial(_same(loss))
    for name, bound in (*enumerate(loss.args), *loss.keywords.items()):
        if any(isinstance(leaf, str) for leaf in jax.tree.leaves(bound)):
            raise TypeError(
                "jax.tree_util.Partial can bind only arrays and numbers to a loss; use functools.partial for "
                f"argument {name}, got {bound!r}"
            )
    return tree_from_host("loss", Partial(_same(loss.func), *loss.args, **loss.keywords))


def _same(function: Any) -> Any:
    """Returns one shared object for equal partials, each of which `jit` would otherwise compile.

    Arguments of different types, such as 1 and True, are not equal.
    """
    if not hasattr(function, "keywords"):  # which a partial has, and what `Partial` wraps one in
        return function
    keywords = tuple(sorted(function.keywords.items()))
    types = tuple(map(type, (*function.args, *function.keywords.values())))
    try:
        return _partial(_same(function.func), function.args, keywords, types)
    except TypeError:  # an argument has no hash
        return functools.partial(function.func, *function.args, **function.keywords)


@functools.lru_cache(maxsize=256)
def _partial(
    function: Any, args: tuple[Any, ...], keywords: tuple[tuple[str, Any], ...], types: tuple[type, ...]
) -> Any:
    return functools.partial(function, *args, **dict(keywords))


def value_and_weight(value: Any, *, of_gradient: bool = False) -> tuple[jax.Array, jax.Array | None]:
    """Returns the mean and None, or the sum and its weight in one dtype, from the value of a loss."""
    found: Any = jax.tree.map(functools.partial(as_array, "loss(outputs, targets)"), value)
    dtypes = [array.dtype for array in jax.tree.leaves(found)]
    if of_gradient and dtypes and not jnp.issubdtype(dtypes[0], jnp.floating):
        raise ValueError(f"loss must return a floating-point number to be differentiable; got {dtypes[0]}")
    if isinstance(found, jax.Array) and not found.ndim:
        return found, None
    match jax.tree.map(jnp.shape, found):
        case ((), ()):
            total, weight = widened(*found)
            return total, weight
        case shape:
            raise ValueError(
                "loss must return a scalar, as with reduction='mean', or the pair (sum, weight) of "
                f"reduction='sum_and_weight'; got shape {shape}"
            )


def scalar_loss_error(purpose: str) -> ValueError:
    """Returns the error for a scalar loss where only pairs (sum, weight) give the exact mean."""
    return ValueError(
        f"loss must return the pair (sum, weight) for {purpose}, as with "
        "functools.partial(loss, reduction='sum_and_weight'); got a scalar"
    )


def sample_count(inputs: Any, targets: Any) -> int:
    """Returns the common size of the first axes, or raises a ValueError if they differ."""
    lengths = {
        f"{name}{keystr(path)}": jnp.shape(array)[:1]
        for name, tree in (("inputs", inputs), ("targets", targets))
        for path, array in tree_leaves_with_path(tree)
    }
    if len({*lengths.values()}) != 1 or () in lengths.values():
        found = ", ".join(f"{name} {length[0] if length else 'a scalar'}" for name, length in lengths.items())
        raise ValueError(
            f"inputs and targets must have the same number of samples along their first axes; got {found}"
        )
    return lengths.popitem()[1][0]
