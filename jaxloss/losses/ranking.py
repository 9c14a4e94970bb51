"""Ranking losses, on lists of items with scores and relevance."""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from jaxloss._core.arguments import (
    agree,
    any_left,
    as_array,
    broadcastable,
    fill_masked,
    have_sizes,
    mask,
    widened,
)
from jaxloss._core.checks import checked, one_or_nan
from jaxloss._core.decorator import compiled, positive
from jaxloss._core.derivatives import (
    cumulative_exponentials,
    inverse_or_zero,
    log_of_total,
    log_ratio,
    sigmoid,
    softplus,
    weighted,
)
from jaxloss._core.reduction import Reduction, reduce_losses

_AT_ONCE = 2**22  # pairs of a block
_UNKNOWN = 256  # items of a block in a program exported for any number of lists


@compiled(static=("reduction",))
def softmax_ranking_loss(
    scores: ArrayLike,
    targets: ArrayLike,
    *,
    weight: ArrayLike | None = None,
    where: ArrayLike | None = None,
    reduction: Reduction = "mean",
) -> jax.Array:
    """Softmax cross-entropy between the scores and the relevance of the items of a list (ListNet).

        loss = -Σ_i weight[i] · targets[i] · log_softmax(scores)[i]    over the items of a list

    Args:
        scores: Scores of the items, shape (..., L).
        targets: Relevance of the items, numbers >= 0, of the shape of `scores`.
        weight: Weight of each item, broadcast to the shape of `scores`. Default: 1.
        where: Mask of the items, broadcast to the shape of `scores`.
        reduction: "mean" (divides by the number of lists with an item), "sum", "none" or "sum_and_weight".

    Returns:
        A scalar, or an array of shape (...) for "none"; in nats.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxloss
        >>> jaxloss.softmax_ranking_loss(jnp.array([2.0, 1.0, 0.0]), jnp.array([1.0, 0.0, 2.0]))
        Array(5.2228, dtype=float32)

    Source:
        Z. Cao et al. (2007), Learning to Rank: From Pairwise Approach to Listwise Approach. Rax
        documentation: rax.softmax_loss.
    """
    scores, targets, where = _lists(scores, targets, where)
    targets = _not_negative(targets)
    if weight is not None:
        of_items = broadcastable("weight", as_array("weight", weight), scores)
        targets = targets * fill_masked(where, of_items).astype(scores.dtype)
    largest = _largest(scores, where)
    total = jnp.sum(fill_masked(where, jnp.exp(scores - largest)), -1, keepdims=True)
    nll = log_of_total(total) - (scores - largest)
    losses = jnp.sum(weighted(targets, fill_masked(where, nll)), -1)
    return reduce_losses(losses, None, any_left(where, scores.shape, [-1]), reduction)


@compiled(static=("reduction",))
def listmle_loss(
    scores: ArrayLike,
    targets: ArrayLike,
    *,
    where: ArrayLike | None = None,
    reduction: Reduction = "mean",
) -> jax.Array:
    """Negative log-likelihood of the correct order of a list under the Plackett-Luce model (ListMLE).

    With the items in descending order of their relevance, and items of equal relevance in the given order,

        loss = Σ_i (log Σ_{j≥i} exp(scores[j]) - scores[i])

    Args:
        scores: Scores of the items, shape (..., L). A mesh with `Explicit` axes must not shard the items.
        targets: Relevance of the items, any numbers, of the shape of `scores`.
        where: Mask of the items, broadcast to the shape of `scores`.
        reduction: "mean" (divides by the number of lists with an item), "sum", "none" or "sum_and_weight".

    Returns:
        A scalar, or an array of shape (...) for "none"; in nats.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxloss
        >>> jaxloss.listmle_loss(jnp.array([2.0, 1.0, 0.0]), jnp.array([1.0, 0.0, 2.0]))
        Array(2.7209, dtype=float32)

    Source:
        F. Xia et al. (2008), Listwise Approach to Learning to Rank. Rax documentation: rax.listmle_loss.
    """
    scores, targets, where = _lists(scores, targets, where)
    is_masked = jnp.zeros_like(scores, bool) if where is None else jnp.broadcast_to(~where, scores.shape)
    order = jnp.lexsort((-lax.stop_gradient(targets), is_masked), -1)
    ordered = jnp.take_along_axis(fill_masked(where, scores, -jnp.inf), order, -1)
    largest, total = (
        array[..., 1:] for array in cumulative_exponentials(ordered, ordered.ndim - 1, reverse=True)
    )
    gaps = log_ratio(largest, ordered[..., :-1]) + log_of_total(total)
    is_left = jnp.take_along_axis(~is_masked, order, -1)[..., 1:]
    losses = jnp.sum(softplus(fill_masked(is_left, gaps, -jnp.inf)), -1) * _one_or_nan(targets)
    return reduce_losses(losses, None, any_left(where, scores.shape, [-1]), reduction)


@compiled(static=("reduction",))
def pairwise_logistic_loss(
    scores: ArrayLike,
    targets: ArrayLike,
    *,
    weight: ArrayLike | None = None,
    where: ArrayLike | None = None,
    reduction: Reduction = "mean",
) -> jax.Array:
    """Pairwise logistic loss on the pairs of items of different relevance in a list (RankNet).

        loss = Σ weight[i] · log(1 + exp(scores[j] - scores[i]))    over pairs with targets[i] > targets[j]

    The pairs are never all in memory.

    Args:
        scores: Scores of the items, shape (..., L). A mesh with `Explicit` axes must not shard the items.
        targets: Relevance of the items, any numbers, of the shape of `scores`.
        weight: Weight of each item, broadcast to the shape of `scores`. Default: 1.
        where: Mask of the items, broadcast to the shape of `scores`.
        reduction: "mean" (divides by the number of pairs of all lists), "sum", "none" or "sum_and_weight".

    Returns:
        A scalar, or an array of shape (...) for "none", the sum over the pairs of each list; in nats.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxloss
        >>> jaxloss.pairwise_logistic_loss(jnp.array([2.0, 1.0, 0.0]), jnp.array([1.0, 0.0, 2.0]))
        Array(1.2511, dtype=float32)

    Source:
        C. Burges et al. (2005), Learning to Rank Using Gradient Descent. Rax documentation:
        rax.pairwise_logistic_loss.
    """
    scores, targets, where = _lists(scores, targets, where)
    of_items = jnp.ones([1] * scores.ndim, scores.dtype)
    if weight is not None:
        of_items = broadcastable("weight", as_array("weight", weight), scores).astype(scores.dtype)
    of_items = jnp.broadcast_to(fill_masked(where, of_items), scores.shape)
    counts = jnp.ones_like(scores, bool) if where is None else jnp.broadcast_to(where, scores.shape)

    def of_block(items: tuple[jax.Array, ...]) -> tuple[jax.Array, jax.Array]:
        score, target, weight, counted = (array[..., None] for array in items)
        is_pair = (target > targets[..., None, :]) & counted & counts[..., None, :]
        losses = weight * softplus(fill_masked(is_pair, log_ratio(scores[..., None, :], score)))
        return jnp.sum(fill_masked(is_pair, losses), -1), jnp.sum(is_pair, -1, dtype=scores.dtype)

    losses, pairs = (
        jnp.sum(array, -1) for array in _in_blocks(of_block, (scores, targets, of_items, counts))
    )
    return reduce_losses(losses * _one_or_nan(targets), pairs, None, reduction)


@compiled(static=("reduction",), domains={"temperature": positive})
def approx_ndcg_loss(
    scores: ArrayLike,
    targets: ArrayLike,
    *,
    temperature: ArrayLike = 1.0,
    where: ArrayLike | None = None,
    reduction: Reduction = "mean",
) -> jax.Array:
    """ApproxNDCG loss: one minus a smooth normalized discounted cumulative gain (NDCG).

    With the logistic function σ and the approximate ranks r[i] = ½ + Σ_j σ((scores[j] - scores[i]) /
    temperature) over all items of a list, including i,

        loss = 1 - 1 / ideal · Σ_i (2^targets[i] - 1) / log2(1 + r[i])

    where the ideal is the same sum with the ranks 1, 2, ... in descending order of the targets.

    Args:
        scores: Scores of the items, shape (..., L). A mesh with `Explicit` axes must not shard the items.
        targets: Relevance of the items, numbers >= 0, of the shape of `scores`.
        temperature: A number > 0; the smaller, the closer r is to the ranks.
        where: Mask of the items, broadcast to the shape of `scores`.
        reduction: "mean" (divides by the number of lists with a relevant item), "sum", "none" or
            "sum_and_weight".

    Returns:
        A scalar, or an array of shape (...) for "none"; a list without a relevant item has loss 0.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxloss
        >>> jaxloss.approx_ndcg_loss(jnp.array([2.0, 1.0, 0.0]), jnp.array([1.0, 0.0, 2.0]))
        Array(0.3348, dtype=float32)

    Differences from other libraries:
        * Rax and TensorFlow Ranking return the negative NDCG, and the latter uses temperature 0.1.

    Source:
        T. Qin, T.-Y. Liu and H. Li (2010), A General Approximation Framework for Direct Optimization of
        Information Retrieval Measures.
    """
    scores, targets, where = _lists(scores, targets, where)
    targets = _not_negative(targets)
    sharpness = 1 / jnp.asarray(temperature, scores.dtype)
    counts = jnp.ones_like(scores, bool) if where is None else jnp.broadcast_to(where, scores.shape)

    def of_block(items: tuple[jax.Array, ...]) -> tuple[jax.Array]:
        ahead = sigmoid(sharpness * log_ratio(scores[..., None, :], items[0][..., None]))
        return (jnp.sum(fill_masked(counts[..., None, :], ahead), -1) + 0.5,)

    (ranks,) = _in_blocks(of_block, (scores,))
    gains = jnp.expm1(math.log(2) * targets)
    found = jnp.sum(fill_masked(where, gains / _discount(ranks)), -1)
    best = -jnp.sort(-gains, -1)
    places = jnp.arange(1, scores.shape[-1] + 1, dtype=scores.dtype).reshape([1] * (scores.ndim - 1) + [-1])
    ideal = jnp.sum(best / _discount(places), -1)
    losses = fill_masked(ideal != 0, 1 - found * inverse_or_zero(ideal))
    return reduce_losses(losses, (ideal != 0).astype(losses.dtype), None, reduction)


def _lists(
    scores: ArrayLike, targets: ArrayLike, where: ArrayLike | None
) -> tuple[jax.Array, jax.Array, jax.Array | None]:
    """Returns scores and targets of one dtype, 0 where masked, and the mask of the items."""
    arrays = agree(scores=scores, targets=targets)
    if not arrays[0].ndim:
        raise ValueError("scores must have shape (..., L), got shape ()")
    where = mask(where, arrays[0])
    scores, targets = widened(*(fill_masked(where, array) for array in arrays))
    return scores, targets, where


def _not_negative(targets: jax.Array) -> jax.Array:
    """Returns targets, with NaN in place of negative ones."""
    is_right = targets >= 0
    targets = checked(targets, is_right, "targets: expected numbers >= 0")
    return targets * one_or_nan(is_right, targets.dtype)


def _one_or_nan(targets: jax.Array) -> jax.Array:
    """Returns 1 for each list, or NaN if a target is NaN, which cannot be ordered."""
    return one_or_nan(~jnp.any(jnp.isnan(targets), -1), targets.dtype)


def _largest(scores: jax.Array, where: jax.Array | None) -> jax.Array:
    """Returns the largest score of each list, with derivative 0."""
    lowest = float(jnp.finfo(scores.dtype).min)
    scores = fill_masked(where, lax.stop_gradient(scores), lowest)
    return jnp.max(scores, -1, keepdims=True, initial=lowest)


def _discount(ranks: jax.Array) -> jax.Array:
    return jnp.log1p(ranks) / math.log(2)


def _in_blocks(
    function: Callable[[tuple[jax.Array, ...]], tuple[jax.Array, ...]], items: tuple[jax.Array, ...]
) -> tuple[jax.Array, ...]:
    """Applies a function to blocks of the items of all lists.

    It takes and returns arrays with items along the last axis. The gradient recomputes each block.
    """
    shape = items[0].shape
    length = shape[-1]
    size = _UNKNOWN
    if have_sizes(items[0]):
        size = max(8, _AT_ONCE // max(math.prod(shape), 1))
    if size >= length:
        return function(items)
    number = -(-length // size)

    def split(array: jax.Array) -> jax.Array:
        padding = [(0, 0)] * (array.ndim - 1) + [(0, number * size - length)]
        return jnp.moveaxis(jnp.pad(array, padding).reshape(*shape[:-1], number, size), -2, 0)

    found = lax.map(jax.checkpoint(function, prevent_cse=False), tuple(map(split, items)))
    return tuple(
        jnp.moveaxis(part, 0, -2).reshape(*shape[:-1], number * size)[..., :length] for part in found
    )
