"""Arguments become arrays that agree: conversion, dtype, shapes, the class axis, masks.

Everything here runs while a loss is traced, so it costs nothing per call.
"""

import operator
from collections.abc import Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike


def agree(**arrays: ArrayLike) -> list[jax.Array]:
    """Returns the named arguments as real arrays, or refuses what is not of one shape."""
    converted = [as_array(name, array) for name, array in arrays.items()]
    if len({array.shape for array in converted}) > 1:
        raise ValueError(f"{_and(arrays)} must have the same shape, got {_and(arrays, converted)}")
    return converted


def values(**arrays: ArrayLike) -> list[jax.Array]:
    """Returns the named arguments as floating arrays of one dtype, float32 or wider."""
    return widened(*(as_array(name, array) for name, array in arrays.items()))


def widened(*arrays: jax.Array) -> list[jax.Array]:
    """Returns real arrays in the dtype of their arithmetic."""
    dtype = arithmetic_dtype(*arrays)
    return [array.astype(dtype) for array in arrays]


def of_one_dtype(*arrays: jax.Array) -> list[jax.Array]:
    """Returns real arrays as they came if they have one dtype, else in that of their arithmetic."""
    return list(arrays) if len({array.dtype for array in arrays}) == 1 else widened(*arrays)


def arithmetic_dtype(*arrays: jax.Array) -> np.dtype:
    """Returns float64 where an array is, else float32: bfloat16 and float16 are too narrow to sum in.

    Integers and booleans, and Python's numbers beside arrays, follow the others; alone they are the default
    float.
    """
    floating = [array for array in arrays if jnp.issubdtype(array.dtype, jnp.floating)]
    decisive = [array for array in floating if not jax.typeof(array).weak_type] or floating
    if not decisive:
        return jnp.dtype(jnp.result_type(float))
    return jnp.dtype(jnp.float64 if any(array.dtype.itemsize == 8 for array in decisive) else jnp.float32)


def widened_integers(array: jax.Array) -> jax.Array:
    """Returns integers in a dtype that compares with -1 and with any number of classes.

    What is too large for it is its largest number, which is no class either.
    """
    dtype = jnp.dtype(jnp.int64 if array.dtype.itemsize == 8 else jnp.int32)
    largest = jnp.iinfo(dtype).max
    if jnp.iinfo(array.dtype).max > largest:
        array = jnp.minimum(array, np.asarray(largest, array.dtype))
    return array.astype(dtype)


def have_sizes(*arrays: jax.Array) -> bool:
    """Whether the sizes of arrays are numbers, and not the symbols of a program that is exported for many."""
    return all(type(size) is int for array in arrays for size in array.shape)


def as_array(name: str, array: ArrayLike) -> jax.Array:
    """Returns a real array, or a TypeError that names the argument."""
    if not isinstance(array, jax.Array | np.ndarray | np.generic | bool | int | float):
        raise TypeError(f"{name} must be an array, got {type(array).__name__}")
    converted = jnp.asarray(array)
    real = jnp.issubdtype(converted.dtype, jnp.floating) or jnp.issubdtype(converted.dtype, jnp.integer)
    if not (real or converted.dtype == bool):
        raise TypeError(f"{name} must hold real numbers, got dtype {converted.dtype}")
    return converted


def broadcast(name: str, array: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Returns `array` in `shape`, or refuses what does not stretch to just that shape."""
    array = stretchable(name, array, shape)
    return array if array.shape == shape else jnp.broadcast_to(array, shape)


def stretchable(name: str, array: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Returns `array` with as many axes as `shape`, of its sizes or 1, or refuses it."""
    try:
        fits = jnp.broadcast_shapes(array.shape, shape) == shape
    except ValueError:
        fits = False
    if not fits:
        raise ValueError(f"{name} must broadcast to shape {shape}, got shape {array.shape}")
    return array.reshape((1,) * (len(shape) - array.ndim) + array.shape)


def mask(where: ArrayLike | None, shape: tuple[int, ...]) -> jax.Array | None:
    """Returns the mask, which stretches to `shape`, that of the losses before they are reduced."""
    if where is None:
        return None
    converted = as_array("where", where)
    if converted.dtype != bool:
        raise TypeError(f"where must be boolean, got dtype {converted.dtype}")
    return stretchable("where", converted, shape)


def hide(where: jax.Array | None, array: jax.Array, fill: float = 0) -> jax.Array:
    """Returns `array` with `fill` where the mask is False: what lies there must never meet arithmetic."""
    return array if where is None else jnp.where(where, array, jnp.asarray(fill, array.dtype))


def integer(name: str, value: Any) -> int:
    """Returns a Python integer that is known while tracing, or a TypeError that names the argument."""
    try:
        return operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an integer, got {value!r}") from None


def class_axis(axis: int, scores: str, shape: tuple[int, ...]) -> int:
    """Returns the class axis counted from the front, or refuses scores of no class."""
    position = canonical_axis(axis, scores, shape)
    if not shape[position]:
        raise ValueError(f"{scores} must have at least one class, got {scores} {shape} with axis={axis}")
    return position


def canonical_axis(axis: int, scores: str, shape: tuple[int, ...]) -> int:
    """Returns an axis counted from the front."""
    axis = integer("axis", axis)
    if not -len(shape) <= axis < len(shape):
        raise ValueError(f"axis must be an axis of {scores}, got axis={axis} for {scores} {shape}")
    return axis % len(shape)


def without(shape: tuple[int, ...], axis: int) -> tuple[int, ...]:
    """Returns `shape` without its class axis: the shape of the labels."""
    return (*shape[:axis], *shape[axis + 1 :])


def labels_of(targets: jax.Array, scores: str, shape: tuple[int, ...], axis: int | None) -> jax.Array:
    """Returns integer class labels, or refuses what does not fit `shape` without its class axis.

    Features have no class axis (None): the last one is theirs.
    """
    if not jnp.issubdtype(targets.dtype, jnp.integer):
        raise TypeError(f"targets must be integer class indices, got dtype {targets.dtype}")
    expected = shape[:-1] if axis is None else without(shape, axis)
    if targets.shape != expected:
        which, chosen, hint = "its last axis", "", ""
        if axis is not None:
            fitting = [other for other in range(len(shape)) if targets.shape == without(shape, other)]
            which, chosen = "the class axis", f" with axis={axis}"
            hint = f"; they would fit axis={fitting[0]}" if fitting else ""
        raise ValueError(
            f"targets must have the shape of {scores} without {which}, {expected}, "
            f"got targets {targets.shape} and {scores} {shape}{chosen}{hint}"
        )
    return targets


def _and(names: Iterable[str], arrays: Iterable[jax.Array] | None = None) -> str:
    """Returns "a, b and c", each with its shape where the arrays are given."""
    words = list(names) if arrays is None else [f"{n} {a.shape}" for n, a in zip(names, arrays, strict=True)]
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
