"""Regression losses, by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import checkify

from jaxloss import huber_loss, l1_loss, mape_loss, mse_loss, msle_loss, smooth_l1_loss

ERRORS = np.array([0.0, 0.5, -0.5, 1.0, -2.0, 3.0], np.float32)
ZEROS = np.zeros_like(ERRORS)


@pytest.mark.parametrize(
    ("loss", "options", "value", "slope"),
    [
        (mse_loss, {}, [0, 0.25, 0.25, 1, 4, 9], [0, 1, -1, 2, -4, 6]),
        (l1_loss, {}, [0, 0.5, 0.5, 1, 2, 3], [0, 1, -1, 1, -1, 1]),
        (smooth_l1_loss, {}, [0, 0.125, 0.125, 0.5, 1.5, 2.5], [0, 0.5, -0.5, 1, -1, 1]),
        (smooth_l1_loss, {"beta": 2.0}, [0, 0.0625, 0.0625, 0.25, 1, 2], [0, 0.25, -0.25, 0.5, -1, 1]),
        (smooth_l1_loss, {"beta": 0}, [0, 0.5, 0.5, 1, 2, 3], [0, 1, -1, 1, -1, 1]),
        (huber_loss, {}, [0, 0.125, 0.125, 0.5, 1.5, 2.5], [0, 0.5, -0.5, 1, -1, 1]),
        (huber_loss, {"delta": 2.0}, [0, 0.125, 0.125, 0.5, 2, 4], [0, 0.5, -0.5, 1, -2, 2]),
    ],
)
def test_values_and_gradients_by_hand(loss, options, value, slope):
    np.testing.assert_array_equal(loss(ERRORS, ZEROS, **options, reduction="none"), np.float32(value))
    np.testing.assert_array_equal(loss(ZEROS, ERRORS, **options, reduction="none"), np.float32(value))

    def total(predictions, targets):
        return loss(predictions, targets, **options, reduction="sum")

    by_predictions, by_targets = jax.grad(total, (0, 1))(ERRORS, ZEROS)
    np.testing.assert_array_equal(by_predictions, np.float32(slope))
    np.testing.assert_array_equal(by_targets, -np.float32(slope))


def test_weighted_means_divide_by_the_weights_or_the_count_as_in_pytorch():
    predictions, weight = jnp.array([1.0, 3.0]), jnp.array([1.0, 3.0])
    assert mse_loss(predictions, jnp.zeros(2), weight=weight) == (1 + 27) / 4
    assert l1_loss(predictions, jnp.zeros(2), weight=weight) == (1 + 9) / 4
    assert huber_loss(predictions, jnp.zeros(2), weight=weight, delta=10.0) == (0.5 + 13.5) / 2


@pytest.mark.parametrize(("loss", "option"), [(huber_loss, "delta"), (smooth_l1_loss, "beta")])
def test_the_threshold_can_be_swept_and_differentiated(loss, option):
    def mean(threshold, errors=ERRORS):
        return loss(errors, jnp.zeros_like(errors), **{option: threshold})

    thresholds = jnp.array([0.3, 0.7, 2.5])
    np.testing.assert_allclose(jax.vmap(mean)(thresholds), [mean(float(t)) for t in thresholds], rtol=1e-6)
    with jax.enable_x64(True):
        for threshold in (0.3, 0.7, 2.5):
            errors = jnp.asarray(ERRORS, jnp.float64)
            expected = (mean(threshold + 1e-6, errors) - mean(threshold - 1e-6, errors)) / 2e-6
            np.testing.assert_allclose(jax.grad(mean)(threshold, errors), expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("loss", "option", "bad"), [(huber_loss, "delta", 0.0), (smooth_l1_loss, "beta", -1.0)]
)
def test_a_threshold_outside_its_domain_raises_or_gives_nan(loss, option, bad):
    with pytest.raises(ValueError, match=f"{option} must be a number >=? 0, got {bad}"):
        loss(ERRORS, ZEROS, **{option: bad})
    traced = {option: jnp.float32(bad)}
    assert np.isnan(loss(ERRORS, ZEROS, **traced))
    assert np.isnan(jax.grad(loss)(ERRORS, ZEROS, **traced)).any()
    error, _ = checkify.checkify(loss)(ERRORS, ZEROS, **traced)
    assert f"{option}: expected a number" in error.get()


def test_percentage_errors_by_hand():
    predictions, targets = jnp.array([2.0, 5.0, 0.0, 3.0, 0.0]), jnp.array([4.0, -4.0, 0.0, 0.0, jnp.inf])
    value, pull = jax.vjp(lambda p, t: mape_loss(p, t, eps=0.5, reduction="none"), predictions, targets)
    np.testing.assert_array_equal(value, [0.5, 2.25, 0, 6, 1])
    by_predictions, by_targets = pull(jnp.ones(5))
    np.testing.assert_array_equal(by_predictions, [-0.25, 0.25, 0, 2, 0])
    np.testing.assert_array_equal(by_targets, [0.125, 0.3125, 0, -2, 0])
    with pytest.raises(ValueError, match="eps must be a number > 0, got 0"):
        mape_loss(predictions, targets, eps=0.0)


def test_msle_of_close_numbers_has_no_cancellation():
    predictions, targets = jnp.array([1e6 + 1, 1e20, 1.0, 1e-10]), jnp.array([1e6, 1.0, 1e20, 0.0])
    losses = msle_loss(predictions, targets, reduction="none")
    large = (np.log(1e20) - np.log(2)) ** 2
    np.testing.assert_allclose(losses, [np.log1p(1 / 1000001) ** 2, large, large, 1e-20], rtol=1e-6)


def test_msle_at_and_below_minus_1():
    predictions, targets = jnp.array([-1.0, -1.0, 2.0, -1.5, 0.0]), jnp.array([-1.0, 0.0, -1.0, 0.0, -2.0])

    def total(predictions, targets):
        return msle_loss(predictions, targets, reduction="sum")

    losses = msle_loss(predictions, targets, reduction="none")
    np.testing.assert_array_equal(losses, [0, jnp.inf, jnp.inf, jnp.nan, jnp.nan])
    by_predictions, by_targets = jax.grad(total, (0, 1))(predictions, targets)
    assert by_predictions[0] == by_targets[0] == 0
    assert np.isnan(by_predictions[3:]).all()
    assert np.isnan(by_targets[3:]).all()
    assert np.isfinite(jax.hessian(total)(predictions[:1], targets[:1])).all()
    for bad, name in ((3, "predictions"), (4, "targets")):
        error, _ = checkify.checkify(msle_loss)(predictions[bad : bad + 1], targets[bad : bad + 1])
        assert f"{name}: expected numbers >= -1" in error.get()
