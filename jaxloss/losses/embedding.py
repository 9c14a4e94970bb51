"""Losses on embeddings, on their distances, and on the order of scores."""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from jaxloss._core.arguments import (
    agree,
    arithmetic_dtype,
    as_array,
    hide,
    mask,
    of_one_dtype,
    values,
    widened,
)
from jaxloss._core.decorator import compiled, finite, not_negative, positive
from jaxloss._core.derivatives import checked_signs, derivatives, sign_or_nan
from jaxloss._core.distances import distances, pairwise_distance, smoothed_cosine
from jaxloss._core.reduction import Reduction, reduce_each, reduce_weighted

Distance = Callable[[jax.Array, jax.Array], jax.Array]


@compiled(static=("reduction",), domains={"margin": finite})
def hinge_embedding_loss(
    distances: ArrayLike,
    targets: ArrayLike,
    *,
    margin: ArrayLike = 1.0,
    where: ArrayLike | None = None,
    reduction: Reduction = "mean",
) -> jax.Array:
    """Draws what is alike together, and pushes what is not apart up to a margin.

    loss = distances                    where targets = 1, for pairs that are alike
    loss = max(0, margin - distances)   where targets = -1, of slope -1 in the distance at the margin, too

    Args:
        distances: How far apart the two of each pair are, of any shape, such as from `pairwise_distance`.
        targets: 1 for pairs that are alike and -1 for others, of the shape of `distances`.
        margin: The distance at which pairs that are not alike are far enough apart, a number. Traced: it can
            be scheduled, learned or swept without compiling again.
        where: Boolean mask, broadcast to the shape of `distances`. What lies behind False has no influence on
            value or gradient, NaN included, and does not count in the mean.
        reduction: "mean" for Σ loss / number of elements, "sum", "none" for the loss of each element, or
            "sum_and_weight" for the pair (Σ loss, number of elements), which adds up over micro-batches and
            devices to the exact mean.

    Returns:
        A scalar for "mean" and "sum", an array of the shape of `distances` for "none", two scalars for
        "sum_and_weight". The dtype is float32, or float64 where distances or targets are; the unit is that of
        `distances`. A target other than -1 and 1 gives NaN in the value and in the gradient, and an error
        under `jax.experimental.checkify`. The mean over no element is NaN with gradient 0. An empty sum is 0.

    Raises:
        TypeError: An argument is not an array of real numbers, or `where` is not boolean.
        ValueError: `distances` and `targets` differ in shape, `where` does not broadcast to that shape,
            `margin` is a Python number that is not finite, or the reduction is unknown.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxloss
        >>> distances = jnp.array([0.5, 0.25, 3.0])
        >>> jaxloss.hinge_embedding_loss(distances, jnp.array([1, -1, -1]), reduction="none")
        Array([0.5 , 0.75, 0.  ], dtype=float32)

    Differences from PyTorch:
        * Distances and targets never broadcast against each other: (3, 1) with (3,) is an error.
        * A target other than -1 and 1 is NaN, or an error under checkify, where PyTorch adds both losses.
        * bfloat16 and float16 inputs are computed in float32, and the loss stays float32.
        * Targets may be integers. The loss has a derivative in `margin`.

    Source:
        PyTorch documentation: torch.nn.HingeEmbeddingLoss, torch.nn.functional.hinge_embedding_loss.
    """
    distances, targets = agree(distances=distances, targets=targets)
    targets = checked_signs(targets, mask(where, targets.shape))
    return reduce_each(_hinge_embedding, [distances, targets], [margin], where=where, reduction=reduction)


@compiled(static=("reduction",), domains={"margin": finite})
def margin_ranking_loss(
    scores1: ArrayLike,
    scores2: ArrayLike,
    targets: ArrayLike,
    *,
    margin: ArrayLike = 0.0,
    where: ArrayLike | None = None,
    reduction: Reduction = "mean",
) -> jax.Array:
    """Measures by how much two scores fail to be in the right order, a margin apart.

    loss = max(0, margin - targets · (scores1 - scores2)), of full slope where the maximum's two are equal.

    Args:
        scores1: Scores of the first of each pair, real numbers of any shape.
        scores2: Scores of the second, of the shape of `scores1`.
        targets: 1 where the first should score higher and -1 where the second should, of the shape of
            `scores1`.
        margin: By how much the one should score higher than the other, a number in the unit of the scores.
            Traced: it can be scheduled, learned or swept without compiling again.
        where: Boolean mask, broadcast to the shape of `scores1`. What lies behind False has no influence on
            value or gradient, NaN included, and does not count in the mean.
        reduction: "mean" for Σ loss / number of elements, "sum", "none" for the loss of each element, or
            "sum_and_weight" for the pair (Σ loss, number of elements), which adds up over micro-batches and
            devices to the exact mean.

    Returns:
        A scalar for "mean" and "sum", an array of the shape of `scores1` for "none", two scalars for
        "sum_and_weight". The dtype is float32, or float64 where scores or targets are; the unit is that of
        the scores. A target other than -1 and 1 gives NaN in the value and in the gradient, and an error
        under `jax.experimental.checkify`. The mean over no element is NaN with gradient 0. An empty sum is 0.

    Raises:
        TypeError: An argument is not an array of real numbers, or `where` is not boolean.
        ValueError: `scores1`, `scores2` and `targets` differ in shape, `where` does not broadcast to that
            shape, `margin` is a Python number that is not finite, or the reduction is unknown.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxloss
        >>> scores1, scores2 = jnp.array([2.0, 1.0, 0.0]), jnp.array([1.0, 3.0, 0.5])
        >>> jaxloss.margin_ranking_loss(scores1, scores2, jnp.array([1, 1, -1]), margin=0.5, reduction="none")
        Array([0. , 2.5, 0. ], dtype=float32)

    Differences from PyTorch:
        * A target other than -1 and 1 is NaN, or an error under checkify, where PyTorch multiplies by it.
        * bfloat16 and float16 inputs are computed in float32, and the loss stays float32.
        * Targets may be integers. The loss has a derivative in `margin`.

    Source:
        PyTorch documentation: torch.nn.MarginRankingLoss, torch.nn.functional.margin_ranking_loss.
    """
    scores1, scores2, targets = agree(scores1=scores1, scores2=scores2, targets=targets)
    arrays = [scores1, scores2, checked_signs(targets, mask(where, targets.shape))]
    return reduce_each(_margin_ranking, arrays, [margin], where=where, reduction=reduction)


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
    """Turns embeddings of what is alike towards each other, and those of what is not away from each other.

    With cos = x · y / √((‖x‖² + 1e-12) · (‖y‖² + 1e-12)) for the embeddings x and y of a pair,

        loss = 1 - cos                where targets = 1, for pairs that are alike
        loss = max(0, cos - margin)   where targets = -1, of slope 1 in the cosine at the margin, too

    Args:
        embeddings1: Embeddings of the first of each pair along the last axis: shape (N, D) for N pairs, (D,)
            for one, or any other that ends in D.
        embeddings2: Embeddings of the second, of the shape of `embeddings1`.
        targets: 1 for pairs that are alike and -1 for others, of the shape of `embeddings1` without its last
            axis: (N,), or () for one pair.
        margin: The cosine at which pairs that are not alike are different enough, a number in [-1, 1]; 0 to
            0.5 is usual. Traced: it can be scheduled, learned or swept without compiling again.
        where: Boolean mask, broadcast to the shape of `targets`. What lies behind False has no influence on
            value or gradient, NaN included, and does not count in the mean.
        reduction: "mean" for Σ loss / number of pairs, "sum", "none" for the loss of each pair, or
            "sum_and_weight" for the pair (Σ loss, number of pairs), which adds up over micro-batches and
            devices to the exact mean.

    Returns:
        A scalar for "mean" and "sum", an array of the shape of `targets` for "none", two scalars for
        "sum_and_weight". The dtype is float32, or float64 where embeddings are. A target other than -1 and 1
        gives NaN in the value and in the gradient, and an error under `jax.experimental.checkify`; so do
        embeddings whose squared length overflows their dtype give NaN. The mean over no pair is NaN with
        gradient 0. An empty sum is 0.

    Raises:
        TypeError: An argument is not an array of real numbers, or `where` is not boolean.
        ValueError: The shapes do not fit, `margin` is a Python number that is not finite, or the reduction is
            unknown.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxloss
        >>> embeddings1 = jnp.array([[1.0, 0.0], [1.0, 0.0]])
        >>> embeddings2 = jnp.array([[0.0, 2.0], [3.0, 4.0]])
        >>> jaxloss.cosine_embedding_loss(embeddings1, embeddings2, jnp.array([1, -1]), reduction="none")
        Array([1. , 0.6], dtype=float32)

    Differences from PyTorch:
        * Embeddings and targets never broadcast. There may be any number of axes before the last.
        * A target other than -1 and 1 is NaN, or an error under checkify, where PyTorch's loss is 0.
        * The product of the squared lengths does not overflow. Where one of the squares does, the loss is
          NaN, where PyTorch takes the cosine to be 0.
        * bfloat16 and float16 inputs are computed in float32, and the loss stays float32.
        * Targets may have any real dtype. The loss has a derivative in `margin`.

    Source:
        PyTorch documentation: torch.nn.CosineEmbeddingLoss, torch.nn.functional.cosine_embedding_loss.
    """
    embeddings, where = _rows(where, embeddings1=embeddings1, embeddings2=embeddings2)
    targets = as_array("targets", targets)
    if targets.shape != embeddings[0].shape[:-1]:
        raise ValueError(
            f"targets must have the shape of embeddings1 without its last axis, {embeddings[0].shape[:-1]}, "
            f"got shape {targets.shape}"
        )
    targets = hide(where, checked_signs(targets, where), 1)
    sign = sign_or_nan(lax.stop_gradient(targets).astype(arithmetic_dtype(*embeddings)))
    agreement = sign * smoothed_cosine(embeddings[0], embeddings[1], where)
    apart = _hinge(-agreement - jnp.asarray(margin, sign.dtype))
    return reduce_weighted(jnp.where(sign > 0, 1 - agreement, apart), None, where, reduction)


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
    """Measures whether an anchor is nearer to what is like it than to what is not, by a margin.

    With the distance d(x, y) = ‖x - y + eps‖_p of `pairwise_distance`,

        loss = max(0, margin + d(anchor, positive) - d(anchor, negative))

    of full slope where the maximum's two are equal. With `swap`, min(d(anchor, negative), d(positive,
    negative)) takes the place of d(anchor, negative).

    Args:
        anchors: Embeddings of the anchors along the last axis: shape (N, D) for N triplets, (D,) for one, or
            any other that ends in D.
        positives: Embeddings of what is like the anchors, of the shape of `anchors`.
        negatives: Embeddings of what is unlike the anchors, of the shape of `anchors`.
        margin: By how much the negative should be farther than the positive, a number > 0 in the unit of the
            embeddings. Traced: it can be scheduled, learned or swept without compiling again.
        p: The order of the norm, a Python number >= 0, infinity included.
        eps: What is added to each component of a difference, a number >= 0. Traced as `margin`.
        swap: Whether a negative that is nearer to the positive than to the anchor is measured from there.
        where: Boolean mask, broadcast to the shape of `anchors` without its last axis. What lies behind False
            has no influence on value or gradient, NaN included, and does not count in the mean.
        reduction: "mean" for Σ loss / number of triplets, "sum", "none" for the loss of each triplet, or
            "sum_and_weight" for the pair (Σ loss, number of triplets), which adds up over micro-batches and
            devices to the exact mean.

    Returns:
        A scalar for "mean" and "sum", an array of the shape of `anchors` without its last axis for "none",
        two scalars for "sum_and_weight". The dtype is float32, or float64 where embeddings are; the unit is
        that of the embeddings. A `margin` <= 0 or a negative `eps` that is an array gives NaN, and an error
        under `jax.experimental.checkify`. The mean over no triplet is NaN with gradient 0. An empty sum is 0.

    Raises:
        TypeError: An argument is not an array of real numbers, `where` is not boolean, or an option that
            Python must know while tracing (`p`, `swap`, `reduction`) is an array.
        ValueError: `anchors`, `positives` and `negatives` differ in shape or have no axis, `where` does not
            broadcast, an option is a Python number outside its domain, or the reduction is unknown.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxloss
        >>> anchors = jnp.array([[0.0, 0.0], [0.0, 0.0]])
        >>> positives = jnp.array([[3.0, 4.0], [0.0, 1.0]])
        >>> negatives = jnp.array([[0.0, 3.0], [6.0, 8.0]])
        >>> jaxloss.triplet_margin_loss(anchors, positives, negatives)
        Array(1.5, dtype=float32)

    Differences from PyTorch:
        * The three arrays never broadcast against each other.
        * With p other than 0, 1, 2 and ∞, powers neither overflow nor underflow.
        * Where both distances are infinite, value and gradient are NaN; PyTorch's gradient is 0 or NaN.
        * bfloat16 and float16 inputs are computed in float32, and the loss stays float32.
        * The loss has a derivative in `margin` and `eps`.

    Source:
        V. Balntas et al. (2016), Learning Local Feature Descriptors with Triplets and Shallow Convolutional
        Neural Networks. PyTorch documentation: torch.nn.TripletMarginLoss,
        torch.nn.functional.triplet_margin_loss.
    """
    embeddings, where = _rows(where, anchors=anchors, positives=positives, negatives=negatives)
    found = distances(embeddings, _triplet_pairs(swap), eps, p, -1, where)
    return reduce_weighted(_triplet(found, margin), None, where, reduction)


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
    """Measures whether an anchor is nearer to what is like it than to what is not, by any distance.

    loss = max(0, margin + d(anchor, positive) - d(anchor, negative)), of full slope where the maximum's two
    are equal. With `swap`, min(d(anchor, negative), d(positive, negative)) takes the place of
    d(anchor, negative).

    Args:
        anchors: What the model makes of the anchors: one array of the batch, of any shape.
        positives: What it makes of what is like the anchors, of the shape of `anchors`.
        negatives: What it makes of what is unlike the anchors, of the shape of `anchors`.
        distance_function: The distance d: a JAX function of two such arrays that returns one real number for
            each of the first axes, shape (N,) for shape (N, ...). Default: `pairwise_distance`. It is part of
            the compiled program: keep one function, as for every new one the loss is compiled anew.
        margin: By how much the negative should be farther than the positive, a number > 0 in the unit of the
            distance. Traced: it can be scheduled, learned or swept without compiling again.
        swap: Whether a negative that is nearer to the positive than to the anchor is measured from there.
        where: Boolean mask, broadcast to the shape of the distances. What lies behind False has no influence
            on value or gradient, NaN included, and does not count in the mean.
        reduction: "mean" for Σ loss / number of triplets, "sum", "none" for the loss of each triplet, or
            "sum_and_weight" for the pair (Σ loss, number of triplets), which adds up over micro-batches and
            devices to the exact mean.

    Returns:
        A scalar for "mean" and "sum", an array of the shape of the distances for "none", two scalars for
        "sum_and_weight". The dtype is float32, or float64 where the distances are; the unit is that of the
        distance. A `margin` <= 0 that is an array gives NaN, and an error under `jax.experimental.checkify`.
        The mean over no triplet is NaN with gradient 0. An empty sum is 0.

    Raises:
        TypeError: An argument is not an array of real numbers, `where` is not boolean, or an option that
            Python must know while tracing (`swap`, `reduction`) is an array.
        ValueError: `anchors`, `positives` and `negatives` differ in shape, the distances do not have the
            shape of their first axes, `where` does not broadcast, `margin` is a Python number <= 0, or the
            reduction is unknown.

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
        * The three arrays never broadcast against each other. Distances are one for each of the first axes.
        * Where both distances are infinite, value and gradient are NaN; PyTorch's gradient is 0 or NaN.
        * bfloat16 and float16 inputs reach the distance function in float32, and the loss stays float32.
        * The loss has a derivative in `margin`.

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

    triplets = widened(*agree(anchors=anchors, positives=positives, negatives=negatives))
    shape, batch = triplets[0].shape, jax.eval_shape(distance, *triplets[:2]).shape
    if batch != shape[: len(batch)]:
        raise ValueError(f"distances must have the shape of the first axes of anchors {shape}, got {batch}")
    where = mask(where, batch)
    behind = where if where is None else jnp.expand_dims(where, range(len(batch), len(shape)))
    # What is hidden is kept apart, and from 0, for distances that have no derivative where they vanish.
    triplets = [hide(behind, array, fill) for fill, array in enumerate(triplets, 1)]
    found = [distance(triplets[i], triplets[j]) for i, j in _triplet_pairs(swap)]
    return reduce_weighted(_triplet(found, margin), None, where, reduction)


def _rows(where: ArrayLike | None, **embeddings: ArrayLike) -> tuple[list[jax.Array], jax.Array | None]:
    """Returns embeddings of one shape and dtype, and the mask of their rows."""
    arrays = of_one_dtype(*agree(**embeddings))
    if not arrays[0].ndim:
        raise ValueError(f"{' and '.join(embeddings)} must have an axis of features, got shape ()")
    return arrays, mask(where, arrays[0].shape[:-1])


def _active(gap: jax.Array, slope: jax.Array) -> jax.Array:
    """Returns a slope where max(gap, 0) has one: as in PyTorch at 0, too. NaN stays NaN."""
    return jnp.where(gap < 0, 0, jnp.where(jnp.isnan(gap), gap, slope))


@derivatives(lambda gap: _active(gap, jnp.ones_like(gap)))
def _hinge(gap: jax.Array) -> jax.Array:
    return jnp.maximum(gap, 0)


def _triplet_pairs(swap: bool) -> list[tuple[int, int]]:
    """Returns of which of anchors, positives and negatives the distances are taken."""
    return [(0, 1), (0, 2), (1, 2)] if swap else [(0, 1), (0, 2)]


def _triplet(distances: Sequence[jax.Array], margin: ArrayLike) -> jax.Array:
    near, *far = distances
    return _hinge(jnp.asarray(margin, near.dtype) + near - functools.reduce(jnp.minimum, far))


def _embedding_gap(distances: jax.Array, targets: jax.Array, margin: jax.Array) -> jax.Array:
    # What is alike is drawn at any distance.
    sign = sign_or_nan(targets)
    return jnp.where(sign > 0, sign, sign * (distances - margin))


@derivatives(
    lambda d, t, margin: _active(_embedding_gap(d, t, margin), t),
    lambda d, t, margin: _active(_embedding_gap(d, t, margin), jnp.zeros_like(t)),
    lambda d, t, margin: _active(_embedding_gap(d, t, margin), jnp.maximum(-t, 0)),
)
def _hinge_embedding(distances: jax.Array, targets: jax.Array, margin: jax.Array) -> jax.Array:
    apart = jnp.where(targets == -1, jnp.maximum(margin - distances, 0), jnp.nan)
    return jnp.where(targets == 1, distances, apart)


def _ranking_gap(difference: jax.Array, targets: jax.Array, margin: jax.Array) -> jax.Array:
    return margin - sign_or_nan(targets) * difference


@derivatives(
    lambda d, t, margin: _active(_ranking_gap(d, t, margin), -t),
    lambda d, t, margin: _active(_ranking_gap(d, t, margin), -d),
    lambda d, t, margin: _active(_ranking_gap(d, t, margin), jnp.ones_like(t)),
    of_difference=True,
)
def _margin_ranking(difference: jax.Array, targets: jax.Array, margin: jax.Array) -> jax.Array:
    return jnp.maximum(_ranking_gap(difference, targets, margin), 0)
