"""What a pytree holds, in words, and how it differs from what was expected."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from jax.tree_util import keystr, tree_leaves_with_path


def kinds(tree: Any) -> dict[str, str]:
    """Returns dtype and shape of each array by its path, as in {"['bias']": "float32[3]"}."""
    return {
        keystr(path): f"{jnp.result_type(leaf)}{list(jnp.shape(leaf))}"
        for path, leaf in tree_leaves_with_path(tree)
    }


def differences(came: Mapping[str, str], expected: Mapping[str, str], shown: int = 5) -> str:
    """Returns where two trees differ, the first few in full; "" where they do not."""
    found = [
        f"{name} is {came.get(name, 'missing')}, expected {expected.get(name, 'nothing')}"
        for name in {**expected, **came}
        if came.get(name) != expected.get(name)
    ]
    more = [f"and {len(found) - shown} more"] if len(found) > shown else []
    return "; ".join(found[:shown] + more)
