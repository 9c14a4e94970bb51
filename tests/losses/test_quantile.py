"""Quantile, expectile and CRPS losses: edge cases, and comparisons with loops and integrals."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import checkify

from jaxloss import (
    crps_ensemble_loss,
    crps_normal_loss,
    expectile_loss,
    l1_loss,
    mse_loss,
    quantile_loss,
)

INF = np.inf
RNG = np.random.RandomState(0)


def test_defaults():
    predictions, targets = RNG.randn(2, 5)
    np.testing.assert_allclose(quantile_loss(predictions, targets), l1_loss(predictions, targets) / 2, 1e-6)
    np.testing.assert_allclose(expectile_loss(predictions, targets), mse_loss(predictions, targets) / 2, 1e-6)
    ensemble = RNG.randn(5, 4)
    assert crps_ensemble_loss(ensemble, targets) == crps_ensemble_loss(ensemble, targets, fair=False)


# Quantiles.


def test_several_quantiles_equal_single_ones():
    predictions, targets, quantiles = RNG.randn(4, 2, 3), RNG.randn(4, 2), np.array([0.1, 0.5, 1.0])
    mask = RNG.rand(4, 2, 3) < 0.5
    found = quantile_loss(predictions, targets, quantiles=quantiles, where=mask, reduction="none")
    for i, quantile in enumerate(quantiles):
        expected = quantile_loss(
            predictions[..., i], targets, quantiles=quantile, where=mask[..., i], reduction="none"
        )
        np.testing.assert_array_equal(found[..., i], expected)
    total, weight = quantile_loss(
        predictions, targets, quantiles=quantiles, where=mask, reduction="sum_and_weight"
    )
    np.testing.assert_allclose([total, weight], [np.sum(found), mask.sum()], rtol=1e-6)


def test_quantiles_are_differentiable():
    predictions, targets, quantiles = RNG.randn(4, 3), RNG.randn(4), jnp.array([0.1, 0.5, 0.9])
    slopes = jax.grad(lambda q: quantile_loss(predictions, targets, quantiles=q, reduction="sum"))(quantiles)
    np.testing.assert_allclose(slopes, (targets[:, None] - predictions).sum(0), rtol=1e-5)


def test_quantile_gradients_at_ties_and_infinities():
    errors = jnp.array([0.0, 2.0, -2.0, INF, -INF])

    def answer(quantile):
        value, pull = jax.vjp(
            lambda e: quantile_loss(jnp.zeros(5), e, quantiles=quantile, reduction="none"), errors
        )
        return value, pull(jnp.ones(5))[0]

    value, slope = answer(0.25)
    np.testing.assert_array_equal(value, [0, 0.5, 1.5, INF, INF])
    np.testing.assert_array_equal(slope, [0, 0.25, -0.75, 0.25, -0.75])
    value, slope = answer(1.0)
    np.testing.assert_array_equal(value, [0, 2, 0, INF, 0])
    np.testing.assert_array_equal(slope, [0, 1, 0, 1, 0])


def test_shapes_of_quantiles():
    with pytest.raises(ValueError, match=r"targets must have the shape of predictions without its last axis"):
        quantile_loss(jnp.ones((2, 3)), jnp.ones((2, 3)), quantiles=jnp.array([0.1, 0.5, 0.9]))
    with pytest.raises(ValueError, match=r"quantiles must be a number or have .*, got quantiles \(1,\)"):
        quantile_loss(jnp.ones((2, 3)), jnp.ones(2), quantiles=jnp.array([0.5]))
    with pytest.raises(ValueError, match=r"predictions and targets must have the same shape"):
        quantile_loss(jnp.ones((2, 3)), jnp.ones(2))
    with pytest.raises(TypeError, match=r"quantiles must be numbers in \[0, 1\], got \[0.1, 0.5\]"):
        quantile_loss(jnp.ones((2, 2)), jnp.ones(2), quantiles=[0.1, 0.5])


@pytest.mark.parametrize(
    ("loss", "option", "domain"),
    [
        (quantile_loss, "quantiles", r"numbers in [0, 1]"),
        (expectile_loss, "expectile", r"a number in [0, 1]"),
    ],
)
def test_options_outside_their_domain_raise_or_give_nan(loss, option, domain):
    with pytest.raises(ValueError, match=f"{option} must be .*, got 1.5"):
        loss(jnp.ones(2), jnp.zeros(2), **{option: 1.5})
    for bad in (-0.25, np.nan):
        traced = {option: jnp.float32(bad)}
        assert np.isnan(loss(jnp.ones(2), jnp.zeros(2), **traced))
        assert np.isnan(jax.grad(loss)(jnp.ones(2), jnp.zeros(2), **traced)).all()
        error, _ = checkify.checkify(loss)(jnp.ones(2), jnp.zeros(2), **traced)
        assert f"{option}: expected {domain}" in error.get()


def test_one_invalid_quantile_gives_nan_only_for_itself():
    def losses(predictions):
        return quantile_loss(predictions, jnp.zeros(2), quantiles=jnp.array([0.5, 2.0]), reduction="none")

    value, pull = jax.vjp(losses, jnp.ones((2, 2)))
    np.testing.assert_array_equal(value, [[0.5, np.nan]] * 2)
    np.testing.assert_array_equal(pull(jnp.ones((2, 2)))[0], [[0.5, np.nan]] * 2)


# Expectiles.


def test_expectile_by_hand():
    errors = jnp.array([0.0, 2.0, -2.0, -INF])
    value, pull = jax.vjp(lambda e: expectile_loss(jnp.zeros(4), e, expectile=1.0, reduction="none"), errors)
    np.testing.assert_array_equal(value, [0, 4, 0, 0])
    np.testing.assert_array_equal(pull(jnp.ones(4))[0], [0, 4, 0, 0])


# Ensembles.


def crps(members, target, fair):
    size = len(members)
    pairs = max(size - 1, 1) if fair else size
    apart = sum(abs(x - y) for x in members for y in members)
    return sum(abs(x - target) for x in members) / size - apart / (2 * size * pairs)


@pytest.mark.parametrize("fair", [False, True])
@pytest.mark.parametrize("size", [1, 2, 7, 40])
def test_ensemble_crps_equals_a_loop(size, fair):
    members, targets = np.round(RNG.randn(6, size), 1), np.round(RNG.randn(6), 1)
    losses = crps_ensemble_loss(members, targets, fair=fair, reduction="none")
    expected = [crps(*pair, fair) for pair in zip(members, targets, strict=True)]
    np.testing.assert_allclose(losses, expected, rtol=2e-6, atol=2e-7)


def test_crps_of_a_large_normal_ensemble_approximates_the_closed_form():
    with jax.enable_x64(True):
        members, targets = np.random.RandomState(1).randn(2, 100_000), np.array([0.3, -2.0])
        losses = crps_ensemble_loss(members, targets, fair=True, reduction="none")
        expected = crps_normal_loss(np.zeros(2), targets, np.ones(2), reduction="none")
        np.testing.assert_allclose(losses, expected, atol=0.01)


def test_crps_of_a_large_tight_ensemble_has_no_cancellation():
    members = 1000 + RNG.randn(3, 4096)
    targets = np.full(3, 1000.0)
    with jax.enable_x64(True):
        expected = crps_ensemble_loss(np.float32(members).astype(float), targets, reduction="none")
    np.testing.assert_allclose(crps_ensemble_loss(members, targets, reduction="none"), expected, rtol=1e-5)


def test_tied_members_have_no_mutual_gradient():
    def slopes(members, target):
        return jax.grad(crps_ensemble_loss, (0, 1))(jnp.array(members), jnp.array(target))

    # Each tied member has a gradient from its pair with the third one, but none from the other tied member.
    by_member, by_target = slopes([1.0, 1.0, 4.0], 2.0)
    np.testing.assert_allclose(by_member, [-2 / 9, -2 / 9, 1 / 9], rtol=1e-6)
    np.testing.assert_allclose(by_target, 1 / 3, rtol=1e-6)
    by_member, by_target = slopes([2.0, 2.0, 2.0], 2.0)
    np.testing.assert_array_equal(by_member, 0)
    assert by_target == 0
    by_member, by_target = slopes([-0.0, 0.0], 0.0)
    np.testing.assert_array_equal(by_member, 0)


@pytest.mark.parametrize("fair", [False, True])
def test_a_member_may_be_infinite(fair):
    def loss(members):
        return crps_ensemble_loss(members, 0.0, fair=fair)

    value, slope = jax.value_and_grad(loss)(jnp.array([-1.0, INF, 2.0]))
    # In a fair ensemble, a far member's distance to the target cancels with its distances to the others.
    assert value == (loss(jnp.array([-1.0, 1e9, 2.0])) if fair else INF)
    assert np.isfinite(slope).all()


def test_shapes_of_ensembles():
    with pytest.raises(ValueError, match=r"targets must have the shape of predictions without its last axis"):
        crps_ensemble_loss(jnp.ones((2, 3)), jnp.ones((2, 3)))
    with pytest.raises(ValueError, match=r"at least one member, got predictions \(2, 0\)"):
        crps_ensemble_loss(jnp.ones((2, 0)), jnp.ones(2))
    assert np.isnan(crps_ensemble_loss(jnp.ones((0, 3)), jnp.ones(0)))


# Normal distributions.


def test_crps_of_a_normal_distribution_equals_its_integral():
    with jax.enable_x64(True):
        grid = np.linspace(-60, 60, 1_200_001)
        for mean, scale, target in ((0.0, 1.0, 0.5), (2.0, 3.0, -4.0), (0.0, 0.5, 0.0)):
            below = 0.5 * (1 + jax.lax.erf((grid - mean) / (scale * math.sqrt(2))))
            integral = np.sum((np.asarray(below) - (grid >= target)) ** 2) * (grid[1] - grid[0])
            np.testing.assert_allclose(crps_normal_loss(mean, target, scale), integral, rtol=1e-3)


def test_crps_of_scale_0_is_the_absolute_error():
    errors = jnp.array([0.0, 2.0, -3.0])
    zeros = jnp.zeros(3)

    def total(predictions, targets, scale):
        return crps_normal_loss(predictions, targets, scale, reduction="sum")

    losses = crps_normal_loss(zeros, errors, zeros, reduction="none")
    np.testing.assert_array_equal(losses, jnp.abs(errors))
    by_prediction, by_scale = jax.grad(total, (0, 2))(zeros, errors, zeros)
    np.testing.assert_array_equal(by_prediction, [0, -1, 1])
    one_sided = [math.sqrt(2 / math.pi) - math.sqrt(1 / math.pi), *[-math.sqrt(1 / math.pi)] * 2]
    np.testing.assert_allclose(by_scale, one_sided, rtol=1e-6)
    hessians = jax.hessian(total, (0, 1, 2))(zeros, errors, zeros)
    assert all(np.isfinite(block).all() for row in hessians for block in row)


def test_a_negative_scale_is_nan():
    scale = jnp.array([-1.0, 1.0])

    def losses(predictions, scale):
        return crps_normal_loss(predictions, jnp.zeros(2), scale, reduction="none")

    value, pull = jax.vjp(losses, jnp.ones(2), scale)
    for array in (value, *pull(jnp.ones(2))):
        np.testing.assert_array_equal(np.isnan(array), [True, False])
    error, _ = checkify.checkify(crps_normal_loss)(jnp.ones(2), jnp.zeros(2), scale)
    assert "scale: expected numbers >= 0, got -1.0" in error.get()
    masked = checkify.checkify(crps_normal_loss)(jnp.ones(2), jnp.zeros(2), scale, where=scale > 0)
    assert masked[0].get() is None
