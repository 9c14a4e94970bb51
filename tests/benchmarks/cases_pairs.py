"""Cases of contrastive, metric-learning, distillation and self-supervised losses."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

import jaxloss
from tests.benchmarks.case import CLASSES, PAIRS, add, normal, normals

# Contrastive losses and metric learning.


def _unit(x):
    return x / jnp.linalg.norm(x, axis=1, keepdims=True)


def _views(rng, rows, size):
    return normal(rng, rows, size), normal(rng, rows, size)


def _labelled(rng, rows, size):
    return normal(rng, rows, size), rng.randint(0, 10, rows).astype(np.int32)


def _info_nce(x, y):
    z = _unit(x) @ _unit(y).T / 0.1
    return jnp.mean(jax.nn.logsumexp(z, 1) - jnp.diag(z))


def _clip(x, y):
    z = _unit(x) @ _unit(y).T / 0.1
    return jnp.mean(jax.nn.logsumexp(z, 1) + jax.nn.logsumexp(z, 0) - 2 * jnp.diag(z)) / 2


def _optax_clip(optax, x, y):
    z, own = 10 * jnp.dot(_unit(x), _unit(y).T, preferred_element_type=jnp.float32), jnp.arange(len(x))
    losses = [optax.softmax_cross_entropy_with_integer_labels(logits, own) for logits in (z, z.T)]
    return (losses[0].mean() + losses[1].mean()) / 2


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
    line=_clip,
    optax=_optax_clip,
    moved=(0, 1),
)
add("nt_xent_loss", _views, PAIRS, line=_nt_xent, moved=(0, 1))
add("supervised_contrastive_loss", _labelled, PAIRS, line=_supervised)


def _siglip(x, y):
    z = 10 * _unit(x) @ _unit(y).T - 10
    return -jnp.sum(jax.nn.log_sigmoid((2 * jnp.eye(len(x)) - 1) * z)) / len(x)


def _by_labels(x, labels):
    """Returns the similarities and the masks of positives and negatives."""
    alike = labels[:, None] == labels
    return _unit(x) @ _unit(x).T, alike & ~jnp.eye(len(x), dtype=bool), ~alike


def _log_sum(logits, where):
    return jax.nn.logsumexp(jnp.where(where, logits, -1e30), 1)


def _circle(x, labels):
    s, positive, negative = _by_labels(x, labels)
    pull = jax.lax.stop_gradient(jax.nn.relu(1.4 - s))
    push = jax.lax.stop_gradient(jax.nn.relu(s + 0.4))
    sums = _log_sum(-80 * pull * (s - 0.6), positive) + _log_sum(80 * push * (s - 0.4), negative)
    counts = positive.any(1) & negative.any(1)
    return jnp.sum(jnp.where(counts, jax.nn.softplus(sums), 0)) / jnp.sum(counts)


def _multi_similarity(x, labels):
    s, positive, negative = _by_labels(x, labels)
    of_positives = jax.nn.softplus(_log_sum(-2 * (s - 0.5), positive)) / 2
    return jnp.mean(of_positives + jax.nn.softplus(_log_sum(50 * (s - 0.5), negative)) / 50)


add(
    "siglip_loss",
    _views,
    PAIRS,
    ours=functools.partial(jaxloss.siglip_loss, logit_scale=10.0, logit_bias=-10.0, normalize=True),
    line=_siglip,
    moved=(0, 1),
)
add("circle_loss", _labelled, PAIRS, line=_circle)
add("multi_similarity_loss", _labelled, PAIRS, line=_multi_similarity)


# Distillation.


def _log_softmaxes(s, t):
    return [jax.nn.log_softmax(array.astype(jnp.float32)) for array in (s, t)]


def _divergence(log_probs, others):
    return jnp.sum(jnp.exp(log_probs) * (log_probs - others), -1)


def _distillation(s, t):
    student, teacher = _log_softmaxes(s, t)
    return jnp.mean(_divergence(teacher, student))


def _jensen_shannon(s, t):
    student, teacher = _log_softmaxes(s, t)
    mixture = jnp.logaddexp(student, teacher) - math.log(2)
    return jnp.mean(_divergence(teacher, mixture) + _divergence(student, mixture)) / 2


add("distillation_loss", normals(2), CLASSES, line=_distillation)
add("jensen_shannon_loss", normals(2), CLASSES, line=_jensen_shannon)


# Self-supervised losses.


def _off_diagonal(x):
    return x * (1 - jnp.eye(len(x)))


def _barlow_twins(x, y):
    x, y = (
        (v - v.mean(0)) / jnp.sqrt(v.var(0) + 1e-5) for v in (x.astype(jnp.float32), y.astype(jnp.float32))
    )
    c = x.T @ y / len(x)
    return jnp.sum((1 - jnp.diag(c)) ** 2) + 5e-3 * jnp.sum(_off_diagonal(c) ** 2)


def _vicreg(x, y):
    x, y = x.astype(jnp.float32), y.astype(jnp.float32)
    loss = 25 * jnp.mean((x - y) ** 2)
    for view in (x, y):
        deviations = view - view.mean(0)
        covariances = deviations.T @ deviations / (len(x) - 1)
        hinges = jnp.maximum(1 - jnp.sqrt(jnp.diag(covariances) + 1e-4), 0)
        loss += 12.5 * jnp.mean(hinges) + jnp.sum(_off_diagonal(covariances) ** 2) / x.shape[1]
    return loss


def _dino(s, t):
    probs = jax.nn.softmax(t.astype(jnp.float32) / 0.04)
    log_probs = jax.nn.log_softmax(s.astype(jnp.float32) / 0.1)
    pairs = jnp.einsum("tnk,snk->tsn", probs, -log_probs) * (1 - jnp.eye(len(t), len(s)))[..., None]
    return jnp.mean(jnp.sum(pairs, (0, 1))) / (len(s) * len(t) - len(t))


FEATURES = {"small": (64, 64), "cached": (1024, 256), "large": (4096, 1024)}
add("barlow_twins_loss", _views, FEATURES, line=_barlow_twins, moved=(0, 1))
add("vicreg_loss", _views, FEATURES, line=_vicreg, moved=(0, 1))
add(
    "dino_loss",
    lambda rng, rows, size: (normal(rng, 10, rows, size), normal(rng, 2, rows, size)),
    {"small": (8, 64), "cached": (16, 4096), "large": (64, 16_384)},
    line=_dino,
)
