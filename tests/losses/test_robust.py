"""Robust losses: defaults, limits, extreme errors, and options outside their domain."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import checkify

from jaxloss import charbonnier_loss, general_robust_loss, l1_loss, log_cosh_loss, wing_loss

INF = np.inf
ERRORS = np.array([0.0, 1e-3, -0.5, 2.0, -30.0])
ZEROS = np.zeros_like(ERRORS)


@pytest.mark.parametrize(
    ("loss", "options"),
    [
        (charbonnier_loss, {"eps": 1e-3}),
        (general_robust_loss, {"alpha": 1.0, "scale": 1.0}),
        (wing_loss, {"width": 10.0, "curvature": 2.0}),
    ],
)
def test_defaults(loss, options):
    np.testing.assert_array_equal(loss(ERRORS, ZEROS), loss(ERRORS, ZEROS, **options))


def test_charbonnier_without_eps_is_l1():
    answer = jax.value_and_grad(charbonnier_loss)(ERRORS, ZEROS, eps=0.0)
    expected = jax.value_and_grad(l1_loss)(ERRORS, ZEROS)
    jax.tree.map(lambda *pair: np.testing.assert_allclose(*pair, rtol=1e-6), answer, expected)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_log_cosh_of_small_errors_keeps_full_precision(dtype):
    errors = jnp.array([1e-4, 1e-10, 3.0], dtype)
    losses = log_cosh_loss(errors, jnp.zeros_like(errors), reduction="none")
    expected = np.asarray(errors, float)
    np.testing.assert_allclose(losses[:2], expected[:2] ** 2 / 2, rtol=1e-6)
    np.testing.assert_allclose(losses[2], np.log(np.cosh(3.0)), rtol=1e-6)


# Members of the family that are known under other names.
MEMBERS = {
    2.0: lambda z: z / 2,
    1.0: lambda z: z / (np.sqrt(z + 1) + 1),
    0.0: lambda z: np.log1p(z / 2),
    -2.0: lambda z: 2 * z / (z + 4),
    -INF: lambda z: -np.expm1(-z / 2),
}


@pytest.mark.parametrize("alpha", MEMBERS)
@pytest.mark.parametrize("shift", [0.0, 1e-6, -1e-6])
def test_known_members_of_the_robust_family_and_nearby_alphas(alpha, shift):
    with jax.enable_x64(True):
        losses = general_robust_loss(ERRORS, ZEROS, alpha=alpha + shift, scale=2.0, reduction="none")
        expected = MEMBERS[alpha]((ERRORS / 2) ** 2)
        np.testing.assert_allclose(losses, expected, rtol=3e-5 * (shift != 0) + 1e-12)


@pytest.mark.parametrize(
    ("alpha", "value", "slope"),
    [(1.0, 1e20, 1), (0.0, np.log(5e39), 2e-20), (-2.0, 2, 0), (-INF, 1, 0), (-1e30, 1, 0)],
)
def test_a_huge_error_does_not_overflow(alpha, value, slope):
    loss, slopes = jax.value_and_grad(general_robust_loss)(1e20, 0.0, alpha=alpha)
    np.testing.assert_allclose(loss, value, rtol=1e-6)
    np.testing.assert_allclose(slopes, slope, rtol=1e-6, atol=1e-30)


@pytest.mark.parametrize(
    ("alpha", "value", "slope"), [(1.5, INF, INF), (1.0, INF, 1), (0.0, INF, 0), (-2.0, 2, 0), (-INF, 1, 0)]
)
def test_an_infinite_error_has_the_limit(alpha, value, slope):
    loss, slopes = jax.value_and_grad(general_robust_loss)(INF, 0.0, alpha=alpha)
    np.testing.assert_allclose(loss, value, rtol=1e-6)
    np.testing.assert_allclose(slopes, slope, rtol=1e-6)
    if np.isfinite(value):
        by_scale = jax.grad(lambda scale: general_robust_loss(INF, 0.0, alpha=alpha, scale=scale))(1.0)
        assert by_scale == 0


@pytest.mark.parametrize("alpha", [2.0, 2 - 1e-6, 2 + 1e-6, 1.0, 1e-6, 0.0, -1e-6, -3.0, -INF])
def test_every_second_derivative_of_the_family_is_finite(alpha):
    def loss(error, alpha, scale):
        return general_robust_loss(error, 0.0, alpha=alpha, scale=scale)

    for error in (0.0, 1e-20, 0.7, 50.0, 1e15):
        hessian = jax.hessian(loss, (0, 1, 2))(error, alpha, 1.0)
        rows = np.array(hessian)
        rows = np.delete(np.delete(rows, 1, 0), 1, 1) if alpha == -INF or abs(alpha - 2) < 1e-3 else rows
        assert np.isfinite(rows).all(), (error, hessian)


def test_the_alpha_gradient_diverges_logarithmically_near_2_and_is_0_at_2():
    with jax.enable_x64(True):
        slope = jax.grad(lambda alpha: general_robust_loss(3.0, 0.0, alpha=alpha))
        for gap in (1e-4, 1e-8, 1e-12):
            z = 9.0
            np.testing.assert_allclose(slope(2 - gap), z / 4 * (np.log(z / gap) - 2), rtol=1e-3)
        assert slope(2.0) == 0


def test_wing_by_hand():
    errors = jnp.array([0.0, 2.0, -2.0, 10.0, 12.0])
    value, pull = jax.vjp(lambda e: wing_loss(e, jnp.zeros(5), reduction="none"), errors)
    top = 10 * np.log(6)
    np.testing.assert_allclose(value, [0, 10 * np.log(2), 10 * np.log(2), top, 2 + top], rtol=1e-6)
    np.testing.assert_allclose(pull(jnp.ones(5))[0], [0, 2.5, -2.5, 1, 1], rtol=1e-6)


@pytest.mark.parametrize(
    ("loss", "option", "bad", "domain"),
    [
        (charbonnier_loss, "eps", -1.0, "a number >= 0"),
        (general_robust_loss, "scale", 0.0, "a finite number > 0"),
        (general_robust_loss, "alpha", INF, "a finite number or -inf"),
        (wing_loss, "width", 0.0, "a finite number > 0"),
        (wing_loss, "curvature", -1.0, "a finite number > 0"),
    ],
)
def test_options_outside_their_domain_raise_or_give_nan(loss, option, bad, domain):
    with pytest.raises(ValueError, match=f"{option} must be {domain}, got {bad}"):
        loss(ERRORS, ZEROS, **{option: bad})
    traced = {option: jnp.float32(bad)}
    assert np.isnan(loss(ERRORS, ZEROS, **traced))
    assert np.isnan(jax.grad(loss)(ERRORS, ZEROS, **traced)).all()
    error, _ = checkify.checkify(loss)(ERRORS, ZEROS, **traced)
    assert f"{option}: expected {domain}" in error.get()


@pytest.mark.parametrize(
    ("loss", "options"),
    [
        (charbonnier_loss, {"eps": 0.5}),
        (general_robust_loss, {"alpha": 1.25, "scale": 2.0}),
        (wing_loss, {"width": 2.5, "curvature": 0.5}),
    ],
)
def test_options_are_differentiable(loss, options):
    with jax.enable_x64(True):
        gradient = jax.grad(lambda options: loss(ERRORS, ZEROS, **options))(options)
        for name, slope in gradient.items():
            ways = [loss(ERRORS, ZEROS, **{**options, name: options[name] + h}) for h in (1e-6, -1e-6)]
            np.testing.assert_allclose(slope, (ways[0] - ways[1]) / 2e-6, rtol=1e-6)
