"""Losses between images."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from jaxloss._core.arguments import agree, integer, masked_items, widened
from jaxloss._core.decorator import compiled, not_negative, positive
from jaxloss._core.derivatives import clamped_at_zero, quotient
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

        SSIM = (2 · µ_p · µ_t + C₁) / (µ_p² + µ_t² + C₁) · (2 · σ_pt + C₂) / (σ_p² + σ_t² + C₂)
        loss = 1 - mean SSIM

    over all channels and all positions at which the window lies within the image.

    Args:
        predictions: Predicted images, shape (N, H, W, C), with values in a range of length `max_val`. An
            infinite value, or one whose square overflows, gives NaN.
        targets: True images, of the shape of `predictions`.
        max_val: Range of the values, a number > 0: 1 for images in [0, 1], 255 for images of bytes.
        window_size: Size of the window in pixels, a static odd integer, at most H and W.
        sigma: Standard deviation of the window in pixels, a number > 0.
        k1: Number >= 0 that stabilizes the quotient of the means. With 0, black windows give NaN.
        k2: Number >= 0 that stabilizes the quotient of the variances. With 0, constant windows give NaN.
        where: Mask of images, broadcast to shape (N,); see `help(jaxloss)`.
        reduction: "mean" (divides by the number of images), "sum", "none" or "sum_and_weight".

    Returns:
        A scalar, or an array of shape (N,) for "none"; in [0, 2], without unit.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxloss
        >>> targets = jnp.linspace(0.0, 1.0, 16 * 16).reshape(1, 16, 16, 1)
        >>> jaxloss.ssim_loss(0.5 * targets, targets)
        Array(0.3479, dtype=float32)

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
    sigma = jnp.asarray(sigma, predictions.dtype)
    # From sum and difference: the loss of equal images is exactly 0, and nothing cancels in float32.
    sum_mean, sum_variance = _moments(predictions + targets, window_size, sigma)
    mean, variance = _moments(predictions - targets, window_size, sigma)
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


def _moments(images: jax.Array, window_size: int, sigma: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns mean and variance in the window at each position."""
    # The variance does not depend on the origin, but an origin near the values reduces cancellation.
    origin = lax.stop_gradient(jnp.mean(images, (1, 2), keepdims=True))
    rows, columns = (_windows(images.shape[axis], window_size, sigma) for axis in (1, 2))

    def mean(images: jax.Array) -> jax.Array:
        # Compiled for the TPU, convolutions take twenty times the cycles of these products. At the TPU's
        # default precision, the products would be as inexact as bfloat16.
        along_rows = jnp.einsum("nhwc,hi->niwc", images, rows, precision="highest")
        return jnp.einsum("niwc,wj->nijc", along_rows, columns, precision="highest")

    centred = images - origin
    centre = mean(centred)
    return origin + centre, clamped_at_zero(mean(centred * centred) - centre * centre)


def _windows(size: int, window_size: int, sigma: jax.Array) -> jax.Array:
    """Returns a matrix whose columns are the window at each of its positions along an axis."""
    starts = np.arange(size - window_size + 1)
    places = np.arange(size)[:, None] - starts
    inside = (places >= 0) & (places < window_size)
    distances = jnp.asarray(np.where(inside, places - window_size // 2, 0), sigma.dtype) / sigma
    weights = jnp.where(inside, jnp.exp(-0.5 * distances * distances), 0)
    return weights / jnp.sum(weights, 0, keepdims=True)
