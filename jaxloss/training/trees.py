"""Dtypes and shapes in a pytree as text, and the differences between two pytrees."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from jax.tree_util import keystr, tree_leaves_with_path


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
