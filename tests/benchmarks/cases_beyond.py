"""What is timed of the losses that PyTorch does not have."""

import functools
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxloss
from tests.benchmarks.case import (
    CLASSES,
    ELEMENTS,
    add,
    apart,
    labelled,
    normal,
    normals,
    signs,
    softplus,
    uniform,
)

IMAGES = {"small": (2, 8, 8, 4), "cached": (4, 64, 64, 21), "large": (8, 256, 256, 21)}

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


# Classes.


def _surprise(logits: Any, labels: Any) -> Any:
    return -jnp.take_along_axis(jax.nn.log_softmax(logits), labels[..., None], -1)


def _focal(logits: Any, labels: Any) -> Any:
    surprise = _surprise(logits, labels)
    return jnp.mean((1 - jnp.exp(-surprise)) ** 2 * surprise)


def _poly(logits: Any, labels: Any) -> Any:
    surprise = _surprise(logits, labels)
    return jnp.mean(surprise + 2 * (1 - jnp.exp(-surprise)))


def _generalized(logits: Any, labels: Any) -> Any:
    return jnp.mean(1 - jnp.exp(-0.7 * _surprise(logits, labels))) / 0.7


def _asymmetric(logits: Any, targets: Any) -> Any:
    probs = jax.nn.sigmoid(logits)
    excess = jnp.maximum(probs - 0.05, 0)
    yes, no = (1 - probs) * softplus(-logits), excess**4 * -jnp.log1p(-excess)
    return jnp.mean(targets * yes + (1 - targets) * no)


add("softmax_focal_loss", labelled, CLASSES, line=_focal)
add("poly_cross_entropy", labelled, CLASSES, line=_poly)
add("generalized_cross_entropy", labelled, CLASSES, line=_generalized)
add(
    "asymmetric_loss",
    lambda rng, size: (normal(rng, size), (rng.random_sample(size) < 0.5).astype(np.float32)),
    ELEMENTS,
    line=_asymmetric,
)


# Regions.


def _images(rng: np.random.RandomState, *shape: int) -> tuple[np.ndarray, ...]:
    """Returns probabilities and, for each pixel, a class."""
    odds, labels = np.exp(normal(rng, *shape)), rng.randint(0, shape[-1], shape[:-1]).astype(np.int32)
    return odds / odds.sum(-1, keepdims=True), labels


def _sums(probs: Any, labels: Any) -> Any:
    true = (jnp.arange(probs.shape[-1]) == labels[..., None]).astype(probs.dtype)
    axes = tuple(range(1, probs.ndim - 1))
    return [jnp.sum(array, axes, dtype=jnp.float32) for array in (probs * true, probs, true)]


def _dice(probs: Any, labels: Any) -> Any:
    hits, predicted, true = _sums(probs, labels)
    return 1 - jnp.mean((2 * hits + 1e-5) / (predicted + true + 1e-5))


def _generalized_dice(probs: Any, labels: Any) -> Any:
    hits, predicted, true = _sums(probs, labels)
    weights = 1 / true**2
    whole = jnp.sum(weights * (predicted + true), -1)
    return 1 - jnp.mean((2 * jnp.sum(weights * hits, -1) + 1e-5) / (whole + 1e-5))


def _jaccard_steps(true: Any) -> Any:
    size = jnp.sum(true)
    union = size + jnp.cumsum(1 - true)
    return jnp.diff(1 - (size - jnp.cumsum(true)) / union, prepend=0)


def _lovasz(errors: Any, true: Any) -> Any:
    order = jnp.argsort(-errors)
    return jnp.dot(errors[order], _jaccard_steps(true[order].astype(jnp.float32)))


def _lovasz_hinge(logits: Any, targets: Any) -> Any:
    logits, targets = (array.reshape(len(logits), -1) for array in (logits, targets))
    errors = jnp.maximum(1 - logits.astype(jnp.float32) * (2 * targets - 1), 0)
    return jnp.mean(jax.vmap(_lovasz)(errors, targets))


def _lovasz_softmax(probs: Any, labels: Any) -> Any:
    true = (jnp.arange(probs.shape[-1]) == labels[..., None]).astype(jnp.float32).reshape(-1, probs.shape[-1])
    errors = jnp.abs(true - probs.reshape(true.shape))
    return jnp.mean(jax.vmap(_lovasz, -1)(errors, true))


add("dice_loss", _images, IMAGES, line=_dice)
add("tversky_loss", _images, IMAGES, line=_dice, ours=functools.partial(jaxloss.tversky_loss, smooth=5e-6))
add("generalized_dice_loss", _images, IMAGES, line=_generalized_dice)
add(
    "lovasz_hinge_loss",
    lambda rng, *shape: (normal(rng, *shape), rng.randint(0, 2, shape).astype(np.float32)),
    {"small": (2, 64), "cached": (4, 20_000), "large": (4, 250_000)},
    line=_lovasz_hinge,
)
add(
    "lovasz_softmax_loss",
    _images,
    {"small": (2, 8, 8, 4), "cached": (4, 64, 64, 4), "large": (4, 256, 256, 4)},
    line=_lovasz_softmax,
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


# Transducers.


def _transducer(rng, samples, frames, labels, classes):
    lengths = np.full(samples, frames, np.int32), np.full(samples, labels, np.int32)
    targets = rng.randint(1, classes, (samples, labels)).astype(np.int32)
    return normal(rng, samples, frames, labels + 1, classes), targets, *lengths


def _rnnt(logits, targets, input_lengths, target_lengths):
    log_probs = jax.nn.log_softmax(logits)
    blanks = log_probs[..., 0]
    labels = jnp.take_along_axis(log_probs[:, :, :-1], targets[:, None, :, None], -1)[..., 0]

    def frame(before, scores):
        def label(last, score):
            last = jnp.logaddexp(score[0], last + score[1])
            return last, last

        # Of the paths that come from the frame before, and of those that have emitted a label in this one.
        first, *others = (before + scores[0]).T, scores[1].T
        _, later = jax.lax.scan(label, first[0], (first[1:], *others))
        return jnp.concatenate([first[:1], later]).T, None

    before = jnp.cumsum(labels[:, 0], 1)
    start = jnp.pad(before, [(0, 0), (1, 0)])
    rows = jnp.moveaxis(blanks[:, :-1], 1, 0), jnp.moveaxis(labels[:, 1:], 1, 0)
    alphas, _ = jax.lax.scan(frame, start, rows)
    return -jnp.mean(alphas[:, -1] + blanks[:, -1, -1])


add(
    "rnnt_loss",
    _transducer,
    {"small": (2, 10, 5, 16), "cached": (4, 50, 10, 256), "large": (8, 200, 40, 512)},
    line=_rnnt,
)
