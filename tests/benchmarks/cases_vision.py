"""Cases of the losses of boxes and images."""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tests.benchmarks.case import BOXES, add, uniform


def _boxes(rng: np.random.RandomState, *shape: int) -> tuple[np.ndarray, ...]:
    return tuple(np.sort(uniform(rng, *shape[:-1], 2, 2), axis=-2).reshape(shape) for _ in range(2))


def _iou(p: Any, t: Any) -> tuple[Any, Any]:
    """Returns the intersection over union, and the area of the union."""
    sides = jnp.maximum(jnp.minimum(p[..., 2:], t[..., 2:]) - jnp.maximum(p[..., :2], t[..., :2]), 0)
    areas = [(b[..., 2] - b[..., 0]) * (b[..., 3] - b[..., 1]) for b in (p, t)]
    overlap = sides[..., 0] * sides[..., 1]
    union = areas[0] + areas[1] - overlap
    return overlap / (union + 1e-7), union


def _hull(p: Any, t: Any) -> Any:
    return jnp.maximum(p[..., 2:], t[..., 2:]) - jnp.minimum(p[..., :2], t[..., :2])


def _generalized(p: Any, t: Any) -> Any:
    iou, union = _iou(p, t)
    hull = jnp.prod(_hull(p, t), axis=-1)
    return jnp.mean(1 - iou + (hull - union) / (hull + 1e-7))


def _distance(p: Any, t: Any) -> Any:
    centres = (p[..., 2:] + p[..., :2] - t[..., 2:] - t[..., :2]) / 2
    return 1 - _iou(p, t)[0] + jnp.sum(centres**2, -1) / (jnp.sum(_hull(p, t) ** 2, -1) + 1e-7)


def _complete(p: Any, t: Any) -> Any:
    angles = [jnp.arctan((b[..., 2] - b[..., 0]) / (b[..., 3] - b[..., 1])) for b in (p, t)]
    v = 4 / math.pi**2 * (angles[1] - angles[0]) ** 2
    alpha = jax.lax.stop_gradient(v / (1 - _iou(p, t)[0] + v + 1e-7))
    return jnp.mean(_distance(p, t) + alpha * v)


def _ssim(p: Any, t: Any) -> Any:
    window = jnp.exp(-((jnp.arange(11.0) - 5) ** 2) / 4.5)
    kernel = jnp.outer(window, window) / jnp.sum(window) ** 2

    def mean(images: Any) -> Any:
        channels = images.shape[-1]
        kernels = jnp.broadcast_to(kernel[:, :, None, None], (11, 11, 1, channels)).astype(images.dtype)
        layout = ("NHWC", "HWIO", "NHWC")
        return jax.lax.conv_general_dilated(
            images, kernels, (1, 1), "VALID", dimension_numbers=layout, feature_group_count=channels
        )

    p_mean, t_mean = mean(p), mean(t)
    p_var, t_var, covariance = mean(p * p) - p_mean**2, mean(t * t) - t_mean**2, mean(p * t) - p_mean * t_mean
    means = (2 * p_mean * t_mean + 1e-4) / (p_mean**2 + t_mean**2 + 1e-4)
    return 1 - jnp.mean(means * (2 * covariance + 9e-4) / (p_var + t_var + 9e-4))


add("box_iou_loss", _boxes, BOXES, line=lambda p, t: jnp.mean(1 - _iou(p, t)[0]))
add("generalized_box_iou_loss", _boxes, BOXES, line=_generalized)
add("distance_box_iou_loss", _boxes, BOXES, line=lambda p, t: jnp.mean(_distance(p, t)))
add("complete_box_iou_loss", _boxes, BOXES, line=_complete)
add(
    "ssim_loss",
    lambda rng, *shape: (uniform(rng, *shape), uniform(rng, *shape)),
    {"small": (2, 32, 32, 1), "cached": (4, 128, 128, 3), "large": (8, 256, 256, 3)},
    line=_ssim,
)
