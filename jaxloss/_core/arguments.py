"""Arguments become arrays that agree: conversion, dtype, shapes, masks.

All but `from_host` runs while a loss is traced, and costs nothing per call.
"""

import math
import operator
from collections.abc import Callable, Iterable, Sequence
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from jax.tree_util import keystr, tree_map_with_path
from jax.typing import ArrayLike


def from_host(name: str, value: Any) -> Any:
    """Returns what `jit` reads without changing a number; everything but host arrays comes back as it is.

    JAX reads the bytes of big-endian arrays as they lie, ignores the mask of a masked array, and takes 64-bit
    integers modulo 2**32 unless 64-bit types are enabled. Those that do not fit stay 64-bit here.
    """
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError(f"{name} must be an array, got a NumPy masked array; pass its mask as where=")
    if isinstance(value, np.ndarray | np.generic):
        if not value.dtype.isnative:
            value = value.astype(value.dtype.newbyteorder("="))
        if value.dtype.kind in "iu" and value.itemsize == 8:
            narrow = np.asarray(value).astype(jax.dtypes.canonicalize_dtype(value.dtype))
            if (narrow == value).all():
                return narrow
            with jax.enable_x64(True):
                return jnp.asarray(value)
    elif not isinstance(value, jax.Array) and hasattr(value, "__jax_array__"):
        return value.__jax_array__()
    return value


def tree_from_host(name: str, tree: Any) -> Any:
    """Returns `from_host` of every leaf, named by its path."""
    if all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(tree)):
        return tree
    return tree_map_with_path(lambda path, leaf: from_host(name + keystr(path), leaf), tree)


def as_array(name: str, value: Any) -> jax.Array:
    """Returns a real array, or raises a TypeError that names the argument and the remedy."""
    value = from_host(name, value)
    if not isinstance(value, jax.Array | np.ndarray | np.generic | bool | int | float):
        raise not_an_array(name, value)
    dtype = jnp.result_type(value) if isinstance(value, bool | int | float) else value.dtype
    is_number = jnp.issubdtype(dtype, jnp.floating) or jnp.issubdtype(dtype, jnp.integer)
    if not (is_number or jnp.issubdtype(dtype, bool)):
        raise TypeError(f"{name} must hold real numbers, got dtype {dtype}")
    return value if isinstance(value, jax.Array) else jnp.asarray(value)


def not_an_array(name: str, value: Any) -> TypeError:
    """Returns the error for a value that is no array, with the call that makes it one."""
    kind = type(value)
    found, remedy = kind.__name__, ""
    if kind.__module__.partition(".")[0] == "torch":
        found, remedy = f"torch.{kind.__name__}", f"; pass {name}.detach().cpu().numpy()"
    elif isinstance(value, list | tuple):
        remedy = f"; pass jax.numpy.asarray({name})"
    return TypeError(f"{name} must be an array, got {found}{remedy}")


def agree(**arrays: Any) -> list[jax.Array]:
    """Returns the named arguments as real arrays of one shape, laid out alike on a mesh."""
    converted = [as_array(name, array) for name, array in arrays.items()]
    if len({array.shape for array in converted}) > 1:
        raise ValueError(f"{_and(arrays)} must have the same shape, got {_and(arrays, converted)}")
    return laid_out_as_first_split(converted)


def agree_but_for_last_axis(**arrays: Any) -> list[jax.Array]:
    """Returns an array, and others that lack its last axis with one of size 1; laid out alike on a mesh."""
    first, *others = (as_array(name, array) for name, array in arrays.items())
    if not first.ndim or any(other.shape != first.shape[:-1] for other in others):
        name, *names = arrays
        raise ValueError(
            f"{_and(names)} must have the shape of {name} without its last axis, "
            f"got {_and(arrays, [first, *others])}"
        )
    return laid_out_as_first_split([first, *(jnp.expand_dims(other, -1) for other in others)])


def laid_out_as_first_split(arrays: Sequence[jax.Array]) -> list[jax.Array]:
    split = next((array for array in arrays if any(_layout(array)[1])), arrays[0])
    return [laid_out_as(split, array) for array in arrays]


def values(**arrays: Any) -> list[jax.Array]:
    """Returns the named arguments as floating-point arrays of one dtype, at least float32."""
    return widened(*(as_array(name, array) for name, array in arrays.items()))


def widened(*arrays: jax.Array) -> list[jax.Array]:
    """Returns real arrays in the dtype of their arithmetic."""
    dtype = arithmetic_dtype(*arrays)
    return [array.astype(dtype) for array in arrays]


def arithmetic_dtype(*arrays: jax.Array) -> np.dtype:
    """Returns float64 if an array has it, else float32: bfloat16 and float16 are too narrow for sums.

    Integers, booleans and Python numbers follow the other arrays; alone they become the default float.
    """
    floating = [array for array in arrays if jnp.issubdtype(array.dtype, jnp.floating)]
    decisive = [array for array in floating if not jax.typeof(array).weak_type] or floating
    if not decisive:
        return jnp.dtype(jnp.result_type(float))
    return jnp.dtype(jnp.float64 if any(array.dtype.itemsize == 8 for array in decisive) else jnp.float32)


def index_array(name: str, indices: jax.Array) -> jax.Array:
    """Returns class indices or lengths as int32, or int64 if 64-bit types are enabled.

    Values beyond that range are clipped to it, where they are no valid index either.
    """
    if not jnp.issubdtype(indices.dtype, jnp.integer):
        raise TypeError(f"{name} must be integers, got dtype {indices.dtype}")
    is_wide = indices.dtype.itemsize == 8 and jax.dtypes.canonicalize_dtype(np.int64) == np.int64
    limits, own = jnp.iinfo(jnp.int64 if is_wide else jnp.int32), jnp.iinfo(indices.dtype)
    if own.max > limits.max:
        low = np.asarray(max(own.min, limits.min), indices.dtype)
        high = np.asarray(limits.max, indices.dtype)
        with jax.enable_x64(True):  # or the comparison itself would be of 32 bits
            return jnp.clip(indices, low, high).astype(limits.dtype)
    return indices.astype(limits.dtype)


def sample_lengths(name: str, lengths: ArrayLike, samples: tuple[int, ...]) -> jax.Array:
    """Returns one length for each sample, in the dtype of indices."""
    converted = index_array(name, as_array(name, lengths))
    if converted.shape != samples:
        raise ValueError(
            f"{name} must have one length for each sample, shape {samples}, got {converted.shape}"
        )
    return converted


def exact_labels(name: str, labels: jax.Array) -> tuple[jax.Array, ...]:
    """Returns int32 arrays that are all equal where two labels are: 64-bit ones have two halves."""
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise TypeError(f"{name} must be integers, got dtype {labels.dtype}")
    if labels.dtype.itemsize < 8:
        return (labels.astype(jnp.int32),)
    with jax.enable_x64(True):
        return labels.astype(jnp.int32), (labels >> np.asarray(32, labels.dtype)).astype(jnp.int32)


def have_sizes(*arrays: jax.Array) -> bool:
    """Whether every size is a number, and not a symbol of a program exported for any size."""
    return all(type(size) is int for array in arrays for size in array.shape)


def broadcastable(name: str, array: jax.Array, like: jax.Array, without: Sequence[int] = ()) -> jax.Array:
    """Returns `array` with the rank of `like`, each size that of `like` or 1, and laid out like it.

    `without` are the axes of `like` that `array` does not have.
    """
    shape, _ = _layout(like, without)
    try:
        fits = jnp.broadcast_shapes(array.shape, shape) == shape
    except ValueError:
        fits = False
    if not fits:
        raise ValueError(f"{name} must broadcast to shape {shape}, got shape {array.shape}")
    return laid_out_as(like, array.reshape((1,) * (len(shape) - array.ndim) + array.shape), without)


def mask(where: ArrayLike | None, like: jax.Array, without: Sequence[int] = ()) -> jax.Array | None:
    """Returns the mask, `broadcastable` to `like`."""
    if where is None:
        return None
    converted = as_array("where", where)
    if converted.dtype != bool:
        raise TypeError(
            f"where must be boolean, got dtype {converted.dtype}; for weights use jaxloss.reduce(weight=...)"
        )
    return broadcastable("where", converted, like, without)


def fill_masked(where: jax.Array | None, array: jax.Array, fill: float = 0) -> jax.Array:
    """Returns `array` with `fill` where the mask is False, so that no arithmetic sees what was there."""
    return array if where is None else jnp.where(where, array, jnp.asarray(fill, array.dtype))


def masked_items(
    arrays: Sequence[jax.Array], rank: int, where: ArrayLike | None
) -> tuple[list[jax.Array], jax.Array | None]:
    """Returns arrays, 0 where masked, and the mask of items, which the last axes hold.

    The arrays have the shape of the first but for the last axes, where they may have size 1.
    """
    inner = range(arrays[0].ndim - rank, arrays[0].ndim)
    where = mask(where, arrays[0], inner)
    behind = None if where is None else jnp.expand_dims(where, inner)
    return [fill_masked(behind, array) for array in arrays], where


def any_left(where: jax.Array | None, shape: Sequence[int], axes: Sequence[int]) -> jax.Array | None:
    """Returns where a mask over a shape leaves something along some of its axes; None is everywhere."""
    if where is None:
        if math.prod(shape[axis] for axis in axes) != 0:
            return None
        where = jnp.zeros([1] * len(shape), bool)
    return jnp.any(where, tuple(axes))


def laid_out_as(like: jax.Array, array: jax.Array, without: Sequence[int] = ()) -> jax.Array:
    """Returns a replicated array of equal rank split over the explicit mesh axes as `like` is.

    JAX adds arrays of different layouts, but refuses to select between them.
    """
    _, spec = _layout(like, without)
    if not any(spec) or any(_layout(array)[1]):
        return array
    spec = [part if size > 1 else None for part, size in zip(spec, array.shape, strict=True)]
    sharding: Any = jax.typeof(like).sharding
    return jax.sharding.reshard(array, NamedSharding(sharding.mesh, PartitionSpec(*spec)))


def split_as(like: jax.Array, array: jax.Array) -> jax.Array:
    """Returns an array of the shape of another one, split over the explicit mesh axes as that one is."""
    sharding: Any = jax.typeof(like).sharding
    return jax.sharding.reshard(array, sharding) if any(sharding.spec) else array


def last_axis_whole(array: jax.Array) -> jax.Array:
    """Returns an array whose last axis no explicit mesh axis splits."""
    sharding: Any = jax.typeof(array).sharding
    if not _layout(array)[1][-1]:
        return array
    spec = PartitionSpec(*sharding.spec[:-1], None)
    return jax.sharding.reshard(array, NamedSharding(sharding.mesh, spec))


def laid_out_alike(arrays: Sequence[jax.Array], axes: Sequence[int]) -> list[jax.Array]:
    """Returns arrays with replicated ones split along their axis as the first that is split along its own."""
    parts = [_layout(array)[1][axis] for array, axis in zip(arrays, axes, strict=True)]
    like, part = next(
        ((array, part) for array, part in zip(arrays, parts, strict=True) if part), (None, None)
    )
    if like is None:
        return list(arrays)
    sharding: Any = jax.typeof(like).sharding

    def laid_out(array: jax.Array, axis: int) -> jax.Array:
        if any(_layout(array)[1]):
            return array
        spec = PartitionSpec(*(part if position == axis else None for position in range(array.ndim)))
        return jax.sharding.reshard(array, NamedSharding(sharding.mesh, spec))

    return [laid_out(array, axis) for array, axis in zip(arrays, axes, strict=True)]


def on_automatic_axes(function: Callable[..., Any], like: jax.Array, *split: int) -> Callable[..., Any]:
    """Returns a function inside which explicit mesh axes are automatic, as the compiler then adds up.

    Args:
        function: It returns arrays with an axis for each of `split`.
        like: An array on the mesh.
        split: The axes of `like` as which those are split.
    """
    sharding: Any = jax.typeof(like).sharding
    mesh = sharding.mesh
    axes = zip(mesh.axis_names, mesh.axis_types, strict=True)
    explicit = tuple(name for name, kind in axes if kind == AxisType.Explicit)
    if not explicit:
        return function
    _, parts = _layout(like)
    out = NamedSharding(mesh, PartitionSpec(*(parts[axis] for axis in split)))
    return jax.sharding.auto_axes(function, axes=explicit, out_sharding=out)


def _layout(array: jax.Array, without: Sequence[int] = ()) -> tuple[tuple[int, ...], list[Any]]:
    """Returns the shape of an array, and for each axis the explicit mesh axes that split it."""
    sharding: Any = jax.typeof(array).sharding
    spec = [*sharding.spec, *[None] * (array.ndim - len(sharding.spec))]
    axes = [axis for axis in range(array.ndim) if axis not in without]
    return tuple(array.shape[axis] for axis in axes), [spec[axis] for axis in axes]


def integer(name: str, value: Any) -> int:
    """Returns a Python integer that is known while tracing, or raises a TypeError that names the argument."""
    try:
        return operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an integer, got {value!r}") from None


def refuse_unknown(name: str, word: Any, known: Any) -> None:
    """Raises where a word is none of those of a `Literal` type."""
    if word not in get_args(known):
        raise ValueError(f"{name} must be one of {', '.join(map(repr, get_args(known)))}, got {word!r}")


def canonical_axis(axis: int, name: str, shape: tuple[int, ...]) -> int:
    """Returns an axis of the array called `name`, counted from the front."""
    axis = integer("axis", axis)
    if not -len(shape) <= axis < len(shape):
        raise ValueError(f"axis must be an axis of {name}, got axis={axis} for {name} {shape}")
    return axis % len(shape)


def _and(names: Iterable[str], arrays: Iterable[jax.Array] | None = None) -> str:
    """Returns "a, b and c", each with its shape where the arrays are given."""
    words = list(names) if arrays is None else [f"{n} {a.shape}" for n, a in zip(names, arrays, strict=True)]
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
