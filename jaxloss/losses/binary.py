"""Losses on binary targets, with one or several labels at each position."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxloss._core.arguments import (
    agree,
    arithmetic_dtype,
    as_array,
    broadcastable,
    mask,
    widened,
)
from jaxloss._core.checks import one_or_nan
from jaxloss._core.classes import ClassAxis, weight_of_classes
from jaxloss._core.decorator import compiled
from jaxloss._core.derivatives import (
    checked_probabilities,
    checked_signs,
    cross_entropy_of_logits,
    derivatives,
    sigmoid,
    sign_or_nan,
    softplus,
    weighted,
)
from jaxloss._core.reduction import Reduction, reduce_elementwise, reduce_losses


@compiled(static=("reduction",))
def binary_cross_entropy(
    probs: ArrayLike,
    targets: ArrayLike,
    *,
    weight: ArrayLike | None = None,
    where: ArrayLike | None = None,
    reduction: Reduction = "mean",
) -> jax.Array:
    """Binary cross-entropy between probabilities and binary targets.

        loss = -weight · (targets · log(probs) + (1 - targets) · log(1 - probs))

    Each logarithm is at least -100, so the loss of a confident error is 100, not ∞. For logits,
    `binary_cross_entropy_with_logits` is more accurate.

    Args:
        probs: Probabilities of class 1 in [0, 1], any shape.
        targets: 0 or 1, booleans, or probabilities in [0, 1], of the shape of `probs`.
        weight: Weight of each element, broadcast to the shape of `probs`. Default: 1.
        where: Mask, broadcast to the shape of `probs`; see `help(jaxloss)`.
        reduction: "mean" (divides by the number of elements, not by Σ weight, as in PyTorch), "sum", "none"
            or "sum_and_weight".

    Returns:
        A scalar, or an array of the shape of `probs` for "none"; in nats.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxloss
        >>> probs = jnp.array([0.9, 0.2, 0.5])
        >>> jaxloss.binary_cross_entropy(probs, jnp.array([1, 0, 1]))
        Array(0.3406, dtype=float32)

    Differences from PyTorch:
        * Probabilities and targets outside [0, 1] give NaN; PyTorch raises.
        * The gradient with respect to the targets stays within ±100; PyTorch's is infinite at probabilities
          of 0 and 1. Second derivatives are those of the bounded gradient; PyTorch's are unbounded.

    Source:
        PyTorch documentation: torch.nn.BCELoss, torch.nn.functional.binary_cross_entropy.
    """
    probs, targets = agree(probs=probs, targets=targets)
    where = mask(where, probs)
    arrays = [
        checked_probabilities(name, array, where) for name, array in (("probs", probs), ("targets", targets))
    ]
    return reduce_elementwise(_from_probs, arrays, weight=weight, where=where, reduction=reduction)


@compiled(static=("reduction",))
def binary_cross_entropy_with_logits(
    logits: ArrayLike,
    targets: ArrayLike,
    *,
    weight: ArrayLike | None = None,
    pos_weight: ArrayLike | None = None,
    where: ArrayLike | None = None,
    reduction: Reduction = "mean",
) -> jax.Array:
    """Binary cross-entropy between logits and binary targets.

        loss = weight · (pos_weight · targets · softplus(-logits) + (1 - targets) · softplus(logits))

    with softplus(x) = log(1 + exp(x)). This is `binary_cross_entropy` of sigmoid(logits) without its rounding
    errors and its upper bound.

    Args:
        logits: Raw scores, any shape; positive if class 1 is more likely.
        targets: 0 or 1, booleans, or probabilities, of the shape of `logits`.
        weight: Weight of each element, broadcast to the shape of `logits`. Default: 1.
        pos_weight: Weight of the positive term, broadcast to the shape of `logits`: one number, or one for
            each class along the last axis. Default: 1.
        where: Mask, broadcast to the shape of `logits`; see `help(jaxloss)`.
        reduction: "mean" (divides by the number of elements, not by any weights, as in PyTorch), "sum",
            "none" or "sum_and_weight".

    Returns:
        A scalar, or an array of the shape of `logits` for "none"; in nats.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxloss
        >>> logits = jnp.array([2.0, -1.0, 0.0])
        >>> jaxloss.binary_cross_entropy_with_logits(logits, jnp.array([1, 0, 1]))
        Array(0.3778, dtype=float32)

    Differences from PyTorch:
        * For infinite logits the loss is its limit, 0 if they are right and ∞ if wrong; PyTorch gives NaN
          at -inf, and at inf with target 1.

    Source:
        PyTorch documentation: torch.nn.BCEWithLogitsLoss,
        torch.nn.functional.binary_cross_entropy_with_logits.
    """
    arrays = agree(logits=logits, targets=targets)
    factor = as_array("pos_weight", 1.0 if pos_weight is None else pos_weight)
    factor = broadcastable("pos_weight", factor.astype(arithmetic_dtype(*arrays)), arrays[0])
    return reduce_elementwise(
        cross_entropy_of_logits, [*arrays, factor], weight=weight, where=where, reduction=reduction
    )


@compiled(static=("reduction",))
def soft_margin_loss(
    scores: ArrayLike,
    targets: ArrayLike,
    *,
    where: ArrayLike | None = None,
    reduction: Reduction = "mean",
) -> jax.Array:
    """Soft margin loss (logistic loss).

        loss = log(1 + exp(-targets · scores))

    which is `binary_cross_entropy_with_logits` with targets -1 and 1 in place of 0 and 1.

    Args:
        scores: Raw scores, any shape; positive for class 1, negative for class -1.
        targets: 1 or -1, of the shape of `scores`.
        where: Mask, broadcast to the shape of `scores`; see `help(jaxloss)`.
        reduction: "mean" (divides by the number of elements), "sum", "none" or "sum_and_weight".

    Returns:
        A scalar, or an array of the shape of `scores` for "none"; in nats.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxloss
        >>> scores = jnp.array([2.0, -1.0, 0.0])
        >>> jaxloss.soft_margin_loss(scores, jnp.array([1, -1, 1]))
        Array(0.3778, dtype=float32)

    Differences from PyTorch:
        * The loss is stable in both tails: PyTorch's overflows to ∞ with gradient NaN if a score is very
          wrong, and rounds to 0 if it is very right.
        * Targets other than 1 and -1 give NaN; PyTorch accepts any number.

    Source:
        PyTorch documentation: torch.nn.SoftMarginLoss, torch.nn.functional.soft_margin_loss.
    """
    scores, targets = agree(scores=scores, targets=targets)
    arrays = [scores, checked_signs(targets, mask(where, targets))]
    return reduce_elementwise(_soft_margin, arrays, where=where, reduction=reduction)


@compiled(static=("axis", "reduction", "axis_name"))
def multilabel_soft_margin_loss(
    logits: ArrayLike,
    targets: ArrayLike,
    *,
    axis: int = -1,
    weight: ArrayLike | None = None,
    where: ArrayLike | None = None,
    reduction: Reduction = "mean",
    axis_name: str | None = None,
) -> jax.Array:
    """Multi-label soft margin loss: binary cross-entropy averaged over the classes.

        loss = 1 / C · Σ_c weight[c] · (t[c] · softplus(-x[c]) + (1 - t[c]) · softplus(x[c]))

    with softplus(x) = log(1 + exp(x)), at a position with logits x and targets t of C independent classes.

    Args:
        logits: Raw scores, any shape with a class axis; positive if a class is more likely than not.
        targets: 0 or 1, booleans, or probabilities, of the shape of `logits`.
        axis: Class axis of `logits` and `targets`.
        weight: Weight of each class, shape (C,), or an array that broadcasts to the shape of `logits`.
            Default: 1.
        where: Mask, broadcast to the shape of `logits` without the class axis; see `help(jaxloss)`.
        reduction: "mean" (divides by the number of positions, not by any weights, as in PyTorch), "sum",
            "none" or "sum_and_weight".
        axis_name: Mesh axis that shards the classes inside `jax.shard_map`; see `help(jaxloss)`.

    Returns:
        A scalar, or an array of the shape of `logits` without the class axis for "none"; in nats.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxloss
        >>> logits = jnp.array([[2.0, -1.0, 0.0], [1.0, 1.0, -3.0]])
        >>> targets = jnp.array([[1, 0, 1], [1, 1, 0]])
        >>> jaxloss.multilabel_soft_margin_loss(logits, targets)
        Array(0.3014, dtype=float32)

    Differences from PyTorch:
        * The class axis is the last, as in PyTorch; `axis` is an addition.
        * For infinite logits the loss is its limit, ∞ if they are wrong and 0 if right, where PyTorch gives
          NaN. A class of weight 0 contributes 0.

    Source:
        PyTorch documentation: torch.nn.MultiLabelSoftMarginLoss,
        torch.nn.functional.multilabel_soft_margin_loss.
    """
    logits, targets = agree(logits=logits, targets=targets)
    classes = ClassAxis.of(axis, axis_name, "logits", logits)
    where = classes.mask(where, logits)
    wide = widened(*(classes.fill_masked(where, array) for array in (logits, targets)))
    if weight is None or jnp.ndim(weight) <= 1:
        factor = weight_of_classes(weight, logits, classes).astype(wide[0].dtype)
    else:
        factor = broadcastable("weight", as_array("weight", weight).astype(wide[0].dtype), logits)
        factor = classes.fill_masked(where, factor)
    terms = weighted(factor, cross_entropy_of_logits(*wide, jnp.ones([1] * logits.ndim, wide[0].dtype)))
    return reduce_losses(classes.sum(terms) / classes.count(logits), None, where, reduction)


# PyTorch bounds the gradient at probabilities 0 and 1 with a float32 constant in every dtype.
_SMALLEST_VARIANCE = float(np.float32(1e-12))


def _variance(probs: jax.Array) -> jax.Array:
    """Returns probs · (1 - probs), bounded from below; NaN outside [0, 1]."""
    variance = probs * (1 - probs)
    return jnp.maximum(variance, _SMALLEST_VARIANCE) * one_or_nan(variance >= 0, variance.dtype)


def _logs(probs: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns log(probs) and log(1 - probs), at least -100 as in PyTorch."""
    return jnp.maximum(jnp.log(probs), -100), jnp.maximum(jnp.log1p(-probs), -100)


@derivatives(lambda probs: -1 / _variance(probs))
def _log_odds_against(probs: jax.Array) -> jax.Array:
    log_of_probs, log_of_others = _logs(probs)
    return log_of_others - log_of_probs


def _where_probability(targets: jax.Array, values: jax.Array) -> jax.Array:
    return values * one_or_nan((targets >= 0) & (targets <= 1), values.dtype)


def _curvature(probs: jax.Array, targets: jax.Array) -> jax.Array:
    """Returns the slope of `_pull` in probs without cancellation; constant where the variance is bounded."""
    variance = _variance(probs)
    is_free = variance > _SMALLEST_VARIANCE
    p = jnp.where(is_free, probs, 0.5)
    q = 1 - p
    free = targets / p / p + (1 - targets) / q / q  # squares would underflow in the next derivative
    return _where_probability(targets, jnp.where(is_free, free, 1 / variance))


@derivatives(_curvature, lambda probs, targets: _where_probability(targets, -1 / _variance(probs)))
def _pull(probs: jax.Array, targets: jax.Array) -> jax.Array:
    return _where_probability(targets, (probs - targets) / _variance(probs))


@derivatives(_pull, lambda probs, targets: _where_probability(targets, _log_odds_against(probs)))
def _from_probs(probs: jax.Array, targets: jax.Array) -> jax.Array:
    log_of_probs, log_of_others = _logs(probs)
    return _where_probability(targets, (targets - 1) * log_of_others - targets * log_of_probs)


def _error_probability(scores: jax.Array, targets: jax.Array) -> jax.Array:
    return sigmoid(-sign_or_nan(targets) * scores)


@derivatives(
    lambda scores, targets: -targets * _error_probability(scores, targets),
    lambda scores, targets: weighted(
        jnp.where(scores < 0, 1, -1) * _error_probability(scores, targets), jnp.abs(scores)
    ),
)
def _soft_margin(scores: jax.Array, targets: jax.Array) -> jax.Array:
    return softplus(-sign_or_nan(targets) * scores)
