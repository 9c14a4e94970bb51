"""What "mean" means: the one place that turns the losses of a batch into the number that is asked for."""

from typing import Any, Literal, get_args, overload

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxloss._arguments import as_array, broadcast, hide, mask, values
from jaxloss._compiled import compiled

Reduction = Literal["none", "mean", "sum", "sum_and_weight"]
BatchReduction = Literal["none", "mean", "sum", "batchmean", "sum_and_weight"]


def reduce_weighted(
    losses: jax.Array,
    weight: jax.Array | None,
    where: jax.Array | None,
    reduction: str,
    *,
    words: Any = Reduction,
) -> Any:
    """Reduces losses that already carry their weights.

    Args:
        losses: Weighted losses, of any shape.
        weight: What each loss adds to the mean's denominator, of the shape of `losses`; None is 1 each.
        where: Boolean, of the shape of `losses`; what it leaves out is 0 in the sum and in the denominator.
        reduction: One of `words`.
        words: `Reduction`, or `BatchReduction` for a loss with a mean over the batch, which has no weights.

    Returns:
        The losses, their mean, their sum, the sum divided by the number of rows of the first axis that the
        mask does not empty, or the pair (sum, weight) with mean == sum / weight. The mean over no weight at
        all is NaN, with a gradient of zero as in PyTorch.
    """
    if reduction not in get_args(words):
        raise ValueError(
            f"reduction must be one of {', '.join(map(repr, get_args(words)))}, got {reduction!r}"
        )
    losses = hide(where, losses)
    if reduction == "batchmean":
        within = tuple(range(1, losses.ndim))
        losses, where = jnp.sum(losses, within), None if where is None else jnp.any(where, within)
    if reduction == "none":
        return losses
    total = jnp.sum(losses)
    if reduction == "sum":
        return total
    denominator = _total_weight(losses, weight, where)
    return (total, denominator) if reduction == "sum_and_weight" else mean(total, denominator)


def mean(total: jax.Array, weight: jax.Array) -> jax.Array:
    """Returns total / weight; over no weight it is NaN, with a gradient of zero."""
    empty = weight == 0
    return jnp.where(empty, jnp.nan, total / jnp.where(empty, 1, weight))


def weighted(
    losses: jax.Array, weight: ArrayLike | None, where: jax.Array | None
) -> tuple[jax.Array, jax.Array | None]:
    """Returns the losses times their weights, and the weights in the shape of the losses."""
    if weight is None:
        return losses, None
    factor = as_array("weight", weight).astype(losses.dtype)
    factor = hide(where, broadcast("weight", factor, losses.shape))
    return losses * factor, factor


def _total_weight(losses: jax.Array, weight: jax.Array | None, where: jax.Array | None) -> jax.Array:
    if weight is not None:
        return jnp.sum(hide(where, weight))
    if where is not None:
        return jnp.sum(where, dtype=int).astype(losses.dtype)  # counted as integers: exact above 2**24
    return jnp.asarray(losses.size, losses.dtype)


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
    return reduce_weighted(*weighted(hide(where, losses), weight, where), where, reduction)
