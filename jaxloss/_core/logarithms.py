"""Logarithms for elementwise losses: on a CPU in less time than XLA's own takes, and no less accurate.

There they are series, which a loop computes for several numbers at once.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxloss._core.derivatives import derivatives


@derivatives(lambda x: 1 / x)
def log(x: jax.Array) -> jax.Array:
    """The natural logarithm: -∞ at 0, NaN below."""
    return lax.platform_dependent(x, cpu=_log, default=jnp.log)


def log1p_of_fraction(x: jax.Array) -> jax.Array:
    """Returns log(1 + x) for x in [0, 1], to be differentiated by its caller's rule."""
    return lax.platform_dependent(x, cpu=_log1p_of_fraction, default=jnp.log1p)


def _log(x: jax.Array) -> jax.Array:
    integer, digits, terms = (jnp.int32, 23, 5) if x.dtype == jnp.float32 else (jnp.int64, 52, 10)
    # x = 2**exponent · fraction, with the fraction between √½ and √2.
    bits = lax.bitcast_convert_type(x, integer)
    exponent = (bits - np.asarray(math.sqrt(0.5), x.dtype).view(integer)) >> digits
    fraction = lax.bitcast_convert_type(bits - (exponent << digits), x.dtype)
    found = exponent.astype(x.dtype) * math.log(2) + _log1p(fraction - 1, terms)
    found = jnp.where(x < jnp.inf, found, x)
    found = jnp.where(x == 0, -jnp.inf, found)
    return jnp.where(x < 0, jnp.nan, found)


def _log1p_of_fraction(x: jax.Array) -> jax.Array:
    return _log1p(x, 8 if x.dtype == jnp.float32 else 17)


def _log1p(x: jax.Array, terms: int) -> jax.Array:
    """Returns log(1 + x) = 2 artanh(x / (2 + x)) from so many terms of the power series of artanh."""
    ratio = x * (1 / (2 + x))  # a division whose result has several users would split a loop
    square = ratio * ratio
    series = 2 / (2 * terms - 1)
    for power in reversed(range(1, terms - 1)):
        series = series * square + 2 / (2 * power + 1)
    return x - ratio * (x - series * square)  # 2 · ratio is x - ratio · x, which rounds less
