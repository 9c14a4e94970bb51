"""SSIM: entries, formula and certificate row."""

import itertools
from collections.abc import Callable
from decimal import Decimal

import numpy as np

from tests.case import Arrays, add
from tests.formulas import beyond_pytorch, exp
from tests.situation import INF, at, row


@beyond_pytorch("(h,w,c),(h,w,c)->()")
def ssim_loss(predictions, targets, max_val=1.0, window_size=11, sigma=1.5, k1=0.01, k2=0.03):
    offsets = [(Decimal(i - window_size // 2) / Decimal(sigma)) ** 2 for i in range(window_size)]
    window = np.array([[exp(-(x + y) / 2) for x in offsets] for y in offsets])[..., None]
    window = window / window.sum()
    c1, c2 = ((Decimal(k) * Decimal(max_val)) ** 2 for k in (k1, k2))
    height, width, _ = predictions.shape
    losses = []
    for y, x in itertools.product(range(height - window_size + 1), range(width - window_size + 1)):
        p, t = (image[y : y + window_size, x : x + window_size] for image in (predictions, targets))
        p_mean, t_mean = (window * p).sum((0, 1)), (window * t).sum((0, 1))
        p, t = p - p_mean, t - t_mean
        p_var, t_var, covariance = ((window * squares).sum((0, 1)) for squares in (p * p, t * t, p * t))
        means = (2 * p_mean * t_mean + c1) / (p_mean**2 + t_mean**2 + c1)
        losses.append(1 - means * (2 * covariance + c2) / (p_var + t_var + c2))
    return np.mean(losses)


def _images(*shape: int, max_val: float = 1.0) -> Callable[[np.random.RandomState], Arrays]:
    def make(rng: np.random.RandomState) -> Arrays:
        targets = rng.rand(*shape)
        noisy = np.clip(targets + 0.2 * rng.randn(*shape), 0, 1)
        return {"predictions": max_val * noisy, "targets": max_val * targets}

    return make


def _flat(rng: np.random.RandomState) -> Arrays:
    """Returns pairs of equal, constant, black and inverted images."""
    image, one = rng.rand(4, 4, 1), np.ones((4, 4, 1))
    return {
        "predictions": np.stack([image, 0.25 * one, 0 * one, image]),
        "targets": np.stack([image, 0.75 * one, 0 * one, 1 - image]),
    }


add("ssim_loss", "colours", _images(3, 4, 5, 3), window_size=3)
add("ssim_loss", "flat", _flat, window_size=3)
add(
    "ssim_loss",
    "options",
    _images(2, 6, 5, 2, max_val=255.0),
    max_val=255.0,
    window_size=5,
    sigma=0.75,
    k1=0.05,
    k2=0.1,
)


def _image(middle: float) -> np.ndarray:
    """Returns a batch of one single-channel image of the size of the window."""
    return np.reshape([0.25, 0.5, 1.0, 0.0, middle, 0.75, 0.5, 0.0, 0.25], (1, 3, 3, 1))


_BLACK, _GREY, _TARGET = np.zeros((1, 3, 3, 1)), np.full((1, 3, 3, 1), 0.25), _image(1.0)[:, ::-1]
_OVERFLOW = "An infinite value, or one whose square overflows, gives NaN"
row(
    "ssim_loss",
    "predictions targets",
    "predictions targets",
    {"window_size": 3},
    zeros=[(_BLACK, _BLACK), (_BLACK, _TARGET), (_GREY, _BLACK)],
    plus=[at(_image(INF), _TARGET, documented=_OVERFLOW)],
    minus=[at(_image(-INF), _TARGET, documented=_OVERFLOW)],
    far=[at(_image(1e200), _TARGET, documented=_OVERFLOW), (_image(1e100), _TARGET)],
    half=[(_image(0.5), _TARGET), (_image(4.0), _TARGET)],
)
