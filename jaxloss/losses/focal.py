"""Losses that give less weight to elements that are already classified well."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxloss._core.arguments import agree, mask
from jaxloss._core.checks import one_or_nan
from jaxloss._core.decorator import compiled, fraction, not_negative
from jaxloss._core.derivatives import (
    checked_probabilities,
    cross_entropy_of_logits,
    derivatives,
    sigmoid,
    softplus,
    weighted,
)
from jaxloss._core.reduction import Reduction, reduce_elementwise


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
        logits: Raw scores, any shape; class 1 is more likely above 0.
        targets: 0 or 1, booleans, or probabilities in [0, 1], of the shape of `logits`.
        alpha: Weight of class 1, a number in [0, 1]; class 0 has weight 1 - alpha. None weighs both by 1.
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
        * Infinite logits have the limit as their loss, 0 if right and ∞ if wrong; torchvision gives NaN at
          -inf, and at inf with target 1. Where the loss is infinite, its second derivative is NaN.

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


def _soft(targets: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns which targets are strictly between 0 and 1, and 1/2 in place of the others."""
    is_soft = (targets > 0) & (targets < 1)
    return is_soft, jnp.where(is_soft, targets, 0.5)


def _miss(logits: jax.Array, targets: jax.Array) -> jax.Array:
    """Returns 1 - p_t, without subtraction."""
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
    # Beyond the bound, what this is multiplied by has vanished.
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


# With 0 · ∞ = 0: where the loss is infinite its focus no longer changes.
@derivatives(_focal_slope_in_logits, _focal_slope_in_targets, _focal_slope_in_gamma)
def _focal(logits: jax.Array, targets: jax.Array, gamma: jax.Array) -> jax.Array:
    return weighted(_focus(logits, targets, gamma), _cross_entropy(logits, targets))
