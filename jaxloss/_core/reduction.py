"""Reductions of losses: sums, weighted means, and the pairs of sum and weight."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, overload

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from jaxloss._core.arguments import (
    arithmetic_dtype,
    as_array,
    broadcastable,
    fill_masked,
    have_sizes,
    mask,
    refuse_unknown,
    values,
)
from jaxloss._core.decorator import compiled
from jaxloss._core.derivatives import derivatives, inverse_or_zero

Reduction = Literal["none", "mean", "sum", "sum_and_weight"]
BatchReduction = Literal["none", "mean", "sum", "batchmean", "sum_and_weight"]


def reduce_elementwise(
    loss: Callable[..., jax.Array],
    arrays: Sequence[jax.Array],
    options: Sequence[ArrayLike] = (),
    *,
    weight: ArrayLike | None = None,
    where: ArrayLike | None = None,
    reduction: str,
    words: Any = Reduction,
    is_mean_over_weight: bool = False,
) -> Any:
    """Reduces an elementwise loss.

    Args:
        loss: The loss, a function of arrays and options of one dtype that is finite where all of them are 1.
        arrays: Arrays of equal rank. The first has the shape of the losses; the others broadcast to it.
        options: Scalars.
        weight: Multiplies each loss; broadcasts to the losses.
        where: Boolean mask that broadcasts to the losses. Masked elements never enter any arithmetic.
        reduction: One of `words`.
        words: `Reduction`, or `BatchReduction` for a loss with a mean over the batch.
        is_mean_over_weight: Whether the mean is over the sum of the weights, not the number of losses.

    Returns:
        What `reduce_losses` returns.
    """
    where = mask(where, arrays[0])
    dtype = arithmetic_dtype(*arrays)
    # Mask before widening, so that nothing wide is written out. Arrays that broadcast are widened first,
    # since their gradients are sums.
    arrays = [array if array.shape == arrays[0].shape else array.astype(dtype) for array in arrays]
    wide = [fill_masked(where, array, 1).astype(dtype) for array in arrays]
    losses = loss(*wide, *(jnp.asarray(option, dtype).reshape([1] * wide[0].ndim) for option in options))
    if weight is not None:
        weight = broadcastable("weight", as_array("weight", weight).astype(dtype), losses)
        losses = losses * fill_masked(where, weight)
    return reduce_losses(losses, weight if is_mean_over_weight else None, where, reduction, words)


def reduce_losses(
    losses: jax.Array,
    weight: jax.Array | None,
    where: jax.Array | None,
    reduction: str,
    words: Any = Reduction,
    axis_name: str | None = None,
) -> Any:
    """Reduces losses that already carry their weights.

    Args:
        losses: Weighted losses, of any shape.
        weight: The weight of each loss in the mean's denominator, broadcastable to `losses`. Default: 1.
        where: Boolean, broadcastable to `losses`; masked losses add 0 to the sum and to the denominator.
        reduction: One of `words`.
        words: `Reduction`, or `BatchReduction` for a loss with a mean over the batch.
        axis_name: Inside `jax.shard_map`, the mesh axis that shards the losses: "mean" and "sum" are over all
            devices.

    Returns:
        The losses, their mean, their sum, their sum divided by the number of rows with an unmasked loss
        (rows along the first axis), or the pair (sum, weight) with mean == sum / weight.
    """
    refuse_unknown("reduction", reduction, words)
    losses = fill_masked(where, losses)
    if reduction == "none":
        return losses
    total = jnp.sum(losses)
    if axis_name is not None and reduction != "sum_and_weight":
        total = lax.psum(total, axis_name)
    if reduction == "sum":
        return total
    shape = losses.shape
    if reduction == "batchmean":
        shape, where = shape[:1], None if where is None else jnp.any(where, tuple(range(1, len(shape))))
    denominator = _total_weight(shape, losses.dtype, weight, where)
    if reduction == "sum_and_weight":
        return total, denominator
    return mean(total, denominator if axis_name is None else lax.psum(denominator, axis_name))


@derivatives(
    lambda total, weight: inverse_or_zero(weight),
    lambda total, weight: -total * jnp.square(inverse_or_zero(weight)),
)
def mean(total: jax.Array, weight: jax.Array) -> jax.Array:
    """Returns total / weight, which is NaN with gradient 0 for weight 0."""
    return jnp.where(weight == 0, 0, total) / weight


def _total_weight(
    shape: tuple[int, ...], dtype: Any, weight: jax.Array | None, where: jax.Array | None
) -> jax.Array:
    """Returns the sum over `shape` of the weights that are not masked."""
    count = math.prod(shape)
    given = [array for array in (weight, where) if array is not None]
    if not given or count == 0:
        return jnp.asarray(count, dtype)
    if weight is None:
        added = _count(given[0]).astype(dtype)
    else:
        added = jnp.sum(weight if where is None else jnp.where(where, weight, 0))
    # Sum before broadcasting, and multiply by the number of repetitions.
    size = math.prod(jnp.broadcast_shapes(*(array.shape for array in given)))
    return added * jnp.asarray(count // size, dtype)


def _count(where: jax.Array) -> jax.Array:
    """Returns the number of True elements, counted in integers: float32 is inexact above 2**24."""
    if have_sizes(where) and where.size >= 2**31:
        return jnp.sum(jnp.sum(where, -1, dtype=int).astype(float))
    return jnp.sum(where, dtype=int)


@overload
def reduce(
    losses: ArrayLike,
    weight: ArrayLike | None = None,
    where: ArrayLike | None = None,
    reduction: Literal["none", "mean", "sum"] = "mean",
) -> jax.Array: ...
@overload
def reduce(
    losses: ArrayLike,
    weight: ArrayLike | None = None,
    where: ArrayLike | None = None,
    *,
    reduction: Literal["sum_and_weight"],
) -> tuple[jax.Array, jax.Array]: ...
@compiled(static=("reduction",))
def reduce(
    losses: ArrayLike,
    weight: ArrayLike | None = None,
    where: ArrayLike | None = None,
    reduction: Reduction = "mean",
) -> Any:
    """Reduces custom or weighted losses as every loss in this package does.

        mean = (Σ weight · loss) / Σ weight    over the elements that are not masked

    Args:
        losses: Losses of any shape, such as those of `reduction="none"`.
        weight: Weight of each loss, broadcast to the shape of `losses`. Default: 1.
        where: Mask, broadcast to the shape of `losses`; see `help(jaxloss)`.
        reduction: "mean" (divides by Σ weight), "sum", "none" or "sum_and_weight".

    Returns:
        A scalar; for "none", the weighted losses in the shape of `losses`, 0 where masked; for
        "sum_and_weight", the pair (Σ weight · loss, Σ weight).

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxloss
        >>> losses = jaxloss.mse_loss(jnp.array([1.0, 2.0, 4.0]), jnp.zeros(3), reduction="none")
        >>> jaxloss.reduce(losses, weight=jnp.array([1.0, 1.0, 0.0]))
        Array(2.5, dtype=float32)
    """
    (losses,) = values(losses=losses)
    where = mask(where, losses)
    losses = fill_masked(where, losses)
    if weight is not None:
        weight = broadcastable("weight", as_array("weight", weight).astype(losses.dtype), losses)
        weight = fill_masked(where, weight)
        losses = losses * weight
    return reduce_losses(losses, weight, where, reduction)
