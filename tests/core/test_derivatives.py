"""The elementwise building blocks, at every size: XLA rewrites the arithmetic of a single element further."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxloss._core.derivatives import derivatives, product

INF = np.inf
FACTORS = [0.0, 0.0, 0.0, 1.0, 0.5, 1e-6, 2.0, 1.0, -1.0]
MAGNITUDES = [0.0, 3.0, INF, INF, INF, INF, 3.0, 1e30, INF]
PRODUCTS = [0.0, 0.0, 0.0, INF, INF, INF, 6.0, 1e30, -INF]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("transform", [lambda f: f, jax.jit, jax.vmap, lambda f: jax.jit(jax.vmap(f))])
def test_product_of_zero_and_infinity_is_zero(transform, dtype):
    with jax.enable_x64(True):
        factors, magnitudes = jnp.asarray(FACTORS, dtype), jnp.asarray(MAGNITUDES, dtype)
        np.testing.assert_array_equal(transform(product)(factors, magnitudes), np.asarray(PRODUCTS, dtype))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", [(), (1,), (1, 1)])
@pytest.mark.parametrize(
    ("factor", "magnitude", "expected"), list(zip(FACTORS, MAGNITUDES, PRODUCTS, strict=True))
)
def test_product_of_one_element(factor, magnitude, expected, shape, dtype):
    with jax.enable_x64(True):
        arguments = jnp.full(shape, factor, dtype), jnp.full(shape, magnitude, dtype)
        for function in (product, jax.jit(product), jax.jit(lambda: product(*arguments))):
            value = function() if function.__name__ == "<lambda>" else function(*arguments)
            np.testing.assert_array_equal(value, np.asarray(expected, dtype))


def test_product_derivatives():
    factor, magnitude = jnp.float32(0), jnp.float32(INF)
    assert jax.grad(product, 0)(factor, magnitude) == INF
    assert jax.grad(product, 1)(factor, magnitude) == 0
    assert jax.jvp(lambda m: product(factor, m), (magnitude,), (jnp.float32(1),))[1] == 0
    assert jax.grad(jax.grad(product, 0), 1)(jnp.float32(2), jnp.float32(3)) == 1


def test_nan_is_handed_on():
    assert np.isnan(product(jnp.float32(0), jnp.float32(np.nan)))
    assert np.isnan(product(jnp.float32(np.nan), jnp.float32(0)))


@derivatives(lambda x, y: 100 * y, lambda x, y: 100 * x, of_difference=True)
def times_of_difference(d, y):
    return d * y


def test_a_difference_has_opposite_slopes():
    one, two, three = map(jnp.float32, (1, 2, 3))
    assert jax.grad(times_of_difference, (0, 1, 2))(three, one, two) == (200, -200, 200)
    assert jax.grad(times_of_difference, 1)(three, one, two) == -200


@derivatives(lambda x, y: 100 * y, lambda x, y: 100 * x)
def times(x, y):
    return x * y


def test_the_derivatives_are_the_ones_that_were_given():
    assert jax.grad(times, (0, 1))(jnp.float32(2), jnp.float32(3)) == (300, 200)
    assert jax.jvp(times, (jnp.float32(2), jnp.float32(3)), (jnp.float32(1),) * 2) == (6, 500)


def test_arguments_are_widened_and_gradients_are_not():
    x, y = jnp.bfloat16(2), jnp.float16(3)
    assert times(x, y).dtype == jnp.float32
    assert [g.dtype for g in jax.grad(times, (0, 1))(x, y)] == [jnp.bfloat16, jnp.float16]


def test_integer_arguments_have_no_derivative():
    assert jax.grad(times)(jnp.float32(2), jnp.int32(3)) == 300
