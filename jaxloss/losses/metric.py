"""Losses that shape a space of embeddings by class labels."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxloss._core.arguments import arithmetic_dtype, as_array
from jaxloss._core.blocks import Layer
from jaxloss._core.classes import ClassAxis, Labels, labels_without_weight
from jaxloss._core.decorator import Domain, compiled, not_negative, positive_and_finite
from jaxloss._core.derivatives import derivatives, inverse_lengths, inverse_or_zero, log_of_total, softplus
from jaxloss._core.projection import features_and_kernel, statistics_of_others
from jaxloss._core.reduction import Reduction, reduce_losses

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

        z_c = scale · cos θ_c  for c ≠ y
        z_y = scale · cos(θ_y + margin)  if θ_y <= π - margin, else scale · (cos θ_y - margin · sin margin)
        loss = log Σ_c exp(z_c) - z_y

    Logits are computed in blocks, as in `linear_cross_entropy`, so that they are never all held; nor is a
    kernel of unit vectors. At θ_y = 0 and θ_y = π the angle has no derivative, and that of sin θ_y is 0.

    Args:
        embeddings: Embeddings, shape (..., D). A zero vector stays zero, and all its derivatives are 0. An
            infinite embedding gives NaN.
        kernel: A vector for each of C classes, shape (D, C). They need not be unit vectors.
        targets: Integer class labels in [0, C), of the shape of `embeddings` without its last axis.
        margin: Angle in [0, π/2], in radians.
        scale: Finite number > 0 that multiplies the cosines.
        where: Mask, broadcast to the shape of `embeddings` without its last axis; see `help(jaxloss)`.
        reduction: "mean" (divides by the number of embeddings), "sum", "none" or "sum_and_weight".
        axis_name: Mesh axis that splits the classes inside `jax.shard_map`; see `help(jaxloss)`.

    Returns:
        A scalar, or an array of the shape of `embeddings` without its last axis for "none"; in nats.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxloss
        >>> embeddings = jnp.array([[3.0, 4.0], [1.0, 0.0]])
        >>> kernel = jnp.array([[2.0, 0.0], [0.0, 1.0]])  # columns along the axes
        >>> jaxloss.arcface_loss(embeddings, kernel, jnp.array([1, 0]), scale=4.0, reduction="none")
        Array([1.1317, 0.0294], dtype=float32)

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

        z_c = scale · cos θ_c  for c ≠ y,  z_y = scale · (cos θ_y - margin)
        loss = log Σ_c exp(z_c) - z_y

    Logits are computed in blocks, as in `linear_cross_entropy`, so that they are never all held; nor is a
    kernel of unit vectors.

    Args:
        embeddings: Embeddings, shape (..., D). A zero vector stays zero, and all its derivatives are 0. An
            infinite embedding gives NaN.
        kernel: A vector for each of C classes, shape (D, C). They need not be unit vectors.
        targets: Integer class labels in [0, C), of the shape of `embeddings` without its last axis.
        margin: Number >= 0, by which the label's cosine is reduced.
        scale: Finite number > 0 that multiplies the cosines.
        where: Mask, broadcast to the shape of `embeddings` without its last axis; see `help(jaxloss)`.
        reduction: "mean" (divides by the number of embeddings), "sum", "none" or "sum_and_weight".
        axis_name: Mesh axis that splits the classes inside `jax.shard_map`; see `help(jaxloss)`.

    Returns:
        A scalar, or an array of the shape of `embeddings` without its last axis for "none"; in nats.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxloss
        >>> embeddings = jnp.array([[3.0, 4.0], [1.0, 0.0]])
        >>> kernel = jnp.array([[2.0, 0.0], [0.0, 1.0]])  # columns along the axes
        >>> jaxloss.cosface_loss(embeddings, kernel, jnp.array([1, 0]), scale=4.0, reduction="none")
        Array([1.0375, 0.0716], dtype=float32)

    Source:
        H. Wang et al. (2018), CosFace: Large Margin Cosine Loss for Deep Face Recognition.
    """
    found = _cosines(embeddings, kernel, targets, scale, where, axis_name)
    return found.reduced(found.label_logit - found.scale * jnp.asarray(margin, found.scale.dtype), reduction)


class _Cosines(NamedTuple):
    """What scaled cosines of embeddings and classes say."""

    scale: jax.Array
    others: jax.Array  # log Σ exp over the classes other than the label; -∞ if there are none
    label_logit: jax.Array  # without margin
    labels: Labels

    def reduced(self, label_logit: jax.Array, reduction: str) -> Any:
        """Returns the reduced cross-entropy of these logits, with another one of the label."""
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
    """Returns the scaled cosines, or refuses what does not fit together."""
    embeddings, kernel = features_and_kernel(embeddings, kernel, "embeddings")
    targets = as_array("targets", targets)
    dtype, count = arithmetic_dtype(embeddings, kernel), ClassAxis(1, axis_name).count(kernel)
    scale, features = jnp.asarray(scale, dtype), ClassAxis(embeddings.ndim - 1, None)
    where = features.mask(where, embeddings)
    labels = labels_without_weight(targets, "embeddings", embeddings, features, count, None, where)
    # Gradients are added up in the dtype of arithmetic, in which terms along the vectors cancel.
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
    others = found["largest"] + log_of_total(found["norm"])
    return _Cosines(scale, others, found["label_logit"], labels)


def _at_wider_angle(cosine: jax.Array, margin: jax.Array) -> jax.Array:
    """Returns cos(θ + margin) for cosine = cos θ, and cosine - margin · sin(margin) where θ > π - margin."""
    wider = cosine * jnp.cos(margin) - _sine(cosine) * jnp.sin(margin)
    return jnp.where(cosine < -jnp.cos(margin), cosine - margin * jnp.sin(margin), wider)


def _sine_slope(cosine: jax.Array) -> jax.Array:
    return -cosine * inverse_or_zero(_sine(cosine))


@derivatives(_sine_slope)
def _sine(cosine: jax.Array) -> jax.Array:
    """Returns the sine of an angle in [0, π] with a cosine, with every derivative 0 where it is 0."""
    return jnp.sqrt(jnp.maximum((1 - cosine) * (1 + cosine), 0))
