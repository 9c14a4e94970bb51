"""Lovász losses: convex surrogates of the Jaccard index of a region."""

from __future__ import annotations

import math
from typing import Literal

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from jaxloss._core.arguments import (
    agree,
    any_left,
    as_array,
    fill_masked,
    mask,
    refuse_unknown,
    resharded_like,
    widened,
)
from jaxloss._core.checks import checked, one_or_nan
from jaxloss._core.classes import ClassAxis, labels_without_weight
from jaxloss._core.decorator import compiled
from jaxloss._core.derivatives import (
    LARGEST_PROBABILITY,
    absolute,
    checked_probabilities,
    positive_part,
    weighted,
)
from jaxloss._core.reduction import Reduction, reduce_losses

Classes = Literal["present", "all"]


@compiled(static=("batch", "reduction"))
def lovasz_hinge_loss(
    logits: ArrayLike,
    targets: ArrayLike,
    *,
    batch: bool = False,
    where: ArrayLike | None = None,
    reduction: Reduction = "mean",
) -> jax.Array:
    """Lovász hinge loss, a surrogate of the Jaccard index of one region in each image.

    With the errors e = 1 - logits · (2 · targets - 1) of the pixels of an image in descending order,

        loss = Σ_k max(0, e[k]) · (J[k] - J[k - 1])

    where J[k] is the Jaccard loss if the first k pixels are wrong. Errors of 0 have slope 0. Equal errors
    keep the order of the pixels.

    Args:
        logits: Raw scores of N images, shape (N, ...); positive inside the region. A mesh with `Explicit`
            axes may shard only N, and nothing with `batch`: sorting gathers the pixels.
        targets: 0 or 1, or booleans, of the shape of `logits`.
        batch: Whether to treat all images as one image.
        where: Mask of the pixels, broadcast to the shape of `logits`; see `help(jaxloss)`.
        reduction: "mean" (divides by the number of images with an unmasked pixel), "sum", "none" or
            "sum_and_weight".

    Returns:
        A scalar, or for "none" an array of shape (N,), or () with `batch`; in the unit of the logits.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxloss
        >>> logits = jnp.array([[2.0, -1.0, 0.5, -3.0]])  # one image of 4 pixels
        >>> jaxloss.lovasz_hinge_loss(logits, jnp.array([[1, 1, 0, 0]]))
        Array(1.25, dtype=float32)

    Source:
        M. Berman et al. (2018), The Lovász-Softmax Loss: A Tractable Surrogate for the Optimization of the
        Intersection-over-Union Measure in Neural Networks.
    """
    logits, targets = agree(logits=logits, targets=targets)
    if not logits.ndim:
        raise ValueError(f"logits must have shape (N, ...), got shape {logits.shape}")
    where = mask(where, logits)
    (wide,) = widened(targets)
    is_binary = fill_masked(where, (wide == 0) | (wide == 1), True)
    targets = checked(targets, is_binary, "targets: expected 0 or 1")
    logits, targets = widened(*(fill_masked(where, array) for array in (logits, targets)))
    targets *= one_or_nan((targets == 0) | (targets == 1), targets.dtype)
    errors = positive_part(1 - logits * (2 * targets - 1))
    seen = any_left(where, logits.shape, range(not batch, logits.ndim))
    valid = jnp.ones_like(targets, bool) if where is None else jnp.broadcast_to(where, targets.shape)
    errors, true, valid = (_rows(array, 0 if batch else 1) for array in (errors, targets == 1, valid))
    return reduce_losses(_extension(errors, true, valid), None, seen, reduction)


@compiled(static=("axis", "batch", "classes", "ignore_index", "reduction"))
def lovasz_softmax_loss(
    probs: ArrayLike,
    targets: ArrayLike,
    *,
    axis: int = -1,
    batch: bool = True,
    classes: Classes = "present",
    ignore_index: int = -100,
    where: ArrayLike | None = None,
    reduction: Reduction = "mean",
) -> jax.Array:
    """Lovász-softmax loss, a surrogate of the mean Jaccard index of the classes.

    With the errors e[c] = |1{y = c} - p[c]| of the pixels, in descending order for each class,

        loss = mean_c Σ_k e[c, k] · (J[c, k] - J[c, k - 1])

    where J[c, k] is the Jaccard loss of class c if the first k pixels are wrong. Equal errors keep the order
    of the pixels.

    Args:
        probs: Probabilities in [0, 1] of N images, shape (N, ..., C). A mesh with `Explicit` axes may shard
            only the classes, and N without `batch`: sorting gathers the pixels.
        targets: Integer class labels in [0, C), of the shape of `probs` without the class axis.
        axis: Class axis of `probs`.
        batch: Whether to treat all images as one image.
        classes: "present" averages over the classes that have a true pixel, "all" over all of them.
        ignore_index: Label of pixels to ignore, any integer.
        where: Mask of the pixels, broadcast to the shape of `targets`; see `help(jaxloss)`.
        reduction: "mean" (divides by the number of images with an unmasked pixel), "sum", "none" or
            "sum_and_weight".

    Returns:
        A scalar, or for "none" an array of shape (N,), or () with `batch`; in [0, 1].

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxloss
        >>> probs = jnp.array([[[0.8, 0.2], [0.6, 0.4], [0.3, 0.7]]])  # one image, 3 pixels, 2 classes
        >>> jaxloss.lovasz_softmax_loss(probs, jnp.array([[0, 1, 1]]))
        Array(0.4333, dtype=float32)

    Source:
        M. Berman et al. (2018), The Lovász-Softmax Loss: A Tractable Surrogate for the Optimization of the
        Intersection-over-Union Measure in Neural Networks.
    """
    refuse_unknown("classes", classes, Classes)
    probs, targets = as_array("probs", probs), as_array("targets", targets)
    class_axis = ClassAxis.of(axis, None, "probs", probs)
    if probs.ndim < 2:
        raise ValueError(f"probs must have shape (N, ..., C), got shape {probs.shape}")
    where, count = class_axis.mask(where, probs), class_axis.count(probs)
    labels = labels_without_weight(targets, "probs", probs, class_axis, count, ignore_index, where)
    on_classes = class_axis.expand(labels.valid)
    probs = checked_probabilities("probs", probs, on_classes, LARGEST_PROBABILITY)
    (predicted,) = widened(fill_masked(on_classes, probs))
    true = class_axis.one_hot(labels.classes, probs) & on_classes
    is_probability = (predicted >= 0) & (predicted <= LARGEST_PROBABILITY)
    errors = absolute(true.astype(predicted.dtype) - predicted)
    errors *= one_or_nan(is_probability, predicted.dtype) * class_axis.expand(labels.weight)
    leading = 1 if batch else 2
    valid = jnp.broadcast_to(on_classes, probs.shape)
    errors, true, valid = (
        _rows(jnp.moveaxis(array, class_axis.position, leading - 1), leading)
        for array in (errors, true, valid)
    )
    losses = _extension(errors, true, valid)
    counted = jnp.any(true, -1) if classes == "present" else jnp.ones_like(losses, bool)
    number = jnp.maximum(jnp.sum(counted, -1), 1).astype(losses.dtype)
    # A product, so that NaN of an absent class is not hidden.
    losses = jnp.sum(losses * counted.astype(losses.dtype), -1) / number
    return reduce_losses(losses, None, jnp.any(valid, (-2, -1)), reduction)


def _rows(array: jax.Array, leading: int) -> jax.Array:
    """Flattens all axes of an array except the leading ones."""
    return array.reshape(*array.shape[:leading], math.prod(array.shape[leading:]))


def _extension(errors: jax.Array, true: jax.Array, valid: jax.Array) -> jax.Array:
    """Returns the Lovász extension of the Jaccard loss for the errors >= 0 of the pixels of each row."""
    steps = _steps(lax.stop_gradient(errors), true & valid, ~true & valid)
    return jnp.sum(weighted(steps, errors), -1)


def _steps(errors: jax.Array, true: jax.Array, false: jax.Array) -> jax.Array:
    """Returns how much each pixel increases the Jaccard loss, if pixels become wrong by decreasing error.

    Sorts and sorts back: a gather would have a scatter as its derivative, and no rule for sharded arrays.
    """
    place = lax.broadcasted_iota(jnp.int32, errors.shape, errors.ndim - 1)
    true, false, place = (resharded_like(errors, array) for array in (true, false, place))
    _, true, false, place = lax.sort((-errors, true, false, place), num_keys=1, is_stable=True)
    size = jnp.sum(true, -1, keepdims=True, dtype=jnp.int32)
    left = (size - jnp.cumsum(true, -1, dtype=jnp.int32)).astype(errors.dtype)
    union = (size + jnp.cumsum(false, -1, dtype=jnp.int32)).astype(errors.dtype)
    before = union - false.astype(union.dtype)
    # A true pixel leaves the intersection; a false one joins the union, with step 1 if that was empty.
    joined = jnp.where(before == 0, 1, left / jnp.maximum(union, 1) / jnp.maximum(before, 1))
    steps = jnp.where(true, 1 / jnp.maximum(union, 1), jnp.where(false, joined, 0))
    _, steps = lax.sort((place, steps), num_keys=1)
    return steps
