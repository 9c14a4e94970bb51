"""Focal losses, which down-weight elements that are already classified well."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxloss._core.arguments import agree, as_array, broadcastable, mask, resharded_like, widened
from jaxloss._core.checks import one_or_nan
from jaxloss._core.classes import ClassAxis, class_labels, log_odds_against
from jaxloss._core.decorator import Domain, compiled, fraction, not_negative
from jaxloss._core.derivatives import (
    checked_probabilities,
    cross_entropy_of_logits,
    derivatives,
    inverse_or_zero,
    log_of_total,
    positive_part,
    sigmoid,
    softplus,
    weighted,
)
from jaxloss._core.reduction import Reduction, reduce_elementwise, reduce_losses


@compiled(static=("reduction",), domains={"alpha": fraction, "gamma": not_negative})
def sigmoid_focal_loss(
    logits: ArrayLike,
    targets: ArrayLike,
    *,
    alpha: ArrayLike | None = 0.25,
    gamma: ArrayLike = 2.0,
    where: ArrayLike | None = None,
    reduction: Reduction = "mean",
) -> jax.Array:
    """Sigmoid focal loss: binary cross-entropy that down-weights well-classified elements.

    With p = sigmoid(logits) and t = targets,

        p_t = p · t + (1 - p) · (1 - t)
        alpha_t = alpha · t + (1 - alpha) · (1 - t)
        loss = alpha_t · (1 - p_t)^gamma · (t · softplus(-logits) + (1 - t) · softplus(logits))

    Args:
        logits: Raw scores, any shape; positive if class 1 is more likely.
        targets: 0 or 1, booleans, or probabilities in [0, 1], of the shape of `logits`.
        alpha: Weight of class 1, a number in [0, 1]; class 0 has weight 1 - alpha. None: both have weight 1.
        gamma: Focusing exponent, a number >= 0. With 0 the loss is alpha_t · cross-entropy.
        where: Mask, broadcast to the shape of `logits`; see `help(jaxloss)`.
        reduction: "mean" (divides by the number of elements), "sum", "none" or "sum_and_weight".

    Returns:
        A scalar, or an array of the shape of `logits` for "none"; in nats.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxloss
        >>> logits = jnp.array([2.0, -1.0, 0.0])
        >>> jaxloss.sigmoid_focal_loss(logits, jnp.array([1, 0, 1]))
        Array(0.0203, dtype=float32)

    Differences from PyTorch:
        * torchvision's function returns unreduced losses by default, and its alpha=-1 is `alpha=None` here.
        * 1 - p_t is never computed by subtraction, so confident predictions keep their precision in every
          dtype, and value and gradient are finite for gamma < 1; torchvision gives 0 or NaN there.
        * For infinite logits the loss is its limit, 0 if they are right and ∞ if wrong; torchvision gives
          NaN at -inf, and at inf with target 1. Where the loss is infinite, its second derivative is NaN.

    Source:
        T.-Y. Lin et al. (2017), Focal Loss for Dense Object Detection. torchvision documentation:
        torchvision.ops.sigmoid_focal_loss.
    """
    logits, targets = agree(logits=logits, targets=targets)
    targets = checked_probabilities("targets", targets, mask(where, logits))

    def loss(logits: jax.Array, targets: jax.Array, gamma: jax.Array, *alpha: jax.Array) -> jax.Array:
        targets = targets * one_or_nan((targets >= 0) & (targets <= 1), targets.dtype)
        losses = _focal(logits, targets, gamma)
        for share in alpha:
            losses = weighted(share * targets + (1 - share) * (1 - targets), losses)
        return losses

    options = [gamma] if alpha is None else [gamma, alpha]
    return reduce_elementwise(loss, [logits, targets], options, where=where, reduction=reduction)


@compiled(static=("axis", "ignore_index", "reduction", "axis_name"), domains={"gamma": not_negative})
def softmax_focal_loss(
    logits: ArrayLike,
    targets: ArrayLike,
    *,
    axis: int = -1,
    gamma: ArrayLike = 2.0,
    weight: ArrayLike | None = None,
    ignore_index: int = -100,
    where: ArrayLike | None = None,
    reduction: Reduction = "mean",
    axis_name: str | None = None,
) -> jax.Array:
    """Softmax focal loss: cross-entropy that down-weights well-classified positions.

    With p = softmax(logits) and label y,

        loss = weight[y] · (1 - p[y])^gamma · -log p[y]

    Args:
        logits: Raw scores, any shape with a class axis.
        targets: Integer class labels in [0, C), of the shape of `logits` without the class axis.
        axis: Class axis of `logits`.
        gamma: Focusing exponent, a number >= 0. With 0 the loss is `cross_entropy`.
        weight: Weight of each class, shape (C,). Default: 1.
        ignore_index: Label of positions to ignore, any integer.
        where: Mask, broadcast to the shape of `targets`; see `help(jaxloss)`.
        reduction: "mean" (divides by Σ weight[y] over the labels that are not ignored), "sum", "none" or
            "sum_and_weight".
        axis_name: Mesh axis that shards the classes inside `jax.shard_map`; see `help(jaxloss)`.

    Returns:
        A scalar, or an array of the shape of `targets` for "none"; in nats.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxloss
        >>> logits = jnp.array([[2.0, 1.0, 0.0], [0.0, 1.0, 2.0]])
        >>> jaxloss.softmax_focal_loss(logits, jnp.array([0, 1]))
        Array(0.4243, dtype=float32)

    Differences from other libraries:
        * The mean of kornia's and MONAI's loss also divides by the number of classes, and kornia's default
          reduction is "none".
        * 1 - p[y] is never computed by subtraction, so confident predictions keep their precision, and
          value and gradient are finite for gamma < 1. Where the loss is infinite, its second derivative is
          NaN.

    Source:
        T.-Y. Lin et al. (2017), Focal Loss for Dense Object Detection.
    """
    logits, targets = as_array("logits", logits), as_array("targets", targets)
    classes = ClassAxis.of(axis, axis_name, "logits", logits)
    where = classes.mask(where, logits)
    labels = class_labels(targets, "logits", logits, classes, weight, ignore_index, where)
    logits = classes.fill_masked(labels.valid, logits)
    (wide,) = widened(logits)
    odds = log_odds_against(wide, labels.classes, classes, logits)
    exponent = broadcastable("gamma", jnp.asarray(gamma, odds.dtype), odds)
    zeros = resharded_like(odds, jnp.zeros_like(odds))
    losses = weighted(labels.weight, _focal(odds, zeros, exponent))
    return reduce_losses(losses, labels.weight, labels.valid, reduction)


@compiled(
    static=("stop_focus_gradient", "reduction"),
    domains={
        "gamma_neg": not_negative,
        "gamma_pos": not_negative,
        "clip": Domain("a number in [0, 1)", lambda number: (number >= 0) & (number < 1)),
    },
)
def asymmetric_loss(
    logits: ArrayLike,
    targets: ArrayLike,
    *,
    gamma_neg: ArrayLike = 4.0,
    gamma_pos: ArrayLike = 1.0,
    clip: ArrayLike = 0.05,
    stop_focus_gradient: bool = False,
    where: ArrayLike | None = None,
    reduction: Reduction = "mean",
) -> jax.Array:
    """Asymmetric loss for multi-label classification, which discards easy negatives.

    With p = sigmoid(logits), q = min(1 - p + clip, 1) and t = targets,

        focus = (1 - p · t - q · (1 - t))^(gamma_pos · t + gamma_neg · (1 - t))
        loss = focus · (t · -log p + (1 - t) · -log q)

    A negative with p <= clip has loss and derivatives 0.

    Args:
        logits: Raw scores, any shape; positive if class 1 is more likely.
        targets: 0 or 1, booleans, or probabilities in [0, 1], of the shape of `logits`.
        gamma_neg: Focusing exponent of negatives, a number >= 0.
        gamma_pos: Focusing exponent of positives, a number >= 0.
        clip: Probability up to which a negative is discarded, a number in [0, 1).
        stop_focus_gradient: Whether to stop the gradient through `focus`, as the original does by default.
        where: Mask, broadcast to the shape of `logits`; see `help(jaxloss)`.
        reduction: "mean" (divides by the number of elements), "sum", "none" or "sum_and_weight".

    Returns:
        A scalar, or an array of the shape of `logits` for "none"; in nats.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxloss
        >>> logits = jnp.array([2.0, -1.0, -4.0])
        >>> jaxloss.asymmetric_loss(logits, jnp.array([1, 1, 0]), reduction="none")
        Array([0.0151, 0.9601, 0.    ], dtype=float32)

    Differences from other libraries:
        * The original sums over the elements, and timm divides by the number of rows.
        * The logarithms have no lower bound: a wrong logit of -30 has loss 30 and gradient -1, not 18.4 and
          0. Where the loss is infinite, its second derivative is NaN.

    Source:
        T. Ridnik et al. (2021), Asymmetric Loss for Multi-Label Classification.
    """
    logits, targets = agree(logits=logits, targets=targets)
    targets = checked_probabilities("targets", targets, mask(where, logits))

    def loss(
        logits: jax.Array, targets: jax.Array, negative: jax.Array, positive: jax.Array, clip: jax.Array
    ) -> jax.Array:
        targets = targets * one_or_nan((targets >= 0) & (targets <= 1), targets.dtype)
        gamma = positive * targets + negative * (1 - targets)
        if stop_focus_gradient:
            focus = jax.lax.stop_gradient(_asymmetric_focus(logits, targets, gamma, clip))
            return weighted(focus, _clipped_cross_entropy(logits, targets, clip))
        return _asymmetric(logits, targets, gamma, clip)

    options = [gamma_neg, gamma_pos, clip]
    return reduce_elementwise(loss, [logits, targets], options, where=where, reduction=reduction)


def _soft(targets: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns which targets are strictly between 0 and 1, and 1/2 in place of the others."""
    is_soft = (targets > 0) & (targets < 1)
    return is_soft, jnp.where(is_soft, targets, 0.5)


def _miss(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """Returns 1 - p_t without subtraction."""
    return (1 - targets) * sigmoid(logits) + targets * sigmoid(-logits)


def _slope_in_logits(logits: jax.Array, targets: jax.Array) -> jax.Array:
    is_soft, soft = _soft(targets)
    ratio = (1 - 2 * soft) * sigmoid(logits) * sigmoid(-logits) / _miss(logits, soft)
    sign = 1 - 2 * targets
    return jnp.where(is_soft, ratio, sign * sigmoid(-sign * logits))


def _slope_in_targets(logits: jax.Array, targets: jax.Array) -> jax.Array:
    is_soft, soft = _soft(targets)
    ratio = (sigmoid(-logits) - sigmoid(logits)) / _miss(logits, soft)
    sign = 1 - 2 * targets
    # Beyond the bound, the factor that multiplies this is 0.
    return jnp.where(is_soft, ratio, sign * jnp.expm1(jnp.minimum(-sign * logits, 80)))


@derivatives(_slope_in_logits, _slope_in_targets)
def _log_of_miss(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """Returns log(1 - p_t), a log-sigmoid where the target is 0 or 1."""
    is_soft, soft = _soft(targets)
    hard = -softplus(-(1 - 2 * targets) * logits)
    return jnp.where(is_soft, jnp.log(_miss(logits, soft)), hard)


def _focus(logits: jax.Array, targets: jax.Array, gamma: jax.Array) -> jax.Array:
    """Returns (1 - p_t)^gamma, with 0⁰ = 1."""
    return jnp.exp(weighted(gamma, _log_of_miss(logits, targets)))


def _cross_entropy(logits: jax.Array, targets: jax.Array) -> jax.Array:
    return cross_entropy_of_logits(logits, targets, jnp.ones_like(targets))


def _focal_slope_in_logits(logits: jax.Array, targets: jax.Array, gamma: jax.Array) -> jax.Array:
    focusing = weighted(_slope_in_logits(logits, targets), _cross_entropy(logits, targets))
    slope = (1 - targets) * sigmoid(logits) - targets * sigmoid(-logits)
    return _focus(logits, targets, gamma) * (gamma * focusing + slope)


def _focal_slope_in_targets(logits: jax.Array, targets: jax.Array, gamma: jax.Array) -> jax.Array:
    focusing = weighted(_slope_in_targets(logits, targets), _cross_entropy(logits, targets))
    return weighted(_focus(logits, targets, gamma), gamma * focusing - logits)


def _focal_slope_in_gamma(logits: jax.Array, targets: jax.Array, gamma: jax.Array) -> jax.Array:
    return weighted(_log_of_miss(logits, targets), _focal(logits, targets, gamma))


# With 0 · ∞ = 0, since the focus is constant where the loss is infinite.
@derivatives(_focal_slope_in_logits, _focal_slope_in_targets, _focal_slope_in_gamma)
def _focal(logits: jax.Array, targets: jax.Array, gamma: jax.Array) -> jax.Array:
    return weighted(_focus(logits, targets, gamma), _cross_entropy(logits, targets))


def _excess(logits: jax.Array, clip: jax.Array) -> jax.Array:
    """Returns 1 - q, the excess of sigmoid(logits) over `clip`."""
    return positive_part(sigmoid(logits) - clip)


def _negative_slope_in_logits(logits: jax.Array, clip: jax.Array) -> jax.Array:
    least = sigmoid(-logits)
    share = jnp.where(clip == 0, 1, least / (least + jnp.where(clip == 0, 1, clip)))
    return jnp.where(sigmoid(logits) <= clip, 0, sigmoid(logits) * share)


def _negative_slope_in_clip(logits: jax.Array, clip: jax.Array) -> jax.Array:
    return jnp.where(sigmoid(logits) <= clip, 0, -1 / (sigmoid(-logits) + clip))


@derivatives(_negative_slope_in_logits, _negative_slope_in_clip)
def _negative_loss(logits: jax.Array, clip: jax.Array) -> jax.Array:
    """Returns -log q, which is softplus(logits) for clip = 0."""
    excess = _excess(logits, clip)
    log = jnp.where(excess < 0.5, jnp.log1p(-excess), jnp.log(sigmoid(-logits) + clip))
    return jnp.where(clip == 0, softplus(logits), -log)


def _clipped_cross_entropy(logits: jax.Array, targets: jax.Array, clip: jax.Array) -> jax.Array:
    return weighted(targets, softplus(-logits)) + weighted(1 - targets, _negative_loss(logits, clip))


def _clipped_miss(logits: jax.Array, targets: jax.Array, clip: jax.Array) -> jax.Array:
    """Returns 1 - p · t - q · (1 - t), in which only `clip` is subtracted."""
    return targets * sigmoid(-logits) + (1 - targets) * _excess(logits, clip)


def _asymmetric_focus(logits: jax.Array, targets: jax.Array, gamma: jax.Array, clip: jax.Array) -> jax.Array:
    return jnp.exp(weighted(gamma, log_of_total(_clipped_miss(logits, targets, clip))))


def _asymmetric_slope_in_logits(
    logits: jax.Array, targets: jax.Array, gamma: jax.Array, clip: jax.Array
) -> jax.Array:
    is_hard = jnp.sign(_excess(logits, clip))
    growth = sigmoid(logits) * sigmoid(-logits) * ((1 - targets) * is_hard - targets)
    growth *= inverse_or_zero(_clipped_miss(logits, targets, clip))
    slope = (1 - targets) * _negative_slope_in_logits(logits, clip) - targets * sigmoid(-logits)
    focusing = weighted(growth, _clipped_cross_entropy(logits, targets, clip))
    return _asymmetric_focus(logits, targets, gamma, clip) * (gamma * focusing + slope)


def _asymmetric_slope_in_targets(
    logits: jax.Array, targets: jax.Array, gamma: jax.Array, clip: jax.Array
) -> jax.Array:
    growth = sigmoid(-logits) - _excess(logits, clip)
    growth *= inverse_or_zero(_clipped_miss(logits, targets, clip))
    slope = softplus(-logits) - _negative_loss(logits, clip)
    focusing = weighted(growth, _clipped_cross_entropy(logits, targets, clip))
    return weighted(_asymmetric_focus(logits, targets, gamma, clip), gamma * focusing + slope)


def _asymmetric_slope_in_gamma(
    logits: jax.Array, targets: jax.Array, gamma: jax.Array, clip: jax.Array
) -> jax.Array:
    log = log_of_total(_clipped_miss(logits, targets, clip))
    return weighted(_asymmetric(logits, targets, gamma, clip), log)


def _asymmetric_slope_in_clip(
    logits: jax.Array, targets: jax.Array, gamma: jax.Array, clip: jax.Array
) -> jax.Array:
    is_hard = jnp.sign(_excess(logits, clip))
    growth = -is_hard * inverse_or_zero(_clipped_miss(logits, targets, clip))
    focusing = weighted(growth, _clipped_cross_entropy(logits, targets, clip))
    slope = gamma * focusing + _negative_slope_in_clip(logits, clip)
    return weighted(1 - targets, weighted(_asymmetric_focus(logits, targets, gamma, clip), slope))


@derivatives(
    _asymmetric_slope_in_logits,
    _asymmetric_slope_in_targets,
    _asymmetric_slope_in_gamma,
    _asymmetric_slope_in_clip,
)
def _asymmetric(logits: jax.Array, targets: jax.Array, gamma: jax.Array, clip: jax.Array) -> jax.Array:
    focus = _asymmetric_focus(logits, targets, gamma, clip)
    return weighted(focus, _clipped_cross_entropy(logits, targets, clip))
