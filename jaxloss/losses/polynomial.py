"""Cross-entropies with powers of the probability of the true class."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxloss._core.arguments import agree, as_array, broadcastable, widened
from jaxloss._core.classes import (
    ClassAxis,
    Labels,
    class_labels,
    log_normalizer,
    log_odds_against,
    nll_over_classes,
    refuse_misfit_of_probabilities,
    smoothed,
    weight_of_classes,
)
from jaxloss._core.decorator import Domain, compiled, fraction
from jaxloss._core.derivatives import derivatives, sigmoid, softplus, weighted, weighted_twice
from jaxloss._core.reduction import Reduction, reduce_losses


@compiled(
    static=("axis", "ignore_index", "label_smoothing", "reduction", "axis_name"),
    domains={
        "epsilon": Domain("a number >= -1", lambda number: number >= -1),
        "label_smoothing": fraction,
    },
)
def poly_cross_entropy(
    logits: ArrayLike,
    targets: ArrayLike,
    *,
    axis: int = -1,
    epsilon: ArrayLike = 2.0,
    weight: ArrayLike | None = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    where: ArrayLike | None = None,
    reduction: Reduction = "mean",
    axis_name: str | None = None,
) -> jax.Array:
    """Poly-1 cross-entropy: cross-entropy plus a multiple of 1 - p.

    With p = softmax(logits) and targets t, one-hot for a label y, mixed with the uniform distribution by
    label smoothing,

        loss = Σ_c weight[c] · t[c] · -log p[c] + epsilon · w · Σ_c t[c] · (1 - p[c])

    where w is weight[y] for a label, or Σ_c weight[c] · t[c] with the unsmoothed t for probabilities.

    Args:
        logits: Raw scores, any shape with a class axis.
        targets: Integer class labels in [0, C), of the shape of `logits` without the class axis; or
            floating-point class probabilities, of the shape of `logits`.
        axis: Class axis of `logits`, and of probabilities.
        epsilon: Factor of the second term, a number >= -1. With 0 the loss is `cross_entropy`.
        weight: Weight of each class, shape (C,). Default: 1.
        ignore_index: Label of positions to ignore, any integer; negative if targets are probabilities.
        label_smoothing: Share of the uniform distribution, a static number in [0, 1].
        where: Mask, broadcast to the shape of `logits` without the class axis; see `help(jaxloss)`.
        reduction: "mean", "sum", "none" or "sum_and_weight". The mean divides by Σ weight[y] over the
            labels that are not ignored; for probabilities, by the number of positions.
        axis_name: Mesh axis that shards the classes inside `jax.shard_map`; see `help(jaxloss)`.

    Returns:
        A scalar, or an array of the shape of `logits` without the class axis for "none"; in nats.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxloss
        >>> logits = jnp.array([[2.0, 1.0, 0.0], [0.0, 1.0, 2.0]])
        >>> jaxloss.poly_cross_entropy(logits, jnp.array([0, 1]))
        Array(1.9976, dtype=float32)

    Source:
        Z. Leng et al. (2022), PolyLoss: A Polynomial Expansion Perspective of Classification Loss
        Functions. Optax documentation: optax.losses.poly_loss_cross_entropy.
    """
    logits, targets = as_array("logits", logits), as_array("targets", targets)
    classes = ClassAxis.of(axis, axis_name, "logits", logits)
    where = classes.mask(where, logits)
    options = weight, epsilon, label_smoothing
    if jnp.issubdtype(targets.dtype, jnp.floating):
        refuse_misfit_of_probabilities(targets, logits, ignore_index)
        losses = _soft_losses(logits, targets, classes, where, *options)
        return reduce_losses(losses, None, where, reduction)
    labels = class_labels(targets, "logits", logits, classes, weight, ignore_index, where)
    losses = _hard_losses(logits, labels, classes, *options)
    return reduce_losses(losses, labels.weight, labels.valid, reduction)


@compiled(
    static=("axis", "ignore_index", "reduction", "axis_name"),
    domains={"q": Domain("a number in (0, 1]", lambda number: (number > 0) & (number <= 1))},
)
def generalized_cross_entropy(
    logits: ArrayLike,
    targets: ArrayLike,
    *,
    axis: int = -1,
    q: ArrayLike = 0.7,
    ignore_index: int = -100,
    where: ArrayLike | None = None,
    reduction: Reduction = "mean",
    axis_name: str | None = None,
) -> jax.Array:
    """Generalized cross-entropy, which bounds the loss of a wrong label.

    With p = softmax(logits),

        loss = (1 - p[y]^q) / q    for a label y

    The limit for q → 0 is the cross-entropy; q = 1 gives 1 - p[y], half the mean absolute error. The loss is
    at most 1 / q.

    Args:
        logits: Raw scores, any shape with a class axis.
        targets: Integer class labels in [0, C), of the shape of `logits` without the class axis.
        axis: Class axis of `logits`.
        q: Exponent, a number in (0, 1].
        ignore_index: Label of positions to ignore, any integer.
        where: Mask, broadcast to the shape of `targets`; see `help(jaxloss)`.
        reduction: "mean" (divides by the number of labels that are not ignored), "sum", "none" or
            "sum_and_weight".
        axis_name: Mesh axis that shards the classes inside `jax.shard_map`; see `help(jaxloss)`.

    Returns:
        A scalar, or an array of the shape of `targets` for "none"; dimensionless.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxloss
        >>> logits = jnp.array([[2.0, 1.0, 0.0], [0.0, 1.0, 2.0]])
        >>> jaxloss.generalized_cross_entropy(logits, jnp.array([0, 1]))
        Array(0.6249, dtype=float32)

    Differences from other libraries:
        * Keras takes probabilities, and its gradient at probability 0 is infinite or NaN; here it is 0.

    Source:
        Z. Zhang and M. R. Sabuncu (2018), Generalized Cross Entropy Loss for Training Deep Neural Networks
        with Noisy Labels.
    """
    logits, targets = as_array("logits", logits), as_array("targets", targets)
    classes = ClassAxis.of(axis, axis_name, "logits", logits)
    where = classes.mask(where, logits)
    labels = class_labels(targets, "logits", logits, classes, None, ignore_index, where)
    logits = classes.fill_masked(labels.valid, logits)
    (wide,) = widened(logits)
    nll = softplus(log_odds_against(wide, labels.classes, classes, logits))
    exponent = broadcastable("q", jnp.asarray(q, nll.dtype), nll)
    losses = labels.weight * _bounded(nll, exponent)
    return reduce_losses(losses, labels.weight, labels.valid, reduction)


def _hard_losses(
    logits: jax.Array,
    labels: Labels,
    classes: ClassAxis,
    weight: ArrayLike | None,
    epsilon: ArrayLike,
    label_smoothing: float,
) -> jax.Array:
    logits = classes.fill_masked(labels.valid, logits)
    (wide,) = widened(logits)
    odds = log_odds_against(wide, labels.classes, classes, logits)
    losses, miss = weighted(labels.weight, softplus(odds)), sigmoid(odds)
    if label_smoothing:
        shift, count = classes.max(wide), classes.count(wide)
        uniform = nll_over_classes(wide, shift, log_normalizer(wide, shift, classes), weight, classes)
        losses = smoothed(losses, uniform, label_smoothing, count)
        miss = (1 - label_smoothing) * miss + label_smoothing * (1 - 1 / count)
    factor = broadcastable("epsilon", jnp.asarray(epsilon, losses.dtype), losses)
    return losses + factor * (labels.weight * miss)


def _soft_losses(
    logits: jax.Array,
    probs: jax.Array,
    classes: ClassAxis,
    where: jax.Array | None,
    weight: ArrayLike | None,
    epsilon: ArrayLike,
    label_smoothing: float,
) -> jax.Array:
    logits, probs = (classes.fill_masked(where, array) for array in agree(logits=logits, targets=probs))
    wide, probs = widened(logits, probs)
    of_classes = weight_of_classes(weight, wide, classes).astype(wide.dtype)
    of_probs = classes.sum(of_classes * probs)
    if label_smoothing:
        probs = (1 - label_smoothing) * probs + label_smoothing / classes.count(wide)
    shift = classes.max(wide)
    log_norm = log_normalizer(wide, shift, classes)
    nll = classes.expand(log_norm) - (wide - classes.expand(shift))
    losses = classes.sum(weighted_twice(of_classes, probs, nll))
    factor = broadcastable("epsilon", jnp.asarray(epsilon, losses.dtype), losses)
    return losses + factor * (of_probs * classes.sum(probs * -jnp.expm1(-nll)))


def _slope_in_q(nll: jax.Array, q: jax.Array) -> jax.Array:
    return (weighted(jnp.exp(-q * nll), nll) + jnp.expm1(-q * nll) / q) / q


@derivatives(lambda nll, q: jnp.exp(-q * nll), _slope_in_q)
def _bounded(nll: jax.Array, q: jax.Array) -> jax.Array:
    """Returns (1 - exp(-q · nll)) / q."""
    return -jnp.expm1(-q * nll) / q
