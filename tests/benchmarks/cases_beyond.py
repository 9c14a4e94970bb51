"""What is timed of the losses that PyTorch does not have."""

import functools

import jax.numpy as jnp

import jaxloss
from tests.benchmarks.case import ELEMENTS, add, apart

# Quantiles.

add(
    "quantile_loss",
    apart,
    ELEMENTS,
    ours=functools.partial(jaxloss.quantile_loss, quantiles=0.9),
    line=lambda p, t: jnp.mean(jnp.maximum(0.9 * (t - p), -0.1 * (t - p))),
)
