"""The part of parameters that is optimized, and the dtypes and shapes of pytrees as text."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from flax.linen.fp8_ops import OVERWRITE_WITH_GRADIENT
from jax.tree_util import keystr, tree_leaves_with_path


def has_replaced(params: Any) -> bool:
    """Returns whether parameters are Linen variables with a collection that gradients replace.

    FP8 layers of Flax keep their scales there: what `jax.grad` returns for them is their next value.
    """
    return isinstance(params, Mapping) and OVERWRITE_WITH_GRADIENT in params


def optimized(params: Any) -> Any:
    """Returns the part of parameters, or of their gradients, that the optimizer updates."""
    return params["params"] if has_replaced(params) else params


def with_optimized(params: Any, new: Any) -> Any:
    """Returns the parameters with `new` as the part that the optimizer updates."""
    return {**params, "params": new} if has_replaced(params) else new


def dtypes_and_shapes(tree: Any) -> dict[str, str]:
    """Returns the dtype and shape of each leaf by its path, such as {"['bias']": "float32[3]"}."""
    return {
        keystr(path): f"{jnp.result_type(leaf)}{list(jnp.shape(leaf))}"
        for path, leaf in tree_leaves_with_path(tree)
    }


def differences(found: Mapping[str, str], expected: Mapping[str, str], shown: int = 5) -> str:
    """Describes the first few differences between two pytrees; returns "" if there are none."""
    lines = [
        f"{name} is {found.get(name, 'missing')}, expected {expected.get(name, 'nothing')}"
        for name in {**expected, **found}
        if found.get(name) != expected.get(name)
    ]
    more = [f"and {len(lines) - shown} more"] if len(lines) > shown else []
    return "; ".join(lines[:shown] + more)
