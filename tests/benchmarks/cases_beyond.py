"""What is timed of the losses that PyTorch does not have."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

import jaxloss
from tests.benchmarks.case import ELEMENTS, add, apart, normal, normals, signs, softplus, uniform

# Robust and relative errors.

add(
    "charbonnier_loss",
    normals(2),
    ELEMENTS,
    line=lambda p, t: jnp.mean(jnp.sqrt((p - t) ** 2 + 1e-6)),
)
add(
    "log_cosh_loss",
    normals(2),
    ELEMENTS,
    line=lambda p, t: jnp.mean(p - t + softplus(-2 * (p - t)) - math.log(2)),
    optax=lambda optax, p, t: optax.log_cosh(p, t).mean(),
)
add(
    "general_robust_loss",
    normals(2),
    ELEMENTS,
    ours=functools.partial(jaxloss.general_robust_loss, alpha=1.5),
    line=lambda p, t: jnp.mean(0.5 / 1.5 * (((p - t) ** 2 / 0.5 + 1) ** 0.75 - 1)),
)


def _wing(p, t):
    error = jnp.abs(p - t)
    return jnp.mean(jnp.where(error < 10, 10 * jnp.log1p(error / 2), error - 10 + 10 * math.log(6)))


add("wing_loss", apart, ELEMENTS, line=_wing)
add("mape_loss", apart, ELEMENTS, line=lambda p, t: jnp.mean(jnp.abs(p - t) / jnp.maximum(jnp.abs(t), 1e-6)))
add(
    "msle_loss",
    lambda rng, size: (uniform(rng, size), uniform(rng, size)),
    ELEMENTS,
    line=lambda p, t: jnp.mean((jnp.log1p(p) - jnp.log1p(t)) ** 2),
)

# Quantiles.

add(
    "quantile_loss",
    apart,
    ELEMENTS,
    ours=functools.partial(jaxloss.quantile_loss, quantiles=0.9),
    line=lambda p, t: jnp.mean(jnp.maximum(0.9 * (t - p), -0.1 * (t - p))),
)
add(
    "expectile_loss",
    normals(2),
    ELEMENTS,
    ours=functools.partial(jaxloss.expectile_loss, expectile=0.9),
    line=lambda p, t: jnp.mean(jnp.where(t > p, 0.9, 0.1) * (t - p) ** 2),
)


def _crps_ensemble(x, y):
    size = x.shape[-1]
    rank = 2 * jnp.arange(size) - size + 1
    return jnp.mean(jnp.mean(jnp.abs(x - y[:, None]), -1) - jnp.sort(x) @ rank / size**2)


add(
    "crps_ensemble_loss",
    lambda rng, rows, size: (normal(rng, rows, size), normal(rng, rows)),
    {"small": (64, 16), "cached": (20_000, 50), "large": (320_000, 50)},
    line=_crps_ensemble,
)


def _crps_normal(p, t, s):
    z = (t - p) / s
    density = jnp.exp(-z * z / 2) * math.sqrt(2 / math.pi)
    return jnp.mean(s * (z * jax.scipy.special.erf(z / math.sqrt(2)) + density - 1 / math.sqrt(math.pi)))


add(
    "crps_normal_loss",
    lambda rng, size: (normal(rng, size), normal(rng, size), uniform(rng, size)),
    ELEMENTS,
    line=_crps_normal,
    moved=(0, 2),
)

# Yes or no.

add(
    "hinge_loss",
    lambda rng, size: (normal(rng, size), signs(rng, size)),
    ELEMENTS,
    line=lambda s, t: jnp.mean(jnp.maximum(0, 1 - t * s)),
)

# Pairs.

PAIRS = {"small": (64, 64), "cached": (1024, 128), "large": (8192, 128)}


def _unit(x):
    return x / jnp.linalg.norm(x, axis=1, keepdims=True)


def _views(rng, rows, size):
    return normal(rng, rows, size), normal(rng, rows, size)


def _info_nce(x, y):
    z = _unit(x) @ _unit(y).T / 0.1
    return jnp.mean(jax.nn.logsumexp(z, 1) - jnp.diag(z))


def _supervised(x, labels, temperature=0.1):
    itself = jnp.eye(len(x), dtype=bool)
    z = jnp.where(itself, -jnp.inf, _unit(x) @ _unit(x).T / temperature)
    positive = (labels[:, None] == labels) & ~itself
    gaps = jnp.where(positive, jax.nn.logsumexp(z, 1, keepdims=True) - z, 0)
    return jnp.sum(gaps.sum(1) / jnp.maximum(positive.sum(1), 1)) / jnp.sum(positive.any(1))


def _nt_xent(x, y):
    return _supervised(jnp.concatenate([x, y]), jnp.tile(jnp.arange(len(x)), 2), 0.5)


add("info_nce_loss", _views, PAIRS, line=_info_nce, moved=(0, 1))
add(
    "clip_loss",
    _views,
    PAIRS,
    ours=functools.partial(jaxloss.clip_loss, logit_scale=10.0, normalize=True),
    line=lambda x, y: (_info_nce(x, y) + _info_nce(y, x)) / 2,
    moved=(0, 1),
)
add("nt_xent_loss", _views, PAIRS, line=_nt_xent, moved=(0, 1))
add(
    "supervised_contrastive_loss",
    lambda rng, rows, size: (normal(rng, rows, size), rng.randint(0, 10, rows).astype(np.int32)),
    PAIRS,
    line=_supervised,
)
