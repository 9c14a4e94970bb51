"""Sums of elementwise losses: on a CPU, too, one pass over many of them without a temporary array.

XLA:CPU hands a sum to a library that makes a pass over a piece of the cache for each operation before it, and
has none for selects and comparisons, whose result it writes out in full size. What adds one block of losses
after the other to a block of sums is compiled to a single loop instead, four times as fast for a loss with a
few operations, and may be written in whatever reads best. Few losses, and those of several devices, are
written out in one loop and then summed.
"""

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxloss._core.arguments import have_sizes
from jaxloss._core.derivatives import tangents_of

_BLOCKS = 64  # of losses: their sums are one block, which so takes 1/64 of an input's memory
_UNROLLED = 7  # blocks at a time are added to the sums; divides _BLOCKS - 1
_ALIGNED = 16  # losses: threads that share a block of another length do not vectorise it
_LEAST = 4096  # losses: fewer are summed at once, as fast


def total(loss: Callable[..., jax.Array], *arrays: jax.Array) -> jax.Array:
    """Returns the sum of an elementwise loss over arrays of equal rank, which broadcast against each other.

    The derivative is the sum of the loss's own, and is compiled to a loop of its own.
    """

    def of_all(*arrays: jax.Array) -> jax.Array:
        return jnp.sum(loss(*arrays))

    def at_once(*arrays: jax.Array) -> jax.Array:
        return jnp.sum(in_one_loop(loss(*arrays)))

    @jax.custom_jvp
    def summed(*arrays: jax.Array) -> jax.Array:
        on_cpu = functools.partial(_sum_in_blocks, loss) if _is_worth_blocks(arrays) else at_once
        return lax.platform_dependent(*arrays, cpu=on_cpu, default=of_all)

    def rule(primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[jax.Array, jax.Array]:
        return summed(*primals), jnp.sum(tangents_of(loss, primals, tangents))

    summed.defjvp(rule, symbolic_zeros=True)
    return summed(*arrays)


@jax.custom_jvp
def in_one_loop(array: jax.Array) -> jax.Array:
    """Returns the array, which XLA:CPU's library for sums leaves to one loop, as it has no selects.

    It is written out then, in full size: not worth it for what the library has all operations for.
    """
    return jnp.where(array == 0, 0, array)


in_one_loop.defjvps(lambda tangent, value, array: tangent)


def _is_worth_blocks(arrays: tuple[jax.Array, ...]) -> bool:
    # Blocks of arrays that are split over devices would have to be gathered.
    shape = _shape(arrays)
    return (
        have_sizes(*arrays)
        and math.prod(shape) >= _LEAST
        and math.prod(shape[: _count_of_row_axes(arrays)]) >= _BLOCKS
        and jax.device_count() == 1
        and not are_widened_ahead_of_a_loop(*arrays)
    )


def are_widened_ahead_of_a_loop(*arrays: jax.Array) -> bool:
    """Whether the compiler would write an array out in full size, in a wider dtype, for a loop over it."""
    is_narrow = any(jnp.issubdtype(array.dtype, jnp.floating) and array.itemsize < 4 for array in arrays)
    return is_narrow and jax.__version_info__ < (0, 12)


def _shape(arrays: tuple[jax.Array, ...]) -> tuple[int, ...]:
    return jnp.broadcast_shapes(*(array.shape for array in arrays))


def _count_of_row_axes(arrays: tuple[jax.Array, ...]) -> int:
    """Returns how many of the first axes can be made one, of rows.

    These are the axes along which no array repeats itself, except those that do so along all of them.
    """
    shape = _shape(arrays)
    count = len(shape)
    for array in arrays:
        repeated = [axis for axis in range(count) if array.shape[axis] != shape[axis]]
        whole = [axis for axis in range(count) if array.shape[axis] != 1]
        if repeated and whole:
            count = max(repeated[0], whole[0])
    return count


def _sum_in_blocks(loss: Callable[..., jax.Array], *arrays: jax.Array) -> jax.Array:
    count = _count_of_row_axes(arrays)
    size = math.prod(_shape(arrays)[:count])
    rows = [array.reshape(-1, *array.shape[count:]) for array in arrays]  # as many as there are, or one
    length = size // _BLOCKS
    if all(array.ndim == 1 for array in rows):
        length = length - length % _ALIGNED or length

    def of_block(first: int | jax.Array, length: int) -> jax.Array:
        return loss(
            *(
                lax.dynamic_slice_in_dim(array, first, length) if array.shape[0] == size else array
                for array in rows
            )
        )

    def add_block(i: int | jax.Array, sums: jax.Array) -> jax.Array:
        return sums + of_block(i * length, length)

    sums = jnp.sum(lax.fori_loop(1, _BLOCKS, add_block, of_block(0, length), unroll=_UNROLLED))
    rest = size - _BLOCKS * length
    return sums + jnp.sum(of_block(size - rest, rest)) if rest else sums
