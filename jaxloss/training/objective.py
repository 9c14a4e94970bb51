"""What training and evaluation are given: a loss, in one form, and samples along the first axis."""

import functools
import reprlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import Partial, keystr, tree_leaves_with_path

from jaxloss._core.arguments import as_array, widened


def traceable(loss: Callable[[Any, Any], Any]) -> Partial:
    """Returns a loss that passes through `jit`: the function is static, the arrays bound to it are traced."""
    if not callable(loss):
        raise TypeError(f"loss must be a callable (outputs, targets) -> scalar; got {reprlib.repr(loss)}")
    if not isinstance(loss, Partial):
        return Partial(loss)
    for name, bound in (*enumerate(loss.args), *loss.keywords.items()):
        if any(isinstance(leaf, str) for leaf in jax.tree.leaves(bound)):
            raise TypeError(
                "jax.tree_util.Partial binds arrays to a loss, functools.partial what Python must know; got "
                f"{bound!r} for loss's argument {name}"
            )
    return loss


def value_and_weight(value: Any, *, of_gradient: bool = False) -> tuple[jax.Array, jax.Array | None]:
    """Returns what a loss returned as a mean and None, or as a sum and its weight, of one dtype."""
    found: Any = jax.tree.map(functools.partial(as_array, "what loss returns"), value)
    dtypes = [array.dtype for array in jax.tree.leaves(found)]
    if of_gradient and dtypes and not jnp.issubdtype(dtypes[0], jnp.floating):
        raise ValueError(f"loss must return a floating-point number, which has a gradient; got {dtypes[0]}")
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


def no_pair(purpose: str) -> ValueError:
    """Returns the error for a loss that returned a scalar where a mean of means would not be the mean."""
    return ValueError(
        f"loss must return the pair (sum, weight) for {purpose}, as with "
        "functools.partial(loss, reduction='sum_and_weight'); got a scalar"
    )


def sample_count(inputs: Any, targets: Any) -> int:
    """Returns the common length of all arrays, or refuses arrays that differ in it."""
    lengths = {
        f"{name}{keystr(path)}": jnp.shape(array)[:1]
        for name, tree in (("inputs", inputs), ("targets", targets))
        for path, array in tree_leaves_with_path(tree)
    }
    if len({*lengths.values()}) != 1 or () in lengths.values():
        found = ", ".join(f"{name} {length[0] if length else 'a scalar'}" for name, length in lengths.items())
        raise ValueError(f"inputs and targets must have equally many samples, their first axis; got {found}")
    return lengths.popitem()[1][0]
