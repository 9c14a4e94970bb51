"""What training and evaluation are given: a loss, in one form, and samples along the first axis."""

import reprlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.tree_util import Partial, keystr, tree_leaves_with_path

from jaxloss._arguments import widened


def traceable(loss: Callable[[Any, Any], Any]) -> Partial:
    """Returns a loss that passes through `jit`: the function is static, the arrays bound to it are traced."""
    if not callable(loss):
        raise TypeError(f"loss must be a callable (outputs, targets) -> scalar; got {reprlib.repr(loss)}")
    if not isinstance(loss, Partial):
        return Partial(loss)
    for path, leaf in tree_leaves_with_path(loss):
        if isinstance(leaf, str):
            raise TypeError(
                "jax.tree_util.Partial binds arrays to a loss, functools.partial what Python must know; got "
                f"{leaf!r} for loss{keystr(path)}"
            )
    return loss


def value_and_weight(value: Any) -> tuple[jax.Array, jax.Array | None]:
    """Returns what a loss returned as a mean and None, or as a sum and its weight, of one dtype."""
    match jax.tree.map(jnp.shape, value):
        case ():
            return value, None
        case ((), ()):
            total, weight = widened(*map(jnp.asarray, value))
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
