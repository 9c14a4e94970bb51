"""Losses between images."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from jaxloss._core.arguments import agree, integer, masked_items, widened
from jaxloss._core.decorator import compiled, not_negative, positive
from jaxloss._core.derivatives import quotient
from jaxloss._core.reduction import Reduction, reduce_losses


@compiled(
    static=("window_size", "reduction"),
    domains={"max_val": positive, "sigma": positive, "k1": not_negative, "k2": not_negative},
)
def ssim_loss(
    predictions: ArrayLike,
    targets: ArrayLike,
    *,
    max_val: ArrayLike = 1.0,
    window_size: int = 11,
    sigma: ArrayLike = 1.5,
    k1: ArrayLike = 0.01,
    k2: ArrayLike = 0.03,
    where: ArrayLike | None = None,
    reduction: Reduction = "mean",
) -> jax.Array:
    """Structural similarity loss: one minus the mean SSIM of two images.

    With the means µ, variances σ² and covariance σ_pt of predictions and targets in a Gaussian window, and
    C₁ = (k1 · max_val)², C₂ = (k2 · max_val)²,

        SSIM = (2 µ_p µ_t + C₁) / (µ_p² + µ_t² + C₁) · (2 σ_pt + C₂) / (σ_p² + σ_t² + C₂)
        loss = 1 - mean SSIM

    over all channels and all positions at which the window lies within the image.

    Args:
        predictions: Predicted images, shape (N, H, W, C), with values in a range of length `max_val`. An
            infinite value, or one whose square overflows, gives NaN.
        targets: True images, of the shape of `predictions`.
        max_val: Range of the values, a number > 0: 1 for images in [0, 1], 255 for images of bytes.
        window_size: Size of the window in pixels, a static odd integer, at most H and W.
        sigma: Standard deviation of the window in pixels, a number > 0.
        k1: Number >= 0 that steadies the quotient of the means. If it is 0, black windows give NaN.
        k2: Number >= 0 that steadies the quotient of the variances. If it is 0, flat windows give NaN.
        where: Mask of images, broadcast to shape (N,); see `help(jaxloss)`.
        reduction: "mean" (divides by the number of images), "sum", "none" or "sum_and_weight".

    Returns:
        A scalar, or an array of shape (N,) for "none"; in [0, 2], without unit.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxloss
        >>> targets = jnp.linspace(0.0, 1.0, 16 * 16).reshape(1, 16, 16, 1)
        >>> jaxloss.ssim_loss(0.5 * targets, targets)
        Array(0.34792325, dtype=float32)

    Source:
        Z. Wang et al. (2004), Image Quality Assessment: From Error Visibility to Structural Similarity.
        dm_pix documentation: dm_pix.ssim.
    """
    arrays = agree(predictions=predictions, targets=targets)
    _check_sizes(arrays[0].shape, window_size := integer("window_size", window_size))
    arrays, where = masked_items(arrays, 3, where)
    predictions, targets = widened(*arrays)
    luminance, contrast = (
        jnp.square(jnp.asarray(k, predictions.dtype) * jnp.asarray(max_val, predictions.dtype))
        for k in (k1, k2)
    )
    window = _gaussian_window(window_size, jnp.asarray(sigma, predictions.dtype))
    # Of sum and difference: what is 0 for equal images is 0 exactly, and nothing cancels in float32.
    sum_mean, sum_variance = _moments(predictions + targets, window)
    mean, variance = _moments(predictions - targets, window)
    unlike_means = quotient(2 * mean * mean, sum_mean * sum_mean + mean * mean + 2 * luminance)
    unlike_structure = quotient(2 * variance, sum_variance + variance + 2 * contrast)
    losses = unlike_means + unlike_structure - unlike_means * unlike_structure
    return reduce_losses(jnp.mean(losses, (1, 2, 3)), None, where, reduction)


def _check_sizes(shape: tuple[int, ...], window_size: int) -> None:
    if len(shape) != 4:
        raise ValueError(f"predictions must be images of shape (N, H, W, C), got shape {shape}")
    if window_size < 1 or window_size % 2 == 0:
        raise ValueError(f"window_size must be odd and positive, got {window_size}")
    if min(shape[1:3]) < window_size:
        raise ValueError(
            f"window_size must be at most the height and width of the images, got {window_size} for "
            f"predictions {shape}"
        )


def _gaussian_window(size: int, sigma: jax.Array) -> jax.Array:
    """Returns weights of sum 1 along one axis of the window."""
    offsets = jnp.asarray(np.arange(size) - size // 2, sigma.dtype) / sigma
    return jax.nn.softmax(-0.5 * offsets * offsets)


def _moments(images: jax.Array, window: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns mean and variance in the window at each position.

    First along the columns, then along the rows of what that leaves: a variance is the mean of the parts'
    variances and the variance of their means.
    """
    parts = _shifted(images, len(window), 1)
    mean = _weighted_sum(window, parts)
    variance = _weighted_sum(window, [jnp.square(part - mean) for part in parts])
    means, variances = _shifted(mean, len(window), 2), _shifted(variance, len(window), 2)
    mean = _weighted_sum(window, means)
    squares = [jnp.square(part - mean) + within for part, within in zip(means, variances, strict=True)]
    return mean, _weighted_sum(window, squares)


def _shifted(array: jax.Array, count: int, axis: int) -> list[jax.Array]:
    """Returns what lies under each place of a window as it moves along an axis."""
    end = array.shape[axis] - count + 1
    return [lax.slice_in_dim(array, start, start + end, axis=axis) for start in range(count)]


def _weighted_sum(window: jax.Array, parts: list[jax.Array]) -> jax.Array:
    return functools.reduce(jnp.add, [weight * part for weight, part in zip(window, parts, strict=True)])
