"""The elementwise building blocks, at every size: XLA rewrites the arithmetic of a single element further."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxloss._core.derivatives import clamped_at_zero, derivatives, positive_part, weighted

INF = np.inf
FACTORS = [0.0, 0.0, 0.0, 1.0, 0.5, 1e-6, 2.0, 1.0, -1.0]
MAGNITUDES = [0.0, 3.0, INF, INF, INF, INF, 3.0, 1e30, INF]
PRODUCTS = [0.0, 0.0, 0.0, INF, INF, INF, 6.0, 1e30, -INF]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("transform", [lambda f: f, jax.jit, jax.vmap, lambda f: jax.jit(jax.vmap(f))])
def test_weighted_of_zero_and_infinity_is_zero(transform, dtype):
    with jax.enable_x64(True):
        factors, magnitudes = jnp.asarray(FACTORS, dtype), jnp.asarray(MAGNITUDES, dtype)
        np.testing.assert_array_equal(transform(weighted)(factors, magnitudes), np.asarray(PRODUCTS, dtype))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
@pytest.mark.parametrize(
    ("factor", "magnitude", "expected"), list(zip(FACTORS, MAGNITUDES, PRODUCTS, strict=True))
)
def test_weighted_of_one_element(factor, magnitude, expected, shape, dtype):
    with jax.enable_x64(True):
        arguments = jnp.full(shape, factor, dtype), jnp.full(shape, magnitude, dtype)
        for function in (weighted, jax.jit(weighted), jax.jit(lambda: weighted(*arguments))):
            value = function() if function.__name__ == "<lambda>" else function(*arguments)
            np.testing.assert_array_equal(value, np.asarray(expected, dtype))


def test_weighted_derivatives():
    factor, magnitude = jnp.float32(0), jnp.float32(INF)
    assert jax.grad(weighted, 0)(factor, magnitude) == INF
    assert jax.grad(weighted, 1)(factor, magnitude) == 0
    assert jax.jvp(lambda m: weighted(factor, m), (magnitude,), (jnp.float32(1),))[1] == 0
    assert jax.grad(jax.grad(weighted, 0), 1)(jnp.float32(2), jnp.float32(3)) == 1


def test_nan_stays_nan():
    assert np.isnan(weighted(jnp.float32(0), jnp.float32(np.nan)))
    assert np.isnan(weighted(jnp.float32(np.nan), jnp.float32(0)))


@derivatives(lambda x, y: 100 * y, lambda x, y: 100 * x)
def times(x, y):
    return x * y


def test_the_derivatives_are_the_ones_that_were_given():
    assert jax.grad(times, (0, 1))(jnp.float32(2), jnp.float32(3)) == (300, 200)
    assert jax.jvp(times, (jnp.float32(2), jnp.float32(3)), (jnp.float32(1),) * 2) == (6, 500)


@pytest.mark.parametrize(
    ("function", "slopes"), [(clamped_at_zero, [0, 1, 1, np.nan]), (positive_part, [0, 0, 1, np.nan])]
)
def test_a_hinge_has_one_slope_at_its_kink_and_keeps_nan(function, slopes):
    gaps = jnp.array([-1, 0, 1, np.nan], jnp.float32)
    np.testing.assert_array_equal(jax.vmap(function)(gaps), [0, 0, 1, np.nan])
    np.testing.assert_array_equal(jax.vmap(jax.grad(function))(gaps), slopes)
    np.testing.assert_array_equal(jax.vmap(jax.grad(jax.grad(function)))(gaps[:3]), 0)
