"""Losses over classes with sparse probabilities, which may be exactly 0."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero
from jax.typing import ArrayLike

from jaxloss._core.arguments import agree, as_array, widened
from jaxloss._core.classes import (
    ClassAxis,
    class_labels,
    refuse_misfit_of_probabilities,
)
from jaxloss._core.decorator import compiled
from jaxloss._core.derivatives import power, weighted
from jaxloss._core.reduction import Reduction, reduce_losses


@compiled(static=("axis", "ignore_index", "reduction"))
def sparsemax_loss(
    logits: ArrayLike,
    targets: ArrayLike,
    *,
    axis: int = -1,
    ignore_index: int = -100,
    where: ArrayLike | None = None,
    reduction: Reduction = "mean",
) -> jax.Array:
    """Sparsemax loss, whose gradient is sparsemax(logits) - targets.

    With p = max(0, logits - τ), where τ makes Σ_c p[c] = 1, and target probabilities t, one-hot for a label,

        loss = ½ · Σ_c (p[c] - t[c])² + Σ_c t[c] · max(0, τ - logits[c])

    Args:
        logits: Raw scores, any shape with a class axis, which a mesh with `Explicit` axes must not shard.
        targets: Integer class labels in [0, C), of the shape of `logits` without the class axis; or
            floating-point class probabilities, of the shape of `logits`.
        axis: Class axis of `logits`.
        ignore_index: Label of positions to ignore, any integer; negative if targets are probabilities.
        where: Mask, broadcast to the shape of `logits` without the class axis; see `help(jaxloss)`.
        reduction: "mean" (divides by the number of positions that are not ignored), "sum", "none" or
            "sum_and_weight".

    Returns:
        A scalar, or an array of the shape of `logits` without the class axis for "none".

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxloss
        >>> logits = jnp.array([[2.0, 1.5, 0.0], [0.0, 1.0, 2.0]])
        >>> jaxloss.sparsemax_loss(logits, jnp.array([0, 1]), reduction="none")
        Array([0.0625, 1.    ], dtype=float32)

    Source:
        A. F. T. Martins and R. F. Astudillo (2016), From Softmax to Sparsemax. entmax documentation:
        entmax.SparsemaxLoss.
    """
    return _reduced(logits, targets, axis, False, ignore_index, where, reduction)


@compiled(static=("axis", "ignore_index", "reduction"))
def entmax15_loss(
    logits: ArrayLike,
    targets: ArrayLike,
    *,
    axis: int = -1,
    ignore_index: int = -100,
    where: ArrayLike | None = None,
    reduction: Reduction = "mean",
) -> jax.Array:
    """1.5-entmax loss, whose gradient is entmax15(logits) - targets.

    With s = max(0, logits / 2 - τ), where τ makes Σ_c s[c]² = 1, target probabilities t, one-hot for a label,
    and their square roots r,

        loss = ⅔ · Σ_c (s[c] - r[c])² · (s[c] + 2 · r[c]) + Σ_c t[c] · max(0, 2 · τ - logits[c])

    Args:
        logits: Raw scores, any shape with a class axis, which a mesh with `Explicit` axes must not shard.
        targets: Integer class labels in [0, C), of the shape of `logits` without the class axis; or
            floating-point class probabilities, of the shape of `logits`. Second derivatives with respect to a
            probability of 0 are 0.
        axis: Class axis of `logits`.
        ignore_index: Label of positions to ignore, any integer; negative if targets are probabilities.
        where: Mask, broadcast to the shape of `logits` without the class axis; see `help(jaxloss)`.
        reduction: "mean" (divides by the number of positions that are not ignored), "sum", "none" or
            "sum_and_weight".

    Returns:
        A scalar, or an array of the shape of `logits` without the class axis for "none".

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxloss
        >>> logits = jnp.array([[4.0, 0.0, 0.0], [0.0, 1.0, 2.0]])
        >>> jaxloss.entmax15_loss(logits, jnp.array([0, 1]), reduction="none")
        Array([0.    , 1.0617], dtype=float32)

    Source:
        B. Peters, V. Niculae and A. F. T. Martins (2019), Sparse Sequence-to-Sequence Models. entmax
        documentation: entmax.Entmax15Loss.
    """
    return _reduced(logits, targets, axis, True, ignore_index, where, reduction)


def _reduced(
    logits: ArrayLike,
    targets: ArrayLike,
    axis: int,
    squared: bool,
    ignore_index: int,
    where: ArrayLike | None,
    reduction: str,
) -> Any:
    """Returns the reduced loss of entmax15 if `squared`, else of sparsemax."""
    logits, targets = as_array("logits", logits), as_array("targets", targets)
    classes = ClassAxis.of(axis, None, "logits", logits)
    where = classes.mask(where, logits)
    if jnp.issubdtype(targets.dtype, jnp.floating):
        refuse_misfit_of_probabilities(targets, logits, ignore_index)
        arrays = agree(logits=logits, targets=targets)
        logits, probs = widened(*(classes.fill_masked(where, array) for array in arrays))
        return reduce_losses(_losses(logits, probs, classes.position, squared), None, where, reduction)
    labels = class_labels(targets, "logits", logits, classes, None, ignore_index, where)
    (logits,) = widened(classes.fill_masked(labels.valid, logits))
    probs = classes.one_hot(labels.classes, logits).astype(logits.dtype)
    losses = labels.weight * _losses(logits, probs, classes.position, squared)
    return reduce_losses(losses, labels.weight, labels.valid, reduction)


def _losses(logits: jax.Array, probs: jax.Array, axis: int, squared: bool) -> jax.Array:
    """Returns the losses of logits and target probabilities."""
    return _along_last_axis(jnp.moveaxis(logits, axis, -1), jnp.moveaxis(probs, axis, -1), squared)


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def _along_last_axis(logits: jax.Array, probs: jax.Array, squared: bool) -> jax.Array:
    above, below, threshold = _about_threshold(logits, squared)
    correction = weighted(1 - jnp.sum(probs, -1), threshold)  # for probabilities that do not sum to 1
    if not squared:
        return jnp.sum((above - probs) ** 2 / 2 + weighted(probs, below), -1) + correction
    roots = power(probs, 0.5)
    distance = (above - roots) ** 2 * (above + 2 * roots) / 3
    return 2 * (jnp.sum(distance + weighted(probs, below), -1) + correction)


def _along_last_axis_jvp(
    squared: bool, primals: tuple[Any, ...], tangents: tuple[Any, ...]
) -> tuple[jax.Array, jax.Array]:
    """Differentiates the loss in its form Ω*(logits) - logits · probs + Ω(probs)."""
    logits, probs = primals
    above = _above_threshold(logits, squared)
    slopes = (above**2 if squared else above) - probs, (2 * power(probs, 0.5) if squared else probs) - logits
    terms = [
        slope * tangent
        for slope, tangent in zip(slopes, tangents, strict=True)
        if not isinstance(tangent, SymbolicZero)
    ]
    return _along_last_axis(logits, probs, squared), jnp.sum(functools.reduce(jnp.add, terms), -1)


_along_last_axis.defjvp(_along_last_axis_jvp, symbolic_zeros=True)


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def _above_threshold(logits: jax.Array, squared: bool) -> jax.Array:
    """Returns the probabilities, or their roots if `squared`."""
    return _about_threshold(logits, squared)[0]


@_above_threshold.defjvp
def _above_threshold_jvp(
    squared: bool, primals: tuple[jax.Array], tangents: tuple[jax.Array]
) -> tuple[jax.Array, jax.Array]:
    above = _above_threshold(*primals, squared)
    weight = above if squared else jnp.where(above > 0, 1, above)
    mean = jnp.sum(weight * tangents[0], -1, keepdims=True) / jnp.sum(weight, -1, keepdims=True)
    tangent = jnp.where(above == 0, 0, tangents[0] - mean)
    return above, tangent / 2 if squared else tangent


def _about_threshold(logits: jax.Array, squared: bool) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns how far logits, or their halves, are above the threshold τ, how far below it, and τ."""
    largest = jnp.max(logits, -1, keepdims=True)
    numbers = jnp.where(logits == largest, 0, logits - largest)  # 0 for equal infinities, too
    numbers = numbers / 2 if squared else numbers
    # Numbers 1 or more below the largest have probability 0; the bound keeps large ones out of the sums.
    ordered = jnp.maximum(-jnp.sort(-numbers, -1), -2)
    ranks = jnp.arange(1, logits.shape[-1] + 1, dtype=logits.dtype)
    ranks = ranks.reshape([1] * (logits.ndim - 1) + [-1])
    mean = jnp.cumsum(ordered, -1) / ranks
    thresholds = mean - 1 / ranks
    if squared:
        spread = jnp.cumsum(ordered**2, -1) / ranks - mean**2
        thresholds = mean - jnp.sqrt(jnp.maximum(1 / ranks - spread, 0))
    count = jnp.sum(ordered > thresholds, -1, keepdims=True, dtype=jnp.int32)
    threshold = jnp.take_along_axis(thresholds, count - 1, -1)
    gap = numbers - threshold
    threshold = jnp.squeeze(threshold + (largest / 2 if squared else largest), -1)
    return jnp.maximum(gap, 0), jnp.maximum(-gap, 0), threshold
