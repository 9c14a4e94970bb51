"""SSIM: the formula with the default window, float32 accuracy, window sizes, and options."""

from decimal import localcontext

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from jaxloss import ssim_loss
from tests import formulas
from tests.oracle import decimals

RNG = np.random.RandomState(0)
TARGETS = RNG.rand(2, 12, 13, 2)
PREDICTIONS = np.clip(TARGETS + 0.1 * RNG.randn(*TARGETS.shape), 0, 1)


def formula(predictions, targets, **options):
    with localcontext(formulas.CONTEXT):
        arrays = {"predictions": decimals(predictions), "targets": decimals(targets)}
        losses, *_ = formulas.evaluate_batch("ssim_loss", arrays, options)
        return losses.astype(float)


@pytest.mark.parametrize("dtype", ["float64", "float32", "bfloat16"])
def test_default_options(dtype):
    with jax.enable_x64(dtype == "float64"):
        images = [jnp.asarray(images, dtype) for images in (PREDICTIONS, TARGETS)]
        losses = ssim_loss(*images, reduction="none")
        expected = formula(*(np.asarray(image, float) for image in images))
        np.testing.assert_allclose(losses, expected, rtol=1e-12 if dtype == "float64" else 1e-5)
        assert losses.dtype == ("float64" if dtype == "float64" else "float32")


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_equal_images_have_loss_and_gradient_0(dtype):
    images = jnp.asarray(np.stack([TARGETS[0], np.full_like(TARGETS[0], 0.7), 0 * TARGETS[0]]), dtype)
    loss, gradients = jax.value_and_grad(ssim_loss, (0, 1))(images, images)
    assert loss == 0
    for gradient in gradients:
        np.testing.assert_array_equal(np.asarray(gradient, float), 0)


def test_constant_images_differ_only_in_their_means():
    flat = np.ones((1, 11, 11, 1), np.float32)
    for p, t in ((0.25, 0.75), (0.0, 1.0), (1.0, 0.999)):
        expected = (p - t) ** 2 / (p**2 + t**2 + 1e-4)
        np.testing.assert_allclose(ssim_loss(p * flat, t * flat), expected, rtol=1e-4)


def test_low_contrast_on_a_bright_background_keeps_full_precision():
    # In float32, differences of mean squares would change this loss by 0.1 %.
    rng = np.random.RandomState(1)
    images = [np.float32(0.9 + 0.01 * rng.rand(1, 12, 12, 1)) for _ in range(2)]
    expected = formula(*(image.astype(float) for image in images))
    np.testing.assert_allclose(ssim_loss(*images, reduction="none"), expected, rtol=3e-6)


@pytest.mark.parametrize("max_val", [255.0, 65535.0, 1e10, 1e-10])
def test_scaling_images_and_max_val_does_not_change_the_loss(max_val):
    images = [np.float32(PREDICTIONS), np.float32(TARGETS)]
    scaled = [np.float32(max_val) * image for image in images]
    expected, by_image = jax.value_and_grad(ssim_loss)(*images)
    loss, by_scaled = jax.value_and_grad(ssim_loss)(*scaled, max_val=max_val)
    np.testing.assert_allclose(loss, expected, rtol=1e-5)
    np.testing.assert_allclose(max_val * by_scaled, by_image, rtol=1e-3, atol=1e-8)


def test_windows_of_one_pixel_and_of_the_whole_image():
    images = [np.float32(PREDICTIONS), np.float32(TARGETS)]
    one = ssim_loss(*images, window_size=1, reduction="none")
    p, t = PREDICTIONS, TARGETS
    np.testing.assert_allclose(one, np.mean((p - t) ** 2 / (p * p + t * t + 1e-4), (1, 2, 3)), rtol=1e-5)
    whole = [image[:, :5, :5] for image in images]
    expected = formula(*(image.astype(float) for image in whole), window_size=5)
    np.testing.assert_allclose(ssim_loss(*whole, window_size=5, reduction="none"), expected, rtol=1e-5)


def test_options_are_differentiable():
    with jax.enable_x64(True):
        images = PREDICTIONS[:, :4, :4], TARGETS[:, :4, :4]

        @jax.jit
        def loss(options):
            return ssim_loss(*images, window_size=3, **options)

        options = {"max_val": 0.9, "sigma": 1.2, "k1": 0.02, "k2": 0.05}
        check_grads(loss, (options,), order=2, modes=["rev"], rtol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window_size": 4}, "window_size must be odd and positive, got 4"),
        ({"window_size": -1}, "window_size must be odd and positive, got -1"),
        (
            {"window_size": 13},
            r"at most the height and width of the images, got 13 for predictions \(2, 12, 13",
        ),
        ({"max_val": 0.0}, "max_val must be a number > 0, got 0"),
        ({"sigma": -1.5}, "sigma must be a number > 0, got -1.5"),
        ({"k1": -0.01}, "k1 must be a number >= 0, got -0.01"),
    ],
)
def test_options_outside_their_domain_raise(options, message):
    with pytest.raises(ValueError, match=message):
        ssim_loss(np.float32(PREDICTIONS), np.float32(TARGETS), **options)


def test_images_without_a_channel_axis_raise():
    with pytest.raises(ValueError, match=r"must be images of shape \(N, H, W, C\), got shape \(12, 12, 13\)"):
        ssim_loss(jnp.zeros((12, 12, 13)), jnp.zeros((12, 12, 13)))


def test_a_static_window_size_must_be_an_integer():
    with pytest.raises(TypeError, match=r"window_size must be an integer, got 11\.0"):
        ssim_loss(np.float32(PREDICTIONS), np.float32(TARGETS), window_size=11.0)
