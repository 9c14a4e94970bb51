"""Batches from arrays and from iterables: checks and conversions."""

import reprlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import keystr, tree_leaves_with_path, tree_map_with_path

from jaxloss._core.arguments import from_host, not_an_array


def batch_from_host(name: str, tree: Any) -> Any:
    """Converts a pytree of arrays so that `jit` reads it without changing a value, or raises an error."""
    if all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(tree)):
        return tree

    def leaf_from_host(path: Any, leaf: Any) -> Any:
        leaf = from_host(name + keystr(path), leaf)
        if not isinstance(leaf, jax.Array | np.ndarray | np.generic | bool | int | float | complex):
            raise not_an_array(name + keystr(path), leaf)
        dtype = jnp.result_type(leaf) if not isinstance(leaf, np.ndarray) else leaf.dtype
        if not (jnp.issubdtype(dtype, np.number) or jnp.issubdtype(dtype, np.bool_)):
            raise TypeError(f"{name}{keystr(path)} must hold numbers, got dtype {dtype}")
        return leaf

    return tree_map_with_path(leaf_from_host, tree)


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


def check_no_options(**options: Any) -> None:
    """Raises a ValueError for options that have no effect with an iterable of batches."""
    if given := [name for name, value in options.items() if value is not None]:
        raise ValueError(
            f"{' and '.join(given)} must not be given with an iterable of batches, which has its own; "
            "without targets, inputs must be an iterable of batches (inputs, targets)"
        )


def read_batches(batches: Any) -> Iterator[tuple[Any, Any]]:
    """Yields the batches of an iterable, after checking them."""
    if not isinstance(batches, Iterable) or hasattr(batches, "dtype") or isinstance(batches, Mapping | str):
        raise TypeError(
            "without targets, inputs must be an iterable of batches (inputs, targets); got "
            f"{reprlib.repr(batches)}"
        )
    is_empty = True
    for batch in batches:
        is_empty = False
        if not isinstance(batch, tuple | list) or len(batch) != 2:
            raise TypeError(f"each batch must be a pair (inputs, targets); got {reprlib.repr(batch)}")
        inputs, targets = batch
        yield batch_from_host("inputs", inputs), batch_from_host("targets", targets)
    if is_empty:
        raise ValueError("inputs must have at least one batch, got none; a generator can be used only once")


def limit_queue(results: list[Any]) -> None:
    """Waits for the result before the last two, so that no more than two batches wait on the device."""
    jax.block_until_ready(results[-3:-2])
