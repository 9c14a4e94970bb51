"""Poisson and Gaussian likelihoods and `kl_div`: formulas by hand, limits, and invalid values."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import checkify

from jaxloss import gaussian_nll_loss, kl_div, poisson_nll_loss

INF = np.inf


def value_and_slopes(loss, *arguments, **options):
    """Returns the losses and their gradient in each argument; checks that batches of one give the same."""

    def total(*arguments):
        return loss(*arguments, **options, reduction="sum")

    def answer(*arguments):
        slopes = jax.grad(total, tuple(range(len(arguments))))(*arguments)
        return loss(*arguments, **options, reduction="none"), *slopes

    whole = answer(*arguments)
    for index in range(len(arguments[0])):
        for one, every in zip(answer(*(a[index : index + 1] for a in arguments)), whole, strict=True):
            np.testing.assert_array_equal(one, every[index : index + 1])
    return whole


# Poisson.


@pytest.mark.parametrize("log_input", [True, False])
@pytest.mark.parametrize("full", [True, False])
def test_poisson_nll_equals_the_formula(log_input: bool, full: bool):
    rates, counts, eps = [0.5, 2.0, 4.0, 0.1], [0.0, 1.0, 3.0, 1.5], 0.01
    expected = []
    for rate, count in zip(rates, counts, strict=True):
        loss = rate - count * math.log(rate if log_input else rate + eps)
        if full and count > 1:
            loss += count * math.log(count) - count + math.log(2 * math.pi * count) / 2
        expected.append(loss)
    with jax.enable_x64(True):
        predictions = np.log(rates) if log_input else np.array(rates)
        options = {"log_input": log_input, "full": full, "eps": eps, "reduction": "none"}
        value = poisson_nll_loss(predictions, np.array(counts), **options)
    np.testing.assert_allclose(value, expected, rtol=1e-12)


def test_full_poisson_nll_approximates_the_exact_likelihood_of_large_counts():
    counts = np.array([20.0, 100.0])
    expected = [25 - count * math.log(25) + math.lgamma(count + 1) for count in counts]
    with jax.enable_x64(True):
        value = poisson_nll_loss(np.full(2, np.log(25.0)), counts, full=True, reduction="none")
    np.testing.assert_allclose(value, expected, atol=1 / (12 * 20))


def test_poisson_nll_at_infinite_log_rates():
    predictions = np.float32([-INF, -INF, INF, INF, 1e30])
    counts = np.float32([0, 1, 1, 0, 1e5])
    value, slope, by_counts = value_and_slopes(poisson_nll_loss, predictions, counts)
    np.testing.assert_array_equal(value, [0, INF, INF, INF, INF])
    np.testing.assert_array_equal(slope, [0, -1, INF, INF, INF])
    np.testing.assert_array_equal(by_counts, -predictions)


def test_poisson_nll_at_zero_and_infinite_rates_without_eps():
    rates, counts = np.float32([0, 0, INF, INF]), np.float32([0, 0.5, 3, 0])
    value, slope, by_counts = value_and_slopes(poisson_nll_loss, rates, counts, log_input=False, eps=0)
    np.testing.assert_array_equal(value, [0, INF, INF, INF])
    np.testing.assert_array_equal(slope, [1, -INF, 1, 1])
    np.testing.assert_array_equal(by_counts, [INF, INF, -INF, -INF])


def test_full_poisson_nll_is_differentiable_at_counts_of_0_and_1():
    value, _, by_counts = value_and_slopes(
        poisson_nll_loss, np.float32([2, 2]), np.float32([0, 1]), full=True
    )
    np.testing.assert_allclose(value, [math.exp(2), math.exp(2) - 2], rtol=1e-6)
    np.testing.assert_array_equal(by_counts, [-2, -2])
    curvature = jax.hessian(lambda counts: poisson_nll_loss(jnp.ones(2), counts, full=True))(jnp.zeros(2))
    np.testing.assert_array_equal(curvature, 0)


def test_a_negative_rate_is_nan_and_reported_by_checkify():
    arguments = np.float32([1, -1, -1, -0.05]), np.float32([1, 2, 0, 1])
    options = {"log_input": False, "eps": 0.1}
    for array in value_and_slopes(poisson_nll_loss, *arguments, **options):
        np.testing.assert_array_equal(np.isnan(array), [False, True, True, False])
    error, _ = checkify.checkify(lambda *arrays: poisson_nll_loss(*arrays, **options))(*arguments)
    assert "predictions: expected rates >= -eps, got -1.0" in error.get()


# Gaussian.


@pytest.mark.parametrize("full", [True, False])
def test_gaussian_nll_equals_the_formula(full: bool):
    rng = np.random.RandomState(0)
    predictions, targets, var = rng.randn(5), rng.randn(5), rng.rand(5)
    expected = [
        -math.log(math.exp(-((t - m) ** 2) / (2 * v)) / math.sqrt((2 * math.pi if full else 1) * v))
        for m, t, v in zip(predictions, targets, var, strict=True)
    ]
    with jax.enable_x64(True):
        value = gaussian_nll_loss(predictions, targets, var, full=full, reduction="none")
    np.testing.assert_allclose(value, expected, rtol=1e-12)


@pytest.mark.parametrize("shape", [(), (4,), (4, 1), (1, 3), (1, 1), (4, 3)])
def test_variances_broadcast(shape: tuple[int, ...]):
    rng = np.random.RandomState(0)
    predictions, targets, var = rng.randn(4, 3), rng.randn(4, 3), rng.rand(*shape) + 0.5
    where = rng.rand(4, 3) < 0.7
    whole = np.broadcast_to(var[:, None] if shape == (4,) else var, (4, 3))
    with jax.enable_x64(True):
        for mask in (None, where):
            value = gaussian_nll_loss(predictions, targets, var, where=mask)
            np.testing.assert_allclose(value, gaussian_nll_loss(predictions, targets, whole, where=mask))
            gradient = jax.grad(gaussian_nll_loss, 2)(predictions, targets, var, where=mask)
            assert gradient.shape == shape


def test_a_1d_variance_of_a_square_batch_holds_one_value_per_row():
    zeros, var = np.zeros((2, 2), np.float32), np.float32([1, np.exp(2)])
    np.testing.assert_allclose(
        gaussian_nll_loss(zeros, zeros, var, reduction="none"), [[0, 0], [1, 1]], rtol=1e-6
    )


@pytest.mark.parametrize("shape", [(3,), (4, 2), (4, 3, 1), (2, 4, 3), (0,)])
def test_other_variance_shapes_raise(shape: tuple[int, ...]):
    zeros = np.zeros((4, 3))
    with pytest.raises(
        ValueError, match=r"var must be a number, have the shape of predictions, \(4, 3\), .*"
    ):
        gaussian_nll_loss(zeros, zeros, np.ones(shape))


def test_a_scalar_variance_does_not_promote_the_dtype():
    predictions = np.float32([1, 2])
    with jax.enable_x64(True):
        for var in (2, 2.0, np.float32(2)):
            value = gaussian_nll_loss(predictions, predictions, var, where=np.array(True))
            assert value.dtype == jnp.float32
            np.testing.assert_allclose(value, math.log(2) / 2, rtol=1e-6)


def test_derivatives_pass_through_the_variance_clamp():
    def loss(var, eps):
        return gaussian_nll_loss(jnp.float32(0), jnp.float32(1), var, eps=eps)

    for order in (lambda f: f, jax.grad, jax.hessian):
        below, at = order(loss)(jnp.float32(0), 0.5), order(loss)(jnp.float32(0.5), 0)
        np.testing.assert_array_equal(below, at)
    assert jax.grad(loss)(0.0, 1e-6) < -4e11
    assert jax.grad(loss, 1)(0.0, 0.5) == 0


def test_invalid_variances_are_nan_and_reported_by_checkify():
    arguments = np.float32([0, 0, 0]), np.float32([1, 1, 0]), np.float32([0.5, -0.25, 0])
    for eps, bad in ((1e-6, [False, True, False]), (0, [False, True, True])):
        for array in value_and_slopes(gaussian_nll_loss, *arguments, eps=eps):
            np.testing.assert_array_equal(np.isnan(array), bad)
    error, _ = checkify.checkify(gaussian_nll_loss)(*arguments)
    assert "var: expected variances >= 0, and > 0 where eps is 0, got -0.25" in error.get()
    rows, var = np.zeros((3, 4), np.float32), np.float32([[1], [-2], [3]])
    for where in (None, True, rows == 0, np.array([[False], [True], [True]])):
        error, _ = checkify.checkify(gaussian_nll_loss)(rows, rows, var, where=where)
        assert "where eps is 0, got -2.0" in error.get()
    error, _ = checkify.checkify(gaussian_nll_loss)(
        rows, rows, var, where=np.array([[True], [False], [True]])
    )
    assert error.get() is None


def test_an_all_true_mask_does_not_change_the_gradient_of_a_shared_variance():
    errors = jnp.zeros((1, 2000)).at[0, ::2].set(1.415627)

    def gradient(var, where=None):
        return jax.grad(
            lambda var: gaussian_nll_loss(errors, jnp.zeros_like(errors), var, where=where, reduction="sum")
        )(var)

    expected = gradient(jnp.ones((1, 1)))
    np.testing.assert_allclose(expected, -2, rtol=1e-2)  # half the terms are near -1/2, half are 1/2
    for dtype in (jnp.bfloat16, jnp.float16):
        masked = gradient(jnp.ones((1, 1), dtype), jnp.ones(errors.shape, bool))
        np.testing.assert_allclose(np.float32(masked), expected, rtol=2**-8)


def test_an_error_whose_square_overflows_has_a_finite_loss():
    value = gaussian_nll_loss(np.float32(1e20), np.float32(0), np.float32(1e38), eps=0)
    np.testing.assert_allclose(value, 50 + 19 * math.log(10), rtol=1e-6)


@pytest.mark.parametrize("loss", [poisson_nll_loss, gaussian_nll_loss])
def test_a_negative_eps_raises(loss):
    arrays = [np.ones(2)] * (2 if loss is poisson_nll_loss else 3)
    with pytest.raises(ValueError, match="eps must be a number >= 0, got -1"):
        loss(*arrays, eps=-1.0)


# Kullback-Leibler.


def test_kl_div_equals_the_formula():
    rng = np.random.RandomState(0)
    log_probs, probs = -rng.rand(4, 3), rng.rand(4, 3)
    expected = np.vectorize(lambda log_q, p: p * math.log(p / math.exp(log_q)))(log_probs, probs)
    with jax.enable_x64(True):
        np.testing.assert_allclose(kl_div(log_probs, probs, reduction="none"), expected, rtol=1e-9)
        by_logarithms = kl_div(log_probs, np.log(probs), log_target=True, reduction="none")
    np.testing.assert_allclose(by_logarithms, expected, rtol=1e-9)


def test_batchmean_divides_by_the_number_of_rows_with_unmasked_elements():
    log_probs, targets = np.log(np.full((4, 2, 3), 0.5)), np.full((4, 2, 3), 1.0)
    each = math.log(2)
    with jax.enable_x64(True):
        np.testing.assert_allclose(kl_div(log_probs, targets, reduction="batchmean"), 6 * each)
        np.testing.assert_allclose(kl_div(log_probs[0, 0], targets[0, 0], reduction="batchmean"), each)
        np.testing.assert_allclose(kl_div(log_probs[0, 0, 0], targets[0, 0, 0], reduction="batchmean"), each)
        where = np.zeros((4, 2, 3), bool)
        where[0, 0, :2] = where[2] = True  # 2 + 6 elements in 2 rows
        value = kl_div(np.where(where, log_probs, np.nan), targets, where=where, reduction="batchmean")
    np.testing.assert_allclose(value, (2 + 6) * each / 2)


def test_an_empty_batchmean_is_nan_with_gradient_zero():
    log_probs = jnp.zeros((2, 3))
    nothing = {"where": jnp.zeros((), bool), "reduction": "batchmean"}
    value, gradient = jax.value_and_grad(kl_div)(log_probs, log_probs, **nothing)
    assert np.isnan(value)
    np.testing.assert_array_equal(gradient, 0)


def test_only_kl_div_accepts_batchmean():
    with pytest.raises(ValueError, match="'sum', 'batchmean', 'sum_and_weight', got 'avg'"):
        kl_div(np.ones(2), np.ones(2), reduction="avg")
    with pytest.raises(ValueError, match="'sum', 'sum_and_weight', got 'batchmean'"):
        poisson_nll_loss(np.ones(2), np.ones(2), reduction="batchmean")


def test_kl_div_at_probability_zero():
    log_probs, probs = np.float32([-1, -INF, -INF, 0]), np.float32([0, 0, 0.5, 0])
    value, slope, by_targets = value_and_slopes(kl_div, log_probs, probs)
    np.testing.assert_array_equal(value, [0, 0, INF, 0])
    np.testing.assert_array_equal(slope, -probs)
    np.testing.assert_array_equal(by_targets, [-INF, INF, INF, -INF])


def test_kl_div_with_log_targets_at_probability_zero():
    log_probs, targets = np.float32([-1, -INF, -INF]), np.float32([-INF, -INF, 0])
    value, slope, by_targets = value_and_slopes(kl_div, log_probs, targets, log_target=True)
    np.testing.assert_array_equal(value, [0, 0, INF])
    np.testing.assert_array_equal(slope, [0, 0, -1])
    np.testing.assert_array_equal(by_targets, [0, 0, INF])
    hessian = jax.hessian(lambda targets: kl_div(log_probs[:2], targets, log_target=True))(targets[:2])
    np.testing.assert_array_equal(hessian, 0)


def test_a_negative_probability_is_nan_and_reported_by_checkify():
    arguments = np.float32([-1, -1, -INF]), np.float32([0.5, -0.5, -1])
    for array in value_and_slopes(kl_div, *arguments):
        np.testing.assert_array_equal(np.isnan(array), [False, True, True])
    error, _ = checkify.checkify(kl_div)(*arguments)
    assert "targets: expected probabilities >= 0, got -0.5" in error.get()


# All of them.


def test_counts_and_probabilities_may_be_integers_or_booleans():
    predictions = np.float32([0.5, 1.5])
    for dtype in (np.int32, np.uint8, bool):
        targets = np.array([1, 0], dtype)
        expected = np.float32([1, 0])
        for loss in (poisson_nll_loss, kl_div):
            assert loss(predictions, targets) == loss(predictions, expected)
        ones = np.ones(2, dtype)
        assert gaussian_nll_loss(predictions, targets, ones) == gaussian_nll_loss(predictions, expected, 1)
