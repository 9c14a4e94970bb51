"""What "mean" means: the one place that turns the losses of a batch into the number that is asked for."""

import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args, overload

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxloss._core.arguments import (
    arithmetic_dtype,
    as_array,
    have_sizes,
    hide,
    mask,
    stretchable,
    values,
    without,
)
from jaxloss._core.classes import COMPLEX, COMPUTED, ClassAxis, sum_of
from jaxloss._core.decorator import compiled
from jaxloss._core.elementwise import in_one_loop, total

Reduction = Literal["none", "mean", "sum", "sum_and_weight"]
BatchReduction = Literal["none", "mean", "sum", "batchmean", "sum_and_weight"]


def reduce_each(
    loss: Callable[..., jax.Array],
    arrays: Sequence[jax.Array],
    options: Sequence[ArrayLike] = (),
    *,
    weight: ArrayLike | None = None,
    where: ArrayLike | None = None,
    reduction: str,
    words: Any = Reduction,
    is_mean_over_weight: bool = False,
    classes: ClassAxis | None = None,
    are_stored: bool = True,
) -> Any:
    """Reduces a loss of each element on its own.

    Args:
        loss: The loss of arrays, which it widens, and options, defined wherever all of them are 1.
        arrays: The first has the shape of the losses, to which the others stretch, with as many axes.
        options: Numbers that hold for all elements.
        weight: By what each loss is multiplied; stretches to the shape of the losses.
        where: Boolean mask that stretches to the shape of the losses, without the class axis if there is one.
            What it leaves out is never seen.
        reduction: One of `words`.
        words: `Reduction`, or `BatchReduction` for a loss with a mean over the batch.
        is_mean_over_weight: Whether the mean is over the sum of the weights, not the number of losses.
        classes: The axis over which the losses of a position are added up first.
        are_stored: Whether the arrays lie in memory, and are not computed while they are summed.

    Returns:
        The losses, their mean, their sum, the sum divided by the number of rows of the first axis that the
        mask does not empty, or the pair (sum, weight), as `reduce_weighted` does.
    """
    _refuse_unknown(reduction, words)
    shape, dtype = arrays[0].shape, arithmetic_dtype(*arrays)
    # What stretches has a gradient that is a sum, which is rounded once.
    arrays = [
        array.astype(dtype) if array.shape != shape and jnp.issubdtype(array.dtype, jnp.floating) else array
        for array in arrays
    ]
    where = mask(where, shape if classes is None else without(shape, classes.position))
    behind = where if where is None or classes is None else classes.expand(where)
    if weight is not None:
        weight = stretchable("weight", as_array("weight", weight).astype(dtype), shape)
    options = [jnp.asarray(option, dtype).reshape([1] * len(shape)) for option in options]
    leaves, structure = jax.tree.flatten((arrays, options, weight, behind))

    def of_each(*leaves: jax.Array) -> jax.Array:
        arrays, options, weight, behind = jax.tree.unflatten(structure, leaves)
        losses = loss(*(hide(behind, array, 1) for array in arrays), *options)
        return hide(behind, losses if weight is None else losses * hide(behind, weight))

    if reduction == "none":
        if classes is None:
            return of_each(*leaves)
        # If not in steps of classes, then from one loop.
        steps = COMPLEX if are_stored else COMPUTED
        return sum_of(lambda *leaves: in_one_loop(of_each(*leaves)), tuple(leaves), classes, steps)
    summed = total(of_each, *leaves) if are_stored else jnp.sum(of_each(*leaves))
    if classes is not None:
        summed, shape = classes.joined(summed), without(shape, classes.position)
    if reduction == "batchmean":
        where = None if where is None else jnp.any(where, tuple(range(1, len(shape))))
        return mean(summed, _total_weight(shape[:1], dtype, None, where))
    denominator = weight if is_mean_over_weight else None
    return _reduced(summed, _total_weight(shape, dtype, denominator, where), reduction)


def reduce_weighted(
    losses: jax.Array, weight: jax.Array | None, where: jax.Array | None, reduction: str
) -> Any:
    """Reduces losses that already carry their weights.

    Args:
        losses: Weighted losses, of any shape.
        weight: What each loss adds to the mean's denominator, stretches to `losses`; None is 1 each.
        where: Boolean, stretches to `losses`; what it leaves out is 0 in the sum and in the denominator.
        reduction: One of `Reduction`.

    Returns:
        The losses, their mean, their sum, or the pair (sum, weight) with mean == sum / weight. The mean over
        no weight at all is NaN, with a gradient of zero as in PyTorch.
    """
    _refuse_unknown(reduction, Reduction)
    losses = hide(where, losses)
    if reduction == "none":
        return losses
    return _reduced(jnp.sum(losses), _total_weight(losses.shape, losses.dtype, weight, where), reduction)


def _refuse_unknown(reduction: str, words: Any) -> None:
    if reduction not in get_args(words):
        raise ValueError(
            f"reduction must be one of {', '.join(map(repr, get_args(words)))}, got {reduction!r}"
        )


def _reduced(summed: jax.Array, weight: jax.Array, reduction: str) -> Any:
    if reduction == "sum":
        return summed
    return mean(summed, weight) if reduction == "mean" else (summed, weight)


def mean(total: jax.Array, weight: jax.Array) -> jax.Array:
    """Returns total / weight; over no weight it is NaN, with a gradient of zero."""
    empty = weight == 0
    return jnp.where(empty, jnp.nan, total / jnp.where(empty, 1, weight))


def _total_weight(
    shape: tuple[int, ...], dtype: Any, weight: jax.Array | None, where: jax.Array | None
) -> jax.Array:
    given, count = [array for array in (where, weight) if array is not None], math.prod(shape)
    if not given or count == 0:
        return jnp.asarray(count, dtype)
    # What repeats itself is added up once.
    size = math.prod(jnp.broadcast_shapes(*(array.shape for array in given)))
    if weight is None:
        added = _count(given[0]).astype(dtype)
    else:
        added = total(lambda *given: given[0] if where is None else hide(*given), *given).astype(dtype)
    return added * jnp.asarray(count // size, dtype)


def _count(where: jax.Array) -> jax.Array:
    """Returns how often a mask is True: as an integer, exact above 2**24, while that holds its size."""
    if have_sizes(where) and where.size >= 2**31:
        return jnp.sum(jnp.sum(where, -1, dtype=int).astype(float))
    return total(lambda where: where.astype(int), where)


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
    """Reduces losses as every loss here does: for losses of your own, or with a weight for each sample.

    The mean is Σ weight · loss / Σ weight over what `where` leaves in.

    Args:
        losses: Losses of any shape and real dtype, such as those of `reduction="none"`.
        weight: Weights that broadcast to the shape of `losses`. Default: 1 each.
        where: Boolean mask that broadcasts to the shape of `losses`; what lies behind False has no influence.
        reduction: "none" for the weighted losses, "mean", "sum", or "sum_and_weight" for the pair
            (Σ weight · loss, Σ weight). Pairs add up over micro-batches, devices and hosts to an exact mean.

    Returns:
        The weighted losses in their shape for "none", two scalars for "sum_and_weight", else a scalar;
        float32, or float64 where `losses` are. The mean over no weight is NaN, the sum 0.

    Raises:
        TypeError: An argument is not a real array, or `where` is not boolean.
        ValueError: `weight` or `where` does not broadcast to the losses' shape, or the reduction is unknown.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxloss
        >>> losses = jaxloss.mse_loss(jnp.array([1.0, 2.0, 4.0]), jnp.zeros(3), reduction="none")
        >>> jaxloss.reduce(losses, weight=jnp.array([1.0, 1.0, 0.0]))
        Array(2.5, dtype=float32)
    """
    (losses,) = values(losses=losses)
    where = mask(where, losses.shape)
    losses = hide(where, losses)
    if weight is not None:
        weight = stretchable("weight", as_array("weight", weight).astype(losses.dtype), losses.shape)
        weight = hide(where, weight)
        losses = losses * weight
    return reduce_weighted(losses, weight, where, reduction)
