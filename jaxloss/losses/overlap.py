"""Losses on the overlap of predicted and true regions, one for each class of each image."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from jaxloss._core.arguments import (
    agree,
    any_left,
    as_array,
    fill_masked,
    integer,
    last_axis_unsharded,
    mask,
    resharded_like,
    widened,
)
from jaxloss._core.checks import one_or_nan
from jaxloss._core.classes import ClassAxis, is_not_ignored, labels_without_weight, per_class
from jaxloss._core.decorator import compiled, not_negative
from jaxloss._core.derivatives import (
    LARGEST_PROBABILITY,
    checked_probabilities,
    derivatives,
    inverse_or_zero,
)
from jaxloss._core.reduction import Reduction, reduce_losses

_STATIC = ("axis", "squared", "batch", "include_background", "skip_absent", "ignore_index", "reduction")


@compiled(static=_STATIC, domains={"smooth": not_negative})
def dice_loss(
    probs: ArrayLike,
    targets: ArrayLike,
    *,
    axis: int | None = -1,
    smooth: ArrayLike = 1e-5,
    squared: bool = False,
    batch: bool = False,
    include_background: bool = True,
    skip_absent: bool = False,
    weight: ArrayLike | None = None,
    ignore_index: int = -100,
    where: ArrayLike | None = None,
    reduction: Reduction = "mean",
) -> jax.Array:
    """Dice loss (Sørensen-Dice) on the overlap of regions.

    With sums over the pixels of an image, for each class,

        loss = 1 - (2 · Σ p · t + smooth) / (Σ p + Σ t + smooth)      and Σ p² + Σ t² with `squared`

    which is 0 where both sums are 0.

    Args:
        probs: Probabilities in [0, 1] of N images, shape (N, ..., C), or (N, ...) with `axis=None`.
        targets: Integer class labels in [0, C), shape (N, ...); or 0 or 1, booleans, or probabilities, of
            the shape of `probs`.
        axis: Class axis of `probs`, or None for one class.
        smooth: Number >= 0 that is added to numerator and denominator.
        squared: Whether to square the probabilities in the denominator (V-Net).
        batch: Whether to sum over all images, too.
        include_background: Whether the losses include class 0.
        skip_absent: Whether classes without a true pixel have weight 0.
        weight: Weight of each class, shape (C,). Default: 1.
        ignore_index: Integer target of pixels to ignore.
        where: Mask of the pixels, broadcast to shape (N, ...); see `help(jaxloss)`.
        reduction: "mean" (divides by the sum of the weights), "sum", "none" or "sum_and_weight". An image
            whose pixels are all masked has loss and weight 0.

    Returns:
        A scalar, or for "none" an array of shape (N, C), (N,) with `axis=None`, or with `batch` (C,) or ();
        in [0, 1] for weight 1.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxloss
        >>> probs = jnp.array([[[0.8, 0.2], [0.6, 0.4], [0.3, 0.7]]])  # one image, 3 pixels, 2 classes
        >>> jaxloss.dice_loss(probs, jnp.array([[0, 1, 1]]))
        Array(0.3704, dtype=float32)

    Differences from other libraries:
        * For a class without a true pixel, this loss and MONAI's are near 1, Keras's is 1, and
          segmentation-models-pytorch's is 0, which still counts in its mean.
        * The mean divides by the weights; MONAI's does not.

    Source:
        F. Milletari et al. (2016), V-Net. MONAI documentation: monai.losses.DiceLoss.
    """
    regions = _Regions.of(probs, targets, axis, where, ignore_index, batch)
    p, t = regions.predicted, regions.true
    missed = regions.sum(jnp.square(p - t) if squared else p * (1 - t) + (1 - p) * t)
    losses = _shortfall(missed, 2 * regions.sum(p * t) + jnp.asarray(smooth, p.dtype))
    return regions.reduce(losses, weight, include_background, skip_absent, reduction)


@compiled(
    static=[name for name in _STATIC if name != "squared"],
    domains={"alpha": not_negative, "beta": not_negative, "gamma": not_negative, "smooth": not_negative},
)
def tversky_loss(
    probs: ArrayLike,
    targets: ArrayLike,
    *,
    axis: int | None = -1,
    alpha: ArrayLike = 0.5,
    beta: ArrayLike = 0.5,
    gamma: ArrayLike = 1.0,
    smooth: ArrayLike = 1e-5,
    batch: bool = False,
    include_background: bool = True,
    skip_absent: bool = False,
    weight: ArrayLike | None = None,
    ignore_index: int = -100,
    where: ArrayLike | None = None,
    reduction: Reduction = "mean",
) -> jax.Array:
    """Tversky loss with weights for false positives and false negatives; with gamma, focal Tversky loss.

    With tp = Σ p · t, fp = Σ p · (1 - t) and fn = Σ (1 - p) · t over the pixels of an image, for each class,

        loss = (1 - (tp + smooth) / (tp + alpha · fp + beta · fn + smooth))^gamma

    which is 0 where the denominator is 0. alpha = beta = 1/2 is `dice_loss` with twice `smooth`, and
    alpha = beta = 1 the Jaccard loss.

    Args:
        probs: Probabilities in [0, 1] of N images, shape (N, ..., C), or (N, ...) with `axis=None`.
        targets: Integer class labels in [0, C), shape (N, ...); or 0 or 1, booleans, or probabilities, of
            the shape of `probs`.
        axis: Class axis of `probs`, or None for one class.
        alpha: Weight of false positives, a number >= 0.
        beta: Weight of false negatives, a number >= 0.
        gamma: Exponent >= 0 of each loss. Below 1, the gradient at loss 0 is 0.
        smooth: Number >= 0 that is added to numerator and denominator.
        batch: Whether to sum over all images, too.
        include_background: Whether the losses include class 0.
        skip_absent: Whether classes without a true pixel have weight 0.
        weight: Weight of each class, shape (C,). Default: 1.
        ignore_index: Integer target of pixels to ignore.
        where: Mask of the pixels, broadcast to shape (N, ...); see `help(jaxloss)`.
        reduction: "mean" (divides by the sum of the weights), "sum", "none" or "sum_and_weight".

    Returns:
        As in `dice_loss`.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxloss
        >>> probs = jnp.array([[[0.8, 0.2], [0.6, 0.4], [0.3, 0.7]]])  # one image, 3 pixels, 2 classes
        >>> jaxloss.tversky_loss(probs, jnp.array([[0, 1, 1]]), alpha=0.3, beta=0.7)
        Array(0.3622, dtype=float32)

    Differences from other libraries:
        * Keras's alpha weighs false negatives and its beta false positives.

    Source:
        S. Salehi et al. (2017), Tversky Loss Function for Image Segmentation. N. Abraham and N. Khan
        (2019), A Novel Focal Tversky Loss Function. MONAI documentation: monai.losses.TverskyLoss.
    """
    regions = _Regions.of(probs, targets, axis, where, ignore_index, batch)
    p, t = regions.predicted, regions.true
    alpha, beta, smooth = (jnp.asarray(number, p.dtype) for number in (alpha, beta, smooth))
    missed = regions.sum(alpha * p * (1 - t) + beta * (1 - p) * t)
    losses = _shortfall(missed, regions.sum(p * t) + smooth)
    gamma = resharded_like(losses, jnp.full(losses.shape, jnp.asarray(gamma, losses.dtype)))
    losses = _power(losses, gamma)
    return regions.reduce(losses, weight, include_background, skip_absent, reduction)


@compiled(static=("axis", "batch", "reduction"), domains={"smooth": not_negative})
def generalized_dice_loss(
    probs: ArrayLike,
    targets: ArrayLike,
    *,
    axis: int = -1,
    smooth: ArrayLike = 1e-5,
    batch: bool = False,
    where: ArrayLike | None = None,
    reduction: Reduction = "mean",
) -> jax.Array:
    """Generalized dice loss, in which small regions have as much weight as large ones.

    With sums over the pixels of an image, and w[c] = 1 / (Σ t[c])²,

        loss = 1 - (2 · Σ_c w[c] · Σ p[c] · t[c] + smooth) / (Σ_c w[c] · (Σ p[c] + Σ t[c]) + smooth)

    A class without a true pixel has the largest weight of the image's other classes, or 1 if there is none.

    Args:
        probs: Probabilities in [0, 1] of N images, shape (N, ..., C).
        targets: Integer class labels in [0, C), shape (N, ...); or 0 or 1, booleans, or probabilities, of
            the shape of `probs`.
        axis: Class axis of `probs`.
        smooth: Number >= 0 that is added to numerator and denominator.
        batch: Whether to sum over all images, too.
        where: Mask of the pixels, broadcast to shape (N, ...); see `help(jaxloss)`.
        reduction: "mean" (divides by the number of images with an unmasked pixel), "sum", "none" or
            "sum_and_weight".

    Returns:
        A scalar, or for "none" an array of shape (N,), or () with `batch`; in [0, 1].

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxloss
        >>> probs = jnp.array([[[0.8, 0.2], [0.6, 0.4], [0.3, 0.7]]])  # one image, 3 pixels, 2 classes
        >>> jaxloss.generalized_dice_loss(probs, jnp.array([[0, 1, 1]]))
        Array(0.3901, dtype=float32)

    Source:
        C. Sudre et al. (2017), Generalised Dice Overlap as a Deep Learning Loss Function for Highly
        Unbalanced Segmentations. MONAI documentation: monai.losses.GeneralizedDiceLoss.
    """
    regions = _Regions.of(probs, targets, integer("axis", axis), where, None, batch)
    p, t = regions.predicted, regions.true
    # The weights and `smooth` are divided by the largest weight, and cannot overflow.
    sizes = regions.sum(t)
    absent = sizes == 0
    smallest = jnp.min(jnp.where(absent, jnp.inf, sizes), -1, keepdims=True)
    smallest = jnp.where(smallest == jnp.inf, 1, smallest)
    shares = jnp.square(smallest / jnp.where(absent, smallest, sizes))
    missed = jnp.sum(shares * regions.sum(p * (1 - t) + (1 - p) * t), -1)
    hits = jnp.sum(shares * 2 * regions.sum(p * t), -1)
    smooth = jnp.asarray(smooth, hits.dtype) * jnp.square(jnp.squeeze(smallest, -1))
    losses = _shortfall(missed, hits + smooth) * jnp.prod(regions.validity(), -1)
    return reduce_losses(losses, None, regions.seen(), reduction)


class _Regions(NamedTuple):
    """Predicted and true regions, and sums over their pixels."""

    predicted: jax.Array  # probabilities, 0 where masked
    true: jax.Array  # likewise
    valid: jax.Array | None  # mask of pixels, broadcastable to (N, ...)
    axis: int | None  # of the classes
    batch: bool

    @classmethod
    def of(
        cls,
        probs: ArrayLike,
        targets: ArrayLike,
        axis: int | None,
        where: ArrayLike | None,
        ignore_index: int | None,
        batch: bool,
    ) -> _Regions:
        """Returns the regions of probabilities and of targets of either kind."""
        probs, targets = as_array("probs", probs), as_array("targets", targets)
        if probs.ndim < (1 if axis is None else 2):
            shape = "(N, ...)" if axis is None else "(N, ..., C)"
            raise ValueError(f"probs must have shape {shape} with axis={axis}, got shape {probs.shape}")
        classes = None if axis is None else ClassAxis.of(axis, None, "probs", probs)
        is_integer = jnp.issubdtype(targets.dtype, jnp.integer)
        if classes is not None and is_integer and targets.shape != probs.shape:
            true, valid = _of_labels(probs, targets, classes, where, ignore_index)
        else:
            probs, true = agree(probs=probs, targets=targets)
            valid = mask(where, probs) if classes is None else classes.mask(where, probs)
            if classes is None and is_integer and ignore_index is not None:
                counted = is_not_ignored(true, ignore_index)
                valid = counted if valid is None else counted & valid
            elif ignore_index is not None and integer("ignore_index", ignore_index) >= 0:
                raise ValueError(
                    f"ignore_index={ignore_index} needs integer labels, got targets {true.shape} of dtype "
                    f"{true.dtype}"
                )
        on_classes = valid if classes is None or valid is None else classes.expand(valid)
        true = checked_probabilities("targets", true, on_classes)
        probs = checked_probabilities("probs", probs, on_classes, LARGEST_PROBABILITY)
        predicted, true = widened(*(fill_masked(on_classes, array) for array in (probs, true)))
        return cls(predicted, true, valid, None if classes is None else classes.position, batch)

    def sum(self, array: jax.Array) -> jax.Array:
        """Returns the sum over the pixels, of shape (N, C), without N for a batch or C without classes."""
        return self._over_pixels(jnp.sum, array)

    def validity(self) -> jax.Array:
        """Returns NaN for a region with a pixel outside [0, 1], else 1, in the shape of a sum.

        It multiplies sums instead of pixels, whose gradient would then read a mask of pixels.
        """
        valid = (self.predicted >= 0) & (self.predicted <= LARGEST_PROBABILITY)
        valid &= (self.true >= 0) & (self.true <= 1)
        return one_or_nan(self._over_pixels(jnp.all, valid), self.predicted.dtype)

    def _over_pixels(self, reduction: Callable[..., jax.Array], array: jax.Array) -> jax.Array:
        image = None if self.batch else int(self.axis == 0)
        axes = tuple(axis for axis in range(array.ndim) if axis not in (image, self.axis))
        reduced = reduction(array, axes)
        return jnp.moveaxis(reduced, 0, -1) if image else reduced

    def seen(self) -> jax.Array | None:
        """Returns whether each image, or the batch, has an unmasked pixel; None means that all have."""
        shape = [size for axis, size in enumerate(self.predicted.shape) if axis != self.axis]
        return any_left(self.valid, shape, range(not self.batch, len(shape)))

    def reduce(
        self,
        losses: jax.Array,
        weight: ArrayLike | None,
        include_background: bool,
        skip_absent: bool,
        reduction: str,
    ) -> jax.Array:
        """Reduces the losses of the regions, which become NaN if a pixel is outside [0, 1]."""
        losses, counted = losses * self.validity(), self.seen()
        if self.axis is None:
            if weight is not None or not include_background:
                raise ValueError("weight and include_background=False need a class axis, got axis=None")
        elif counted is not None:
            counted = jnp.expand_dims(counted, -1)
        weights = resharded_like(losses, jnp.ones_like(losses))
        if weight is not None:
            weights *= per_class("weight", weight, losses).astype(losses.dtype).reshape(_row(losses))
        if skip_absent:
            weights *= (self.sum(self.true) > 0).astype(losses.dtype)
        if not include_background:
            if losses.shape[-1] == 1:
                raise ValueError("include_background=False needs a second class, got one class")
            # Masked, since a sharded axis cannot be sliced.
            is_counted = lax.broadcasted_iota(jnp.int32, _row(losses), losses.ndim - 1) > 0
            counted = is_counted if counted is None else counted & is_counted
        if counted is not None:
            counted = resharded_like(losses, jnp.broadcast_to(counted, losses.shape))
        reduced = reduce_losses(losses * weights, weights, counted, reduction)
        if reduction == "none" and not include_background:
            return last_axis_unsharded(reduced)[..., 1:]
        return reduced


def _row(losses: jax.Array) -> tuple[int, ...]:
    """Returns the shape in which one number for each class broadcasts to the losses."""
    return (*[1] * (losses.ndim - 1), losses.shape[-1])


def _of_labels(
    probs: jax.Array,
    targets: jax.Array,
    classes: ClassAxis,
    where: ArrayLike | None,
    ignore_index: int | None,
) -> tuple[jax.Array, jax.Array]:
    """Returns the regions of labels, NaN at out-of-range labels, and the mask of valid pixels."""
    mask, count = classes.mask(where, probs), classes.count(probs)
    labels = labels_without_weight(targets, "probs", probs, classes, count, ignore_index, mask)
    true = classes.one_hot(labels.classes, probs).astype(labels.weight.dtype)
    # Added: XLA turns a product with a converted boolean into a select, in which NaN · 0 would be 0.
    return true + classes.expand(labels.weight - 1), labels.valid


def _slope_in_missed(missed: jax.Array, hits: jax.Array) -> jax.Array:
    inverse = inverse_or_zero(missed + hits)
    return hits * inverse * inverse


def _slope_in_hits(missed: jax.Array, hits: jax.Array) -> jax.Array:
    inverse = inverse_or_zero(missed + hits)
    return -missed * inverse * inverse


# In the derivative of a quotient, the square of a tiny sum would underflow.
@derivatives(_slope_in_missed, _slope_in_hits)
def _shortfall(missed: jax.Array, hits: jax.Array) -> jax.Array:
    """Returns 1 - hits / (hits + missed), 0 with gradient 0 where both are 0."""
    total = hits + missed
    return missed / jnp.where(total == 0, 1, total)


def _power_slope(base: jax.Array, exponent: jax.Array) -> jax.Array:
    return exponent * _power(base, exponent - 1)


def _power_slope_in_exponent(base: jax.Array, exponent: jax.Array) -> jax.Array:
    return _power(base, exponent) * jnp.log(jnp.where(base > 0, base, 1))


@derivatives(_power_slope, _power_slope_in_exponent)
def _power(base: jax.Array, exponent: jax.Array) -> jax.Array:
    """Returns base ** exponent; base 0 gives 1 for exponent 0, else 0, even for negative exponents."""
    power = jnp.where(base > 0, base, 1) ** exponent
    power = jnp.where(base > 0, power, (exponent == 0).astype(base.dtype))
    power = jnp.where(exponent == 1, base, power)
    return power * one_or_nan(~jnp.isnan(base + exponent), base.dtype)
