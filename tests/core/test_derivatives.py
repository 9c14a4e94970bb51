"""Elementwise building blocks, also on single elements, whose arithmetic XLA simplifies differently."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxloss._core.derivatives import (
    clamped_at_zero,
    derivatives,
    inverse_lengths,
    positive_part,
    scaled,
    weighted,
)

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


def test_weighted_propagates_nan():
    assert np.isnan(weighted(jnp.float32(0), jnp.float32(np.nan)))
    assert np.isnan(weighted(jnp.float32(np.nan), jnp.float32(0)))


@derivatives(lambda x, y: 100 * y, lambda x, y: 100 * x)
def times(x, y):
    return x * y


def test_derivatives_uses_the_given_partial_derivatives():
    assert jax.grad(times, (0, 1))(jnp.float32(2), jnp.float32(3)) == (300, 200)
    assert jax.jvp(times, (jnp.float32(2), jnp.float32(3)), (jnp.float32(1),) * 2) == (6, 500)


@pytest.mark.parametrize(
    ("function", "slopes"), [(clamped_at_zero, [0, 1, 1, np.nan]), (positive_part, [0, 0, 1, np.nan])]
)
def test_hinge_slope_at_the_kink_and_nan_propagation(function, slopes):
    gaps = jnp.array([-1, 0, 1, np.nan], jnp.float32)
    np.testing.assert_array_equal(jax.vmap(function)(gaps), [0, 0, 1, np.nan])
    np.testing.assert_array_equal(jax.vmap(jax.grad(function))(gaps), slopes)
    np.testing.assert_array_equal(jax.vmap(jax.grad(jax.grad(function)))(gaps[:3]), 0)


@pytest.mark.parametrize("size", [0.0, 1e-38, 1e-20, 1e-13, 1e-11, 1.0, 1e20, 1e36])
def test_inverse_lengths_for_tiny_and_huge_vectors(size):
    vectors = np.float32(size * np.array([[3.0, -4.0], [0.0, 2.0]]))
    power, inverse = inverse_lengths(jnp.asarray(vectors), 1)
    lengths = np.linalg.norm(np.float64(vectors), axis=1)
    expected = np.where(lengths == 0, 0, 1 / np.maximum(lengths, 1e-12))
    np.testing.assert_allclose(np.float64(power) * np.float64(inverse), expected, rtol=1e-6)
    mantissa, _ = np.frexp(np.asarray(power))
    assert np.all((mantissa == 0.5) | (mantissa == 0))  # a power of two: scaling by it is exact

    def unit(vector):
        power, inverse = inverse_lengths(vector, 0)
        return vector * power * inverse

    across = np.eye(2) - np.array([[9, -12], [-12, 16]]) / 25 if lengths[0] >= 1e-12 else np.eye(2)
    turned = jax.jacrev(unit)(jnp.asarray(vectors[0]))
    np.testing.assert_allclose(turned, expected[0] * across, rtol=1e-5, atol=1e-6 * expected[0])


def test_scaling_an_infinite_number_has_derivative_zero_in_the_scale():
    numbers = jnp.array([2.0, INF, -INF])
    np.testing.assert_array_equal(scaled(jnp.float32(3), numbers), [6, INF, -INF])
    np.testing.assert_array_equal(jax.jacfwd(scaled)(jnp.float32(3), numbers), [2, 0, 0])
    _, product = jax.jvp(jax.jacfwd(scaled), (jnp.float32(3), numbers), (jnp.float32(1), jnp.ones(3)))
    np.testing.assert_array_equal(product, [1, 0, 0])
