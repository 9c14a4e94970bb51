"""The logarithms: beside the truth from more digits, at their ends, and on accelerators."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxloss import _logarithms

DTYPES = [np.float32, np.float64]


def largest_error(function, true_function, x):
    """How far a function is off at most, relative to the truth, in units of the dtype's spacing at 1."""
    found = np.asarray(jax.jit(function)(x))
    assert found.dtype == x.dtype
    truth = true_function(x.astype(np.longdouble))
    return np.max(np.abs((found - truth) / truth)) / np.finfo(x.dtype).eps


def spread(dtype):
    """Numbers of all magnitudes, and many that are near 1 on either side."""
    rng, limits, count = np.random.default_rng(0), np.finfo(dtype), 200_000
    all_sizes = np.exp(rng.uniform(np.log(limits.tiny), np.log(limits.max), count))
    apart = np.exp(rng.uniform(np.log(limits.eps), 0, count))
    x = np.concatenate([all_sizes, 1 + apart, 1 - apart / 2, rng.uniform(0.7, 1.42, count)]).astype(dtype)
    return x[x != 1]


@pytest.mark.parametrize("dtype", DTYPES)
def test_logarithms_are_right_to_the_last_place(dtype):
    x = spread(dtype)
    with jax.enable_x64(dtype == np.float64):
        assert largest_error(_logarithms.log, np.log, x) < 1
        assert largest_error(_logarithms.log1p_of_fraction, np.log1p, x[x <= 1]) < 1
        np.testing.assert_array_equal(_logarithms.log1p_of_fraction(np.zeros(1, dtype)), 0)


@pytest.mark.parametrize("dtype", DTYPES)
def test_log_at_its_ends(dtype):
    with jax.enable_x64(dtype == np.float64):
        x = np.array([0, -0.0, 1, np.inf, np.nan, -1, -np.inf] * 9, dtype)  # enough for vectors of several
        expected = np.array([-np.inf, -np.inf, 0, np.inf, np.nan, np.nan, np.nan] * 9)
        np.testing.assert_array_equal(jax.jit(_logarithms.log)(x), expected)
        np.testing.assert_array_equal(jax.jit(jax.vmap(jax.grad(_logarithms.log)))(x[2:4]), [1, 0])


def test_accelerators_use_their_own():
    traced = jax.jit(_logarithms.log).trace(jnp.ones(8))
    assert "bitcast" in traced.lower(lowering_platforms=("cpu",)).as_text()
    for platform in ("cuda", "tpu"):
        assert "bitcast" not in traced.lower(lowering_platforms=(platform,)).as_text()
