"""Distances between vectors, and losses on embeddings."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from jaxloss._core.arguments import (
    agree,
    as_array,
    canonical_axis,
    fill_masked,
    mask,
    masked_items,
    sharded_like,
    values,
    widened,
)
from jaxloss._core.checks import one_or_nan
from jaxloss._core.decorator import compiled, finite, not_negative, positive
from jaxloss._core.derivatives import (
    absolute,
    checked_signs,
    clamped_at_zero,
    length,
    power,
    quotient,
    sign_or_nan,
)
from jaxloss._core.reduction import Reduction, reduce_losses

Distance = Callable[[jax.Array, jax.Array], jax.Array]

# PyTorch smooths the squared lengths with a float32 constant, in every dtype.
_SMOOTHING = float(np.float32(1e-12))


@compiled(static=("p", "keepdim", "axis"), domains={"p": not_negative, "eps": not_negative})
def pairwise_distance(
    x1: ArrayLike,
    x2: ArrayLike,
    *,
    p: float = 2.0,
    eps: ArrayLike = 1e-6,
    keepdim: bool = False,
    axis: int = -1,
) -> jax.Array:
    """Distance between pairs of vectors under a p-norm.

        distance = ‖x1 - x2 + eps‖_p = (Σ |x1 - x2 + eps|^p)^(1 / p)    along `axis`

    which is the maximum for p = ∞, and the number of nonzero components for p = 0. The gradient is 0 for
    components that are equal, which is possible with eps = 0; for equal vectors, second derivatives are 0,
    too.

    Args:
        x1: Vectors along one axis of an array of any shape.
        x2: The other vector of each pair, of the shape of `x1`.
        p: Order of the norm, a static number >= 0 or infinity.
        eps: Number >= 0 that is added to each component of the difference.
        keepdim: Whether to keep the reduced axis with size 1.
        axis: Axis of the vectors.

    Returns:
        The distances, of the shape of `x1` without `axis`, or with size 1 there if `keepdim`; in the unit
        of the vectors, or a count for p = 0.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxloss
        >>> x1, x2 = jnp.array([[0.0, 0.0], [1.0, 1.0]]), jnp.array([[3.0, 4.0], [1.0, 2.0]])
        >>> jaxloss.pairwise_distance(x1, x2, eps=0)
        Array([5., 1.], dtype=float32)

    Differences from PyTorch:
        * x1 and x2 never broadcast; for all pairs, use
          `jax.vmap(lambda x: jax.vmap(lambda y: pairwise_distance(x, y))(x2))(x1)`.
        * `axis` is an addition.
        * With p other than 0, 1, 2 and ∞, powers neither overflow nor underflow.

    Source:
        PyTorch documentation: torch.nn.PairwiseDistance, torch.nn.functional.pairwise_distance.
    """
    x1, x2 = agree(x1=x1, x2=x2)
    axis = canonical_axis(axis, "x1", x1.shape)
    x1, x2 = widened(x1, x2)
    distance = _norm(x1 - x2 + jnp.asarray(eps, x1.dtype), p, axis)
    return jnp.expand_dims(distance, axis) if keepdim else distance


@compiled(static=("axis",), domains={"eps": not_negative})
def cosine_similarity(x1: ArrayLike, x2: ArrayLike, *, axis: int = -1, eps: ArrayLike = 1e-8) -> jax.Array:
    """Cosine similarity between pairs of vectors.

        similarity = x1 · x2 / (max(‖x1‖, eps) · max(‖x2‖, eps))    along `axis`

    It is 0 for a zero vector, unless `eps` is also 0. As in PyTorch, derivatives ignore the two bounds.

    Args:
        x1: Vectors along one axis of an array of any shape.
        x2: The other vector of each pair, of the shape of `x1`.
        axis: Axis of the vectors.
        eps: Lower bound on the norms in the denominator, a number >= 0 in the unit of the vectors.

    Returns:
        The similarities, in [-1, 1] up to rounding, of the shape of `x1` without `axis`.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxloss
        >>> x1, x2 = jnp.array([[3.0, 0.0], [3.0, 4.0]]), jnp.array([[0.0, 2.0], [2.0, 0.0]])
        >>> jaxloss.cosine_similarity(x1, x2)
        Array([0. , 0.6], dtype=float32)

    Differences from PyTorch:
        * The default axis is the last; PyTorch's is `axis=1`.
        * If a squared norm overflows, the similarity is NaN; PyTorch's is 0.
        * x1 and x2 never broadcast; for all pairs, use
          `jax.vmap(lambda x: jax.vmap(lambda y: cosine_similarity(x, y))(x2))(x1)`.

    Source:
        PyTorch documentation: torch.nn.CosineSimilarity, torch.nn.functional.cosine_similarity.
    """
    x1, x2 = agree(x1=x1, x2=x2)
    axis = canonical_axis(axis, "x1", x1.shape)
    x1, x2 = widened(x1, x2)
    least = jnp.asarray(eps, x1.dtype)
    x1_length, x2_length = (_clamped(length(vectors, 0.0, axis), least) for vectors in (x1, x2))
    return _cosine(x1, x2, x1_length, x2_length, axis)


@compiled(static=("reduction",), domains={"margin": finite})
def cosine_embedding_loss(
    embeddings1: ArrayLike,
    embeddings2: ArrayLike,
    targets: ArrayLike,
    *,
    margin: ArrayLike = 0.0,
    where: ArrayLike | None = None,
    reduction: Reduction = "mean",
) -> jax.Array:
    """Cosine embedding loss on similar and dissimilar pairs.

    With cos = x · y / √((‖x‖² + 1e-12) · (‖y‖² + 1e-12)) for the embeddings x and y of a pair,

        loss = 1 - cos                where targets = 1 (similar)
        loss = max(0, cos - margin)   where targets = -1 (dissimilar), with slope 1 at the margin

    Args:
        embeddings1: Embeddings of the first item of each pair, shape (..., D).
        embeddings2: Embeddings of the second item, of the shape of `embeddings1`.
        targets: 1 for similar and -1 for dissimilar pairs, of the shape of `embeddings1` without its last
            axis.
        margin: Cosine up to which dissimilar pairs have loss 0, a finite number, usually in [0, 0.5].
        where: Mask, broadcast to the shape of `targets`; see `help(jaxloss)`.
        reduction: "mean" (divides by the number of pairs), "sum", "none" or "sum_and_weight".

    Returns:
        A scalar, or an array of the shape of `targets` for "none"; dimensionless.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxloss
        >>> embeddings1 = jnp.array([[1.0, 0.0], [1.0, 0.0]])
        >>> embeddings2 = jnp.array([[0.0, 2.0], [3.0, 4.0]])
        >>> jaxloss.cosine_embedding_loss(embeddings1, embeddings2, jnp.array([1, -1]), reduction="none")
        Array([1. , 0.6], dtype=float32)

    Differences from PyTorch:
        * There may be any number of axes before the last.
        * Targets other than -1 and 1 give NaN; PyTorch's loss is 0.
        * The product of the squared norms cannot overflow. If a squared norm itself overflows, the loss is
          NaN; PyTorch's cosine is 0.

    Source:
        PyTorch documentation: torch.nn.CosineEmbeddingLoss, torch.nn.functional.cosine_embedding_loss.
    """
    embeddings, rows = _rows(where, embeddings1=embeddings1, embeddings2=embeddings2)
    targets, shape = as_array("targets", targets), embeddings[0].shape[:-1]
    if targets.shape != shape:
        raise ValueError(
            f"targets must have the shape of embeddings1 without its last axis, {shape}, "
            f"got shape {targets.shape}"
        )
    targets = lax.stop_gradient(sharded_like(embeddings[0], targets, [len(shape)]))
    targets = fill_masked(rows, checked_signs(targets, rows), 1)
    sign = sign_or_nan(targets.astype(embeddings[0].dtype))
    first, second = embeddings
    first_length, second_length = (length(vectors, _SMOOTHING, len(shape)) for vectors in embeddings)
    agreement = sign * _cosine(first, second, first_length, second_length, len(shape))
    apart = clamped_at_zero(-agreement - jnp.asarray(margin, sign.dtype))
    return reduce_losses(jnp.where(sign > 0, 1 - agreement, apart), None, rows, reduction)


@compiled(
    static=("p", "swap", "reduction"), domains={"margin": positive, "p": not_negative, "eps": not_negative}
)
def triplet_margin_loss(
    anchors: ArrayLike,
    positives: ArrayLike,
    negatives: ArrayLike,
    *,
    margin: ArrayLike = 1.0,
    p: float = 2.0,
    eps: ArrayLike = 1e-6,
    swap: bool = False,
    where: ArrayLike | None = None,
    reduction: Reduction = "mean",
) -> jax.Array:
    """Triplet margin loss.

        loss = max(0, margin + d(anchor, positive) - d(anchor, negative))

    with full slope at the kink, where d(x, y) = ‖x - y + eps‖_p is `pairwise_distance`. With `swap`,
    min(d(anchor, negative), d(positive, negative)) replaces d(anchor, negative).

    Args:
        anchors: Embeddings of the anchors, shape (..., D).
        positives: Embeddings of items similar to the anchors, of the shape of `anchors`.
        negatives: Embeddings of items dissimilar to the anchors, of the shape of `anchors`.
        margin: Required gap between the two distances, a number > 0 in the unit of the embeddings.
        p: Order of the norm, a static number >= 0 or infinity.
        eps: Number >= 0 that is added to each component of a difference.
        swap: Whether to use the smaller of the two negative distances, as above.
        where: Mask, broadcast to the shape of `anchors` without its last axis; see `help(jaxloss)`.
        reduction: "mean" (divides by the number of triplets), "sum", "none" or "sum_and_weight".

    Returns:
        A scalar, or an array of the shape of `anchors` without its last axis for "none"; in their unit.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxloss
        >>> anchors = jnp.array([[0.0, 0.0], [0.0, 0.0]])
        >>> positives = jnp.array([[3.0, 4.0], [0.0, 1.0]])
        >>> negatives = jnp.array([[0.0, 3.0], [6.0, 8.0]])
        >>> jaxloss.triplet_margin_loss(anchors, positives, negatives)
        Array(1.5, dtype=float32)

    Differences from PyTorch:
        * With p other than 0, 1, 2 and ∞, powers neither overflow nor underflow.
        * If both distances are infinite, value and gradient are NaN; PyTorch's gradient is 0 or NaN.

    Source:
        V. Balntas et al. (2016), Learning Local Feature Descriptors with Triplets and Shallow Convolutional
        Neural Networks. PyTorch documentation: torch.nn.TripletMarginLoss,
        torch.nn.functional.triplet_margin_loss.
    """
    triplet, rows = _rows(where, anchors=anchors, positives=positives, negatives=negatives)
    shift = jnp.asarray(eps, triplet[0].dtype)

    def distance(x: jax.Array, y: jax.Array) -> jax.Array:
        return _norm(x - y + shift, p, x.ndim - 1)

    return reduce_losses(_triplet_losses(distance, triplet, margin, swap), None, rows, reduction)


@compiled(static=("distance_function", "swap", "reduction"), domains={"margin": positive})
def triplet_margin_with_distance_loss(
    anchors: ArrayLike,
    positives: ArrayLike,
    negatives: ArrayLike,
    *,
    distance_function: Distance | None = None,
    margin: ArrayLike = 1.0,
    swap: bool = False,
    where: ArrayLike | None = None,
    reduction: Reduction = "mean",
) -> jax.Array:
    """Triplet margin loss with a custom distance function.

        loss = max(0, margin + d(anchor, positive) - d(anchor, negative))

    with full slope at the kink. With `swap`, min(d(anchor, negative), d(positive, negative)) replaces
    d(anchor, negative).

    Args:
        anchors: Representations of the anchors, an array of any shape.
        positives: Representations of items similar to the anchors, of the shape of `anchors`.
        negatives: Representations of items dissimilar to the anchors, of the shape of `anchors`.
        distance_function: JAX function d of two such arrays, of shape (N, ...), that returns N distances.
            Static: reuse one function object, as each new one recompiles. Default: `pairwise_distance`.
        margin: Required gap between the two distances, a number > 0 in their unit.
        swap: Whether to use the smaller of the two negative distances, as above.
        where: Mask, broadcast to the shape of the distances; see `help(jaxloss)`.
        reduction: "mean" (divides by the number of triplets), "sum", "none" or "sum_and_weight".

    Returns:
        A scalar, or an array of the shape of the distances for "none"; in the unit of the distances.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxloss
        >>> def manhattan(x, y):
        ...     return jnp.sum(jnp.abs(x - y), axis=-1)
        >>> anchors, positives, negatives = jnp.zeros((1, 2)), jnp.ones((1, 2)), jnp.array([[0.0, 1.5]])
        >>> jaxloss.triplet_margin_with_distance_loss(
        ...     anchors, positives, negatives, distance_function=manhattan
        ... )
        Array(1.5, dtype=float32)

    Differences from PyTorch:
        * If both distances are infinite, value and gradient are NaN; PyTorch's gradient is 0 or NaN.
        * The distance function receives 16-bit inputs as float32.

    Source:
        V. Balntas et al. (2016), Learning Local Feature Descriptors with Triplets and Shallow Convolutional
        Neural Networks. PyTorch documentation: torch.nn.TripletMarginWithDistanceLoss,
        torch.nn.functional.triplet_margin_with_distance_loss.
    """
    function = pairwise_distance if distance_function is None else distance_function
    if not callable(function):
        raise TypeError(f"distance_function must be a function of two arrays, got {function!r}")

    def distance(x: jax.Array, y: jax.Array) -> jax.Array:
        return values(distances=function(x, y))[0]

    arrays = agree(anchors=anchors, positives=positives, negatives=negatives)
    shape, batch = arrays[0].shape, jax.eval_shape(distance, *widened(*arrays[:2])).shape
    if batch != shape[: len(batch)]:
        raise ValueError(f"distances must have the shape of the first axes of anchors {shape}, got {batch}")
    features = tuple(range(len(batch), len(shape)))
    where = mask(where, arrays[0], features)
    expanded = None if where is None else jnp.expand_dims(where, features)
    # Masked vectors differ from each other and from 0, where some distances have no derivative.
    triplet = widened(*(fill_masked(expanded, array, fill) for fill, array in enumerate(arrays, 1)))
    return reduce_losses(_triplet_losses(distance, triplet, margin, swap), None, where, reduction)


def _rows(where: ArrayLike | None, **embeddings: ArrayLike) -> tuple[list[jax.Array], jax.Array | None]:
    """Returns masked embeddings of equal shape in their arithmetic dtype, and the mask of their rows."""
    arrays = agree(**embeddings)
    if not arrays[0].ndim:
        raise ValueError(f"{' and '.join(embeddings)} must have an axis of features, got shape ()")
    masked, rows = masked_items(arrays, 1, where)
    return widened(*masked), rows


def _norm(vectors: jax.Array, p: float, axis: int) -> jax.Array:
    """Returns the p-norm along an axis, with slope 0 in zero components."""
    if p == 0:
        return jnp.sum((vectors != 0).astype(vectors.dtype), axis)
    if p == 1:
        return jnp.sum(absolute(vectors), axis)
    if p == 2:
        return length(vectors, 0.0, axis)
    magnitudes = absolute(vectors)
    largest = jnp.max(magnitudes, axis, initial=0)
    if p == jnp.inf:
        return largest
    # In this unit, no power overflows and not all underflow; the unit and its reciprocal are finite.
    smallest = float(jnp.finfo(largest.dtype).tiny)
    unit = lax.stop_gradient(jnp.clip(largest, smallest, 1 / smallest))
    return unit * power(jnp.sum(power(magnitudes / jnp.expand_dims(unit, axis), p), axis), 1 / p)


def _cosine(x: jax.Array, y: jax.Array, x_length: jax.Array, y_length: jax.Array, axis: int) -> jax.Array:
    """Returns x·y / x_length / y_length, NaN if a length overflows."""
    cosine = jnp.sum(x * y, axis)
    for norm in (x_length, y_length):
        cosine = quotient(cosine, norm * one_or_nan(norm < jnp.inf, norm.dtype))
    return cosine


def _clamped(norm: jax.Array, least: jax.Array) -> jax.Array:
    """Returns max(norm, least), with the derivatives of `norm`."""
    return norm + lax.stop_gradient(jnp.maximum(norm, least) - norm)


def _triplet_losses(
    distance: Distance, triplet: Sequence[jax.Array], margin: ArrayLike, swap: bool
) -> jax.Array:
    """Returns max(0, margin + d(anchor, positive) - d(anchor, negative))."""
    anchors, positives, negatives = triplet
    near, far = distance(anchors, positives), distance(anchors, negatives)
    if swap:
        far = jnp.minimum(far, distance(positives, negatives))
    return clamped_at_zero(jnp.asarray(margin, near.dtype) + near - far)
