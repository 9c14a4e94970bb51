"""Conversion and checks of arguments: dtypes, shapes, masks and shardings.

Everything except `from_host` and `tree_from_host` runs while a loss is traced and costs nothing per call.
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
    """Converts host arrays and objects with `__jax_array__` so that `jit` reads them without changing values.

    JAX ignores the byte order of big-endian arrays and the mask of masked arrays, and reduces 64-bit integers
    modulo 2**32 unless 64-bit types are enabled. Integers that do not fit stay 64-bit here.
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
    """Applies `from_host` to every leaf, named by its path."""
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
    """Returns the error for a value that is not an array, with the call that converts it."""
    kind = type(value)
    found, remedy = kind.__name__, ""
    if kind.__module__.partition(".")[0] == "torch":
        found, remedy = f"torch.{kind.__name__}", f"; pass {name}.detach().cpu().numpy()"
    elif isinstance(value, list | tuple):
        remedy = f"; pass jax.numpy.asarray({name})"
    return TypeError(f"{name} must be an array, got {found}{remedy}")


def agree(**arrays: Any) -> list[jax.Array]:
    """Returns the named arguments as real arrays of equal shape and sharding."""
    converted = [as_array(name, array) for name, array in arrays.items()]
    if len({array.shape for array in converted}) > 1:
        hint = extra_axis_hint(min((array.shape for array in converted), key=len), arrays, converted)
        raise ValueError(f"{_and(arrays)} must have the same shape, got {_and(arrays, converted)}{hint}")
    return with_common_sharding(converted)


def agree_except_last_axis(**arrays: Any) -> list[jax.Array]:
    """Returns an array, and the others, which lack its last axis, with one of size 1; all sharded alike."""
    first, *others = (as_array(name, array) for name, array in arrays.items())
    if not first.ndim or any(other.shape != first.shape[:-1] for other in others):
        name, *names = arrays
        raise ValueError(
            f"{_and(names)} must have the shape of {name} without its last axis, "
            f"got {_and(arrays, [first, *others])}{extra_axis_hint(first.shape[:-1], names, others)}"
        )
    return with_common_sharding([first, *(jnp.expand_dims(other, -1) for other in others)])


def extra_axis_hint(shape: tuple[int, ...], names: Iterable[str], arrays: Sequence[jax.Array]) -> str:
    """Returns the remedy if arrays have only an extra last axis of size 1, or an empty string."""
    extra = [f"{name}[..., 0]" for name, array in zip(names, arrays, strict=True) if array.shape != shape]
    fit = all(array.shape in (shape, (*shape, 1)) for array in arrays)
    return f"; pass {_and(extra)}" if extra and fit else ""


def with_common_sharding(arrays: Sequence[jax.Array]) -> list[jax.Array]:
    """Returns arrays with the replicated ones sharded like the first sharded one."""
    split = next((array for array in arrays if any(_shape_and_spec(array)[1])), arrays[0])
    return [sharded_like(split, array) for array in arrays]


def values(**arrays: Any) -> list[jax.Array]:
    """Returns the named arguments as floating-point arrays of one dtype, at least float32."""
    return widened(*(as_array(name, array) for name, array in arrays.items()))


def widened(*arrays: jax.Array) -> list[jax.Array]:
    """Returns real arrays in their arithmetic dtype."""
    dtype = arithmetic_dtype(*arrays)
    return [array.astype(dtype) for array in arrays]


def arithmetic_dtype(*arrays: jax.Array) -> np.dtype:
    """Returns float64 if an array has it, else float32: bfloat16 and float16 are too narrow for sums.

    Integers, booleans and Python numbers follow the other arrays; without any, they become the default float.
    """
    floating = [array for array in arrays if jnp.issubdtype(array.dtype, jnp.floating)]
    decisive = [array for array in floating if not jax.typeof(array).weak_type] or floating
    if not decisive:
        return jnp.dtype(jnp.result_type(float))
    return jnp.dtype(jnp.float64 if any(array.dtype.itemsize == 8 for array in decisive) else jnp.float32)


def index_array(name: str, indices: jax.Array) -> jax.Array:
    """Returns class indices or lengths as int32, or int64 if 64-bit types are enabled.

    Values outside its range are clipped to its limits, which are not valid indices either.
    """
    if not jnp.issubdtype(indices.dtype, jnp.integer):
        raise TypeError(f"{name} must be integers, got dtype {indices.dtype}")
    is_wide = indices.dtype.itemsize == 8 and jax.dtypes.canonicalize_dtype(np.int64) == np.int64
    limits, own = jnp.iinfo(jnp.int64 if is_wide else jnp.int32), jnp.iinfo(indices.dtype)
    if own.max > limits.max:
        low = np.asarray(max(own.min, limits.min), indices.dtype)
        high = np.asarray(limits.max, indices.dtype)
        with jax.enable_x64(True):  # otherwise the comparison itself would use 32 bits
            return jnp.clip(indices, low, high).astype(limits.dtype)
    return indices.astype(limits.dtype)


def sample_lengths(name: str, lengths: ArrayLike, samples: tuple[int, ...], hint: str = "") -> jax.Array:
    """Returns the lengths, one for each sample, in the dtype of indices; `hint` ends the error message."""
    converted = index_array(name, as_array(name, lengths))
    if converted.shape != samples:
        raise ValueError(
            f"{name} must have one length for each sample, shape {samples}, got {converted.shape}{hint}"
        )
    return converted


def exact_labels(name: str, labels: jax.Array) -> tuple[jax.Array, ...]:
    """Returns labels as int32 arrays that are all equal where the labels are: 64-bit labels as two halves."""
    if not jnp.issubdtype(labels.dtype, jnp.integer):
        raise TypeError(f"{name} must be integers, got dtype {labels.dtype}")
    if labels.dtype.itemsize < 8:
        return (labels.astype(jnp.int32),)
    with jax.enable_x64(True):
        return labels.astype(jnp.int32), (labels >> np.asarray(32, labels.dtype)).astype(jnp.int32)


def have_sizes(*arrays: jax.Array) -> bool:
    """Whether all sizes are integers, not the symbolic dimensions of an exported program."""
    return all(type(size) is int for array in arrays for size in array.shape)


def broadcastable(name: str, array: jax.Array, like: jax.Array, without: Sequence[int] = ()) -> jax.Array:
    """Returns `array` with the rank and sharding of `like`, and with its sizes or 1.

    `without` lists the axes of `like` that `array` does not have.
    """
    shape, _ = _shape_and_spec(like, without)
    try:
        fits = jnp.broadcast_shapes(array.shape, shape) == shape
    except ValueError:
        fits = False
    if not fits:
        hint = extra_axis_hint(shape, [name], [array])
        raise ValueError(f"{name} must broadcast to shape {shape}, got shape {array.shape}{hint}")
    return sharded_like(like, array.reshape((1,) * (len(shape) - array.ndim) + array.shape), without)


def mask(where: ArrayLike | None, like: jax.Array, without: Sequence[int] = ()) -> jax.Array | None:
    """Returns the mask, `broadcastable` to `like`."""
    if where is None:
        return None
    converted = as_array("where", where)
    if converted.dtype != bool:
        raise TypeError(
            f"where must be boolean, got dtype {converted.dtype}; pass `where != 0`, or for weights use "
            "jaxloss.reduce(weight=...)"
        )
    return broadcastable("where", converted, like, without)


def fill_masked(where: jax.Array | None, array: jax.Array, fill: float = 0) -> jax.Array:
    """Returns `array` with `fill` at masked elements, which therefore never enter any arithmetic."""
    return array if where is None else jnp.where(where, array, jnp.asarray(fill, array.dtype))


def masked_items(
    arrays: Sequence[jax.Array], rank: int, where: ArrayLike | None
) -> tuple[list[jax.Array], jax.Array | None]:
    """Returns arrays with masked items set to 0, and the mask; an item is an array over the last `rank` axes.

    The arrays have the shape of the first, except that they may have size 1 along the axes of an item.
    """
    inner = range(arrays[0].ndim - rank, arrays[0].ndim)
    where = mask(where, arrays[0], inner)
    expanded = None if where is None else jnp.expand_dims(where, inner)
    return [fill_masked(expanded, array) for array in arrays], where


def any_left(where: jax.Array | None, shape: Sequence[int], axes: Sequence[int]) -> jax.Array | None:
    """Returns where a mask over `shape` leaves any element along `axes`; None means everywhere."""
    if where is None:
        if math.prod(shape[axis] for axis in axes) != 0:
            return None
        where = jnp.zeros([1] * len(shape), bool)
    return jnp.any(where, tuple(axes))


def sharded_like(like: jax.Array, array: jax.Array, without: Sequence[int] = ()) -> jax.Array:
    """Returns a replicated array sharded over explicit mesh axes like `like`, which has the same rank.

    JAX adds arrays with different shardings, but refuses to select between them.
    """
    _, spec = _shape_and_spec(like, without)
    if not any(spec) or any(_shape_and_spec(array)[1]):
        return array
    spec = [part if size > 1 else None for part, size in zip(spec, array.shape, strict=True)]
    sharding: Any = jax.typeof(like).sharding
    return jax.sharding.reshard(array, NamedSharding(sharding.mesh, PartitionSpec(*spec)))


def resharded_like(like: jax.Array, array: jax.Array) -> jax.Array:
    """Returns an array sharded over explicit mesh axes like `like`, which has the same shape."""
    sharding: Any = jax.typeof(like).sharding
    return jax.sharding.reshard(array, sharding) if any(sharding.spec) else array


def last_axis_unsharded(array: jax.Array) -> jax.Array:
    """Returns the array with its last axis not sharded over any explicit mesh axis."""
    sharding: Any = jax.typeof(array).sharding
    if not _shape_and_spec(array)[1][-1]:
        return array
    spec = PartitionSpec(*sharding.spec[:-1], None)
    return jax.sharding.reshard(array, NamedSharding(sharding.mesh, spec))


def sharded_alike(arrays: Sequence[jax.Array], axes: Sequence[int]) -> list[jax.Array]:
    """Returns arrays with replicated ones sharded along their axis like the first one sharded along its."""
    parts = [_shape_and_spec(array)[1][axis] for array, axis in zip(arrays, axes, strict=True)]
    like, part = next(
        ((array, part) for array, part in zip(arrays, parts, strict=True) if part), (None, None)
    )
    if like is None:
        return list(arrays)
    sharding: Any = jax.typeof(like).sharding

    def laid_out(array: jax.Array, axis: int) -> jax.Array:
        if any(_shape_and_spec(array)[1]):
            return array
        spec = PartitionSpec(*(part if position == axis else None for position in range(array.ndim)))
        return jax.sharding.reshard(array, NamedSharding(sharding.mesh, spec))

    return [laid_out(array, axis) for array, axis in zip(arrays, axes, strict=True)]


def on_automatic_axes(function: Callable[..., Any], like: jax.Array, *split: int) -> Callable[..., Any]:
    """Makes explicit mesh axes automatic inside a function, so that the compiler places its sums.

    Args:
        function: Returns arrays with an axis for each of `split`.
        like: An array on the mesh.
        split: The axes of `like` whose sharding the axes of the results take.
    """
    sharding: Any = jax.typeof(like).sharding
    mesh = sharding.mesh
    axes = zip(mesh.axis_names, mesh.axis_types, strict=True)
    explicit = tuple(name for name, kind in axes if kind == AxisType.Explicit)
    if not explicit:
        return function
    _, parts = _shape_and_spec(like)
    out = NamedSharding(mesh, PartitionSpec(*(parts[axis] for axis in split)))
    return jax.sharding.auto_axes(function, axes=explicit, out_sharding=out)


def _shape_and_spec(array: jax.Array, without: Sequence[int] = ()) -> tuple[tuple[int, ...], list[Any]]:
    """Returns the shape of an array, and for each axis the explicit mesh axes that shard it."""
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
    """Raises a ValueError unless `word` is a value of the `Literal` type `known`."""
    if word not in get_args(known):
        raise ValueError(f"{name} must be one of {', '.join(map(repr, get_args(known)))}, got {word!r}")


def canonical_axis(axis: int, name: str, shape: tuple[int, ...]) -> int:
    """Returns an axis of the array called `name` as a nonnegative integer."""
    axis = integer("axis", axis)
    if not -len(shape) <= axis < len(shape):
        raise ValueError(f"axis must be an axis of {name}, got axis={axis} for {name} {shape}")
    return axis % len(shape)


def _and(names: Iterable[str], arrays: Iterable[jax.Array] | None = None) -> str:
    """Returns "a, b and c", each with its shape where the arrays are given."""
    words = list(names) if arrays is None else [f"{n} {a.shape}" for n, a in zip(names, arrays, strict=True)]
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
