"""Metric learning losses, on the similarities of labelled embeddings."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from jaxloss._core.arguments import arithmetic_dtype, as_array
from jaxloss._core.blocks import Layer
from jaxloss._core.classes import ClassAxis, Labels, labels_without_weight
from jaxloss._core.decorator import Domain, compiled, finite, not_negative, positive_and_finite
from jaxloss._core.derivatives import derivatives, inverse_lengths, inverse_or_zero, log_of_total, softplus
from jaxloss._core.pairs import Statistics, compare, labelled, statistics
from jaxloss._core.projection import features_and_kernel, statistics_of_others
from jaxloss._core.reduction import Reduction, reduce_losses


@compiled(
    static=("normalize", "reduction", "axis_name"), domains={"margin": finite, "gamma": positive_and_finite}
)
def circle_loss(
    embeddings: ArrayLike,
    targets: ArrayLike,
    *,
    margin: ArrayLike = 0.4,
    gamma: ArrayLike = 80.0,
    normalize: bool = True,
    where: ArrayLike | None = None,
    reduction: Reduction = "mean",
    axis_name: str | None = None,
) -> jax.Array:
    """Circle loss, where embeddings with the same label are positives.

    With x the rows of `embeddings`, divided by max(‖·‖, 1e-12) if `normalize`, s_ij = x_i · x_j, P(i) the
    other rows with the label of row i, and N(i) the rows with other labels,

        loss_i = log(1 + Σ_{p∈P(i)} exp(-gamma · a_ip · (s_ip - 1 + margin))
                       · Σ_{n∈N(i)} exp(gamma · b_in · (s_in - margin)))

    where a_ip = max(1 + margin - s_ip, 0) and b_in = max(s_in + margin, 0) are constants in all derivatives.
    A row without positives or without negatives has loss 0 and does not count in the mean. The N x N matrix s
    is never formed.

    Args:
        embeddings: Embeddings, shape (N, D). A zero vector stays zero, and all its derivatives are 0. An
            infinite embedding gives NaN.
        targets: Integer labels of any value, shape (N,).
        margin: Relaxation of the optimum, similarity 1 of positives and 0 of negatives; a finite number.
        gamma: Factor of the exponents, a finite number > 0.
        normalize: Whether to normalize the vectors to unit length.
        where: Mask, broadcast to shape (N,). A masked row is neither a positive nor a negative of other rows.
        reduction: "mean" (divides by the number of rows that count), "sum", "none" or "sum_and_weight".
        axis_name: Mesh axis that shards the rows inside `jax.shard_map`; see `help(jaxloss)`.

    Returns:
        A scalar, or an array of shape (N,) for "none".

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxloss
        >>> embeddings = jnp.array([[1.0, 0.0], [0.0, 1.0], [3.0, 4.0]])
        >>> jaxloss.circle_loss(embeddings, jnp.array([0, 1, 0]), gamma=2.0)
        Array(0.915, dtype=float32)

    Differences from other libraries:
        * The mean of pytorch-metric-learning's CircleLoss leaves out rows whose loss rounds to 0.

    Source:
        Y. Sun et al. (2020), Circle Loss: A Unified Perspective of Pair Similarity Optimization.
    """
    rows, where = labelled(embeddings, targets, where, normalize=normalize, axis_name=axis_name)
    options = tuple(jnp.asarray(option, rows.wide.dtype) for option in (margin, gamma))
    (positives, negatives), _ = compare(
        _circle_exponents, rows, rows.gathered(axis_name), *options, distinct=True
    )
    counts = (positives.positives > 0) & (negatives.positives > 0)
    losses = jnp.where(counts, softplus(positives.log_sum + negatives.log_sum), 0)
    weight = counts.astype(losses.dtype)
    return reduce_losses(losses, weight, where, reduction, axis_name=axis_name)


def _circle_exponents(
    similarities: jax.Array, allowed: jax.Array, positive: jax.Array, margin: jax.Array, gamma: jax.Array
) -> tuple[tuple[Statistics, Statistics], None]:
    """Returns statistics of the exponents of positives, and of those of negatives."""
    pull = lax.stop_gradient(jnp.maximum(1 + margin - similarities, 0))
    push = lax.stop_gradient(jnp.maximum(similarities + margin, 0))
    of_positives = -gamma * pull * (similarities - (1 - margin))
    of_negatives = gamma * push * (similarities - margin)
    return _of_both(of_positives, of_negatives, allowed, positive)


@compiled(
    static=("normalize", "reduction", "axis_name"),
    domains={"alpha": positive_and_finite, "beta": positive_and_finite, "base": finite},
)
def multi_similarity_loss(
    embeddings: ArrayLike,
    targets: ArrayLike,
    *,
    alpha: ArrayLike = 2.0,
    beta: ArrayLike = 50.0,
    base: ArrayLike = 0.5,
    normalize: bool = True,
    where: ArrayLike | None = None,
    reduction: Reduction = "mean",
    axis_name: str | None = None,
) -> jax.Array:
    """Multi-similarity loss, where embeddings with the same label are positives.

    With x the rows of `embeddings`, divided by max(‖·‖, 1e-12) if `normalize`, s_ij = x_i · x_j, P(i) the
    other rows with the label of row i, and N(i) the rows with other labels,

        loss_i = log(1 + Σ_{p∈P(i)} exp(-alpha · (s_ip - base))) / alpha
               + log(1 + Σ_{n∈N(i)} exp(beta · (s_in - base))) / beta

    The N x N matrix s is never formed.

    Args:
        embeddings: Embeddings, shape (N, D). A zero vector stays zero, and all its derivatives are 0. An
            infinite embedding gives NaN.
        targets: Integer labels of any value, shape (N,).
        alpha: Factor of the exponents of positives, a finite number > 0.
        beta: Factor of the exponents of negatives, a finite number > 0.
        base: Similarity at which the exponents are 0, a finite number.
        normalize: Whether to normalize the vectors to unit length.
        where: Mask, broadcast to shape (N,). A masked row is neither a positive nor a negative of other rows.
        reduction: "mean" (divides by the number of rows), "sum", "none" or "sum_and_weight".
        axis_name: Mesh axis that shards the rows inside `jax.shard_map`; see `help(jaxloss)`.

    Returns:
        A scalar, or an array of shape (N,) for "none".

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxloss
        >>> embeddings = jnp.array([[1.0, 0.0], [0.0, 1.0], [3.0, 4.0]])
        >>> jaxloss.multi_similarity_loss(embeddings, jnp.array([0, 1, 0]))
        Array(0.3994, dtype=float32)

    Source:
        X. Wang et al. (2019), Multi-Similarity Loss with General Pair Weighting for Deep Metric Learning,
        without its pair mining.
    """
    rows, where = labelled(embeddings, targets, where, normalize=normalize, axis_name=axis_name)
    options = tuple(jnp.asarray(option, rows.wide.dtype) for option in (alpha, beta, base))
    (positives, negatives), _ = compare(
        _multi_similarity_exponents, rows, rows.gathered(axis_name), *options, distinct=True
    )
    alpha, beta, _ = options
    losses = softplus(positives.log_sum) / alpha + softplus(negatives.log_sum) / beta
    return reduce_losses(losses, None, where, reduction, axis_name=axis_name)


def _multi_similarity_exponents(
    similarities: jax.Array,
    allowed: jax.Array,
    positive: jax.Array,
    alpha: jax.Array,
    beta: jax.Array,
    base: jax.Array,
) -> tuple[tuple[Statistics, Statistics], None]:
    """Returns statistics of the exponents of positives, and of those of negatives."""
    above = similarities - base
    return _of_both(-alpha * above, beta * above, allowed, positive)


def _of_both(
    of_positives: jax.Array, of_negatives: jax.Array, allowed: jax.Array, positive: jax.Array
) -> tuple[tuple[Statistics, Statistics], None]:
    negative = allowed & ~positive
    of_both = statistics(of_positives, positive, positive), statistics(of_negatives, negative, negative)
    return of_both, None


_right_angle = Domain("an angle in [0, π/2]", lambda angle: (angle >= 0) & (angle <= math.pi / 2))


@compiled(static=("reduction", "axis_name"), domains={"margin": _right_angle, "scale": positive_and_finite})
def arcface_loss(
    embeddings: ArrayLike,
    kernel: ArrayLike,
    targets: ArrayLike,
    *,
    margin: ArrayLike = 0.5,
    scale: ArrayLike = 64.0,
    where: ArrayLike | None = None,
    reduction: Reduction = "mean",
    axis_name: str | None = None,
) -> jax.Array:
    """ArcFace loss: softmax cross-entropy of scaled cosines, with a margin on the label's angle.

    With θ_c the angle between an embedding and column c of `kernel`, and y the label, the logits are

        z_c = scale · cos θ_c                            for c ≠ y
        z_y = scale · cos(θ_y + margin)                  if θ_y <= π - margin
        z_y = scale · (cos θ_y - margin · sin margin)    otherwise
        loss = log Σ_c exp(z_c) - z_y

    Logits are computed in blocks, as in `linear_cross_entropy`; neither they nor the normalized kernel are
    materialized. At θ_y = 0 and θ_y = π the angle has no derivative, and that of sin θ_y is 0.

    Args:
        embeddings: Embeddings, shape (..., D). A zero vector stays zero, and all its derivatives are 0. An
            infinite embedding gives NaN.
        kernel: Vectors of C classes, shape (D, C). They need not have unit length.
        targets: Integer class labels in [0, C), of the shape of `embeddings` without its last axis.
        margin: Angle in [0, π/2], in radians.
        scale: Finite number > 0 that multiplies the cosines.
        where: Mask, broadcast to the shape of `embeddings` without its last axis; see `help(jaxloss)`.
        reduction: "mean" (divides by the number of embeddings), "sum", "none" or "sum_and_weight".
        axis_name: Mesh axis that shards the classes inside `jax.shard_map`; see `help(jaxloss)`.

    Returns:
        A scalar, or an array of the shape of `embeddings` without its last axis for "none"; in nats.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxloss
        >>> embeddings = jnp.array([[3.0, 4.0], [1.0, 0.0]])
        >>> kernel = jnp.array([[2.0, 0.0], [0.0, 1.0]])  # columns along the axes
        >>> jaxloss.arcface_loss(embeddings, kernel, jnp.array([1, 0]), scale=4.0)
        Array(0.5806, dtype=float32)

    Differences from other libraries:
        * `margin` is in radians. pytorch_metric_learning takes degrees, and 28.6 by default.
        * All derivatives are finite for embeddings along a class vector and for zero vectors.

    Source:
        J. Deng et al. (2019), ArcFace: Additive Angular Margin Loss for Deep Face Recognition.
    """
    found = _cosines(embeddings, kernel, targets, scale, where, axis_name)
    margined = _at_wider_angle(found.label_logit / found.scale, jnp.asarray(margin, found.scale.dtype))
    return found.reduced(found.scale * margined, reduction)


@compiled(static=("reduction", "axis_name"), domains={"margin": not_negative, "scale": positive_and_finite})
def cosface_loss(
    embeddings: ArrayLike,
    kernel: ArrayLike,
    targets: ArrayLike,
    *,
    margin: ArrayLike = 0.35,
    scale: ArrayLike = 64.0,
    where: ArrayLike | None = None,
    reduction: Reduction = "mean",
    axis_name: str | None = None,
) -> jax.Array:
    """CosFace loss: softmax cross-entropy of scaled cosines, with a margin on the label's cosine.

    With θ_c the angle between an embedding and column c of `kernel`, and y the label, the logits are

        z_c = scale · cos θ_c    for c ≠ y
        z_y = scale · (cos θ_y - margin)
        loss = log Σ_c exp(z_c) - z_y

    Logits are computed in blocks, as in `linear_cross_entropy`; neither they nor the normalized kernel are
    materialized.

    Args:
        embeddings: Embeddings, shape (..., D). A zero vector stays zero, and all its derivatives are 0. An
            infinite embedding gives NaN.
        kernel: Vectors of C classes, shape (D, C). They need not have unit length.
        targets: Integer class labels in [0, C), of the shape of `embeddings` without its last axis.
        margin: Number >= 0 that is subtracted from the label's cosine.
        scale: Finite number > 0 that multiplies the cosines.
        where: Mask, broadcast to the shape of `embeddings` without its last axis; see `help(jaxloss)`.
        reduction: "mean" (divides by the number of embeddings), "sum", "none" or "sum_and_weight".
        axis_name: Mesh axis that shards the classes inside `jax.shard_map`; see `help(jaxloss)`.

    Returns:
        A scalar, or an array of the shape of `embeddings` without its last axis for "none"; in nats.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxloss
        >>> embeddings = jnp.array([[3.0, 4.0], [1.0, 0.0]])
        >>> kernel = jnp.array([[2.0, 0.0], [0.0, 1.0]])  # columns along the axes
        >>> jaxloss.cosface_loss(embeddings, kernel, jnp.array([1, 0]), scale=4.0)
        Array(0.5546, dtype=float32)

    Source:
        H. Wang et al. (2018), CosFace: Large Margin Cosine Loss for Deep Face Recognition.
    """
    found = _cosines(embeddings, kernel, targets, scale, where, axis_name)
    return found.reduced(found.label_logit - found.scale * jnp.asarray(margin, found.scale.dtype), reduction)


class _Cosines(NamedTuple):
    """Statistics of the scaled cosines of embeddings and classes."""

    scale: jax.Array
    others: jax.Array  # log Σ exp over the classes other than the label; -∞ if there are none
    label_logit: jax.Array  # without margin
    labels: Labels

    def reduced(self, label_logit: jax.Array, reduction: str) -> Any:
        """Returns the reduced cross-entropy, with `label_logit` as the label's logit."""
        losses = softplus(self.others - label_logit) * self.labels.weight
        return reduce_losses(losses, None, self.labels.valid, reduction)


def _cosines(
    embeddings: ArrayLike,
    kernel: ArrayLike,
    targets: ArrayLike,
    scale: ArrayLike,
    where: ArrayLike | None,
    axis_name: str | None,
) -> _Cosines:
    """Checks the arguments, and returns statistics of the scaled cosines."""
    embeddings, kernel = features_and_kernel(embeddings, kernel, "embeddings")
    targets = as_array("targets", targets)
    dtype, count = arithmetic_dtype(embeddings, kernel), ClassAxis(1, axis_name).count(kernel)
    scale, features = jnp.asarray(scale, dtype), ClassAxis(embeddings.ndim - 1, None)
    where = features.mask(where, embeddings)
    labels = labels_without_weight(targets, "embeddings", embeddings, features, count, None, where)
    # Gradients accumulate in the arithmetic dtype, since their terms along the vectors cancel.
    wide, wide_kernel = features.fill_masked(labels.valid, embeddings).astype(dtype), kernel.astype(dtype)
    power, inverse = inverse_lengths(wide, features.position)
    class_power, class_inverse = inverse_lengths(wide_kernel, 0)
    hidden = wide * features.expand(power)
    if embeddings.dtype == kernel.dtype == jnp.bfloat16:
        hidden, wide_kernel = hidden.astype(jnp.bfloat16), wide_kernel.astype(jnp.bfloat16)  # exact
    layer = Layer(
        hidden, wide_kernel, position_scale=scale * inverse, class_scale=class_power * class_inverse
    )
    found = statistics_of_others(layer, dtype, labels.classes, labels.valid, axis_name)
    others = found["largest"] + log_of_total(found["normalizer"])
    return _Cosines(scale, others, found["label_logit"], labels)


def _at_wider_angle(cosine: jax.Array, margin: jax.Array) -> jax.Array:
    """Returns cos(θ + margin) for cosine = cos θ, and cosine - margin · sin(margin) where θ > π - margin."""
    wider = cosine * jnp.cos(margin) - _sine(cosine) * jnp.sin(margin)
    return jnp.where(cosine < -jnp.cos(margin), cosine - margin * jnp.sin(margin), wider)


def _sine_slope(cosine: jax.Array) -> jax.Array:
    return -cosine * inverse_or_zero(_sine(cosine))


@derivatives(_sine_slope)
def _sine(cosine: jax.Array) -> jax.Array:
    """Returns the sine of the angle in [0, π] with this cosine; where it is 0, every derivative is 0."""
    return jnp.sqrt(jnp.maximum((1 - cosine) * (1 + cosine), 0))
