"""The arrays that a checkpoint holds, by their paths in a pytree."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import keystr, tree_flatten_with_path, tree_leaves_with_path, tree_unflatten


def named_arrays(tree: Any) -> dict[str, jax.Array]:
    """Returns the arrays of a pytree by path, with the key data of typed PRNG keys."""
    arrays = {keystr(path): _as_array(keystr(path), leaf) for path, leaf in tree_leaves_with_path(tree)}
    return {name: jax.random.key_data(array) if _is_key(array) else array for name, array in arrays.items()}


def with_arrays(tree: Any, arrays: dict[str, jax.Array]) -> Any:
    """Returns a pytree with its arrays replaced by those with the same path."""
    leaves, structure = tree_flatten_with_path(tree)
    replaced = [
        jax.random.wrap_key_data(arrays[keystr(path)], impl=jax.random.key_impl(leaf))
        if _is_key(leaf)
        else arrays[keystr(path)]
        for path, leaf in leaves
    ]
    return tree_unflatten(structure, replaced)


def not_finite(arrays: dict[str, jax.Array]) -> list[str]:
    """Returns the names of parameters that are not finite, and of other arrays that hold NaN.

    The state of an optimizer may start with an infinite best loss.
    """
    return [name for name, sound in _are_sound(arrays).items() if not sound]


@jax.jit
def _are_sound(arrays: dict[str, jax.Array]) -> dict[str, jax.Array]:
    def is_sound(name: str, array: jax.Array) -> jax.Array:
        if not jnp.issubdtype(array.dtype, jnp.inexact):
            return jnp.bool(True)
        return jnp.all(jnp.isfinite(array) if name.startswith("['params']") else ~jnp.isnan(array))

    return {name: is_sound(name, array) for name, array in arrays.items()}


@jax.jit
def are_equal(arrays: dict[str, jax.Array], others: dict[str, jax.Array]) -> jax.Array:
    """Returns whether all arrays are equal, NaN to NaN."""
    is_float = {name: jnp.issubdtype(array.dtype, jnp.inexact) for name, array in arrays.items()}
    same = [jnp.array_equal(arrays[name], others[name], equal_nan=is_float[name]) for name in arrays]
    return jnp.stack(same).all()


def _as_array(name: str, leaf: Any) -> jax.Array:
    """Returns a leaf as an array of the same dtype, or raises a TypeError."""
    if isinstance(leaf, jax.Array):
        return leaf
    is_number = isinstance(leaf, bool | int | float | complex)
    if is_number or isinstance(leaf, np.ndarray | np.generic):
        try:
            array = jnp.array(leaf)  # a copy, since it is saved while the caller continues
        except (OverflowError, TypeError):
            array = None
        if array is not None and (is_number or array.dtype == leaf.dtype):
            return array.astype(array.dtype)  # no weak type
    found = getattr(leaf, "dtype", type(leaf).__name__)
    raise TypeError(f"a checkpoint can hold only arrays and numbers with JAX dtypes, got {found} for {name}")


def _is_key(array: Any) -> bool:
    return isinstance(array, jax.Array) and jnp.issubdtype(array.dtype, jax.dtypes.prng_key)
