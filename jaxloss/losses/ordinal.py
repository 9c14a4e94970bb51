"""Losses for ordinal regression, in which the classes are ordered."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from jaxloss._core.arguments import as_array, fill_masked, widened
from jaxloss._core.classes import ClassAxis, Labels, labels_without_weight
from jaxloss._core.decorator import compiled
from jaxloss._core.derivatives import softplus
from jaxloss._core.reduction import Reduction, reduce_losses


@compiled(static=("reduction",))
def coral_loss(
    logits: ArrayLike,
    targets: ArrayLike,
    *,
    where: ArrayLike | None = None,
    reduction: Reduction = "mean",
) -> jax.Array:
    """CORAL loss for ordinal regression: binary cross-entropy of y > k for each threshold k.

    With softplus(x) = log(1 + exp(x)) and K classes,

        loss = Σ_{k<y} softplus(-logits[k]) + Σ_{k≥y} softplus(logits[k])    for a label y

    Args:
        logits: Raw scores of y > k for k = 0 ... K - 2, shape (..., K - 1). In CORAL they differ only in
            their biases.
        targets: Integer class labels in [0, K), of the shape of `logits` without its last axis.
        where: Mask, broadcast to the shape of `targets`; see `help(jaxloss)`.
        reduction: "mean" (divides by the number of labels), "sum", "none" or "sum_and_weight".

    Returns:
        A scalar, or an array of the shape of `targets` for "none"; in nats.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxloss
        >>> logits = jnp.array([[2.0, -1.0], [0.5, 0.0]])  # of three classes
        >>> jaxloss.coral_loss(logits, jnp.array([1, 2]), reduction="none")
        Array([0.4402, 1.1672], dtype=float32)

    Source:
        W. Cao et al. (2020), Rank Consistent Ordinal Regression for Neural Networks with Application to Age
        Estimation. coral_pytorch documentation: coral_pytorch.losses.CoralLoss.
    """
    labels, terms = _terms(logits, targets, where)
    losses = labels.weight * jnp.sum(terms, -1)
    return reduce_losses(losses, None, labels.valid, reduction)


@compiled(static=("reduction",))
def corn_loss(
    logits: ArrayLike,
    targets: ArrayLike,
    *,
    where: ArrayLike | None = None,
    reduction: Reduction = "mean",
) -> jax.Array:
    """CORN loss for ordinal regression: binary cross-entropy of y > k given y > k - 1, for each threshold k.

    With softplus(x) = log(1 + exp(x)) and K classes,

        loss = Σ_{k<y} softplus(-logits[k]) + softplus(logits[y])    for a label y < K - 1
        loss = Σ_{k<y} softplus(-logits[k])                          for the label y = K - 1

    which are the min(y + 1, K - 1) thresholds k whose condition y > k - 1 holds.

    Args:
        logits: Raw scores of y > k given y > k - 1, for k = 0 ... K - 2, shape (..., K - 1).
        targets: Integer class labels in [0, K), of the shape of `logits` without its last axis.
        where: Mask, broadcast to the shape of `targets`; see `help(jaxloss)`.
        reduction: "mean" (divides by the number of these thresholds), "sum", "none" or "sum_and_weight".

    Returns:
        A scalar, or an array of the shape of `targets` for "none"; in nats.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxloss
        >>> logits = jnp.array([[2.0, -1.0], [0.5, 0.0]])  # of three classes
        >>> jaxloss.corn_loss(logits, jnp.array([0, 2]))
        Array(1.098, dtype=float32)

    Source:
        X. Shi, W. Cao and S. Raschka (2023), Deep Neural Networks for Rank-Consistent Ordinal Regression
        Based on Conditional Probabilities. coral_pytorch documentation: coral_pytorch.losses.corn_loss.
    """
    labels, terms = _terms(logits, targets, where)
    count = terms.shape[-1]
    applies = _index(labels, terms) <= labels.classes[..., None]
    losses = labels.weight * jnp.sum(fill_masked(applies, terms), -1)
    applicable = jnp.minimum(labels.classes + 1, count).astype(losses.dtype)
    return reduce_losses(losses, labels.weight * applicable, labels.valid, reduction)


def _terms(logits: ArrayLike, targets: ArrayLike, where: ArrayLike | None) -> tuple[Labels, jax.Array]:
    """Returns the labels, and the binary cross-entropy of each threshold, shape (..., K - 1)."""
    logits, targets = as_array("logits", logits), as_array("targets", targets)
    classes = ClassAxis.of(-1, None, "logits", logits)
    where = classes.mask(where, logits)
    count = logits.shape[-1] + 1
    labels = labels_without_weight(targets, "logits", logits, classes, count, None, where)
    (wide,) = widened(classes.fill_masked(labels.valid, logits))
    is_above = _index(labels, wide) < labels.classes[..., None]
    return labels, softplus(wide * (1 - 2 * is_above.astype(wide.dtype)))


def _index(labels: Labels, logits: jax.Array) -> jax.Array:
    """Returns 0 ... K - 2 along the last axis, in the dtype of the labels."""
    shape = [1] * (logits.ndim - 1) + [logits.shape[-1]]
    return lax.broadcasted_iota(labels.classes.dtype, shape, logits.ndim - 1)
