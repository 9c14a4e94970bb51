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
    PAIRS,
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


# Last layers.

LAYERS = {"small": (32, 16, 1000), "cached": (512, 64, 20_000), "large": (512, 512, 32_000)}


def _layer(rng: np.random.RandomState, rows: int, width: int, classes: int) -> tuple[np.ndarray, ...]:
    return normal(rng, rows, width), normal(rng, width, classes) / np.float32(math.sqrt(width))


def _of_cosines(margined: Any, embeddings: Any, kernel: Any, labels: Any) -> Any:
    rows = embeddings / jnp.linalg.norm(embeddings, axis=1, keepdims=True)
    cosines = rows @ (kernel / jnp.linalg.norm(kernel, axis=0, keepdims=True))
    own = jnp.arange(kernel.shape[1]) == labels[:, None]
    return jnp.mean(_surprise(64 * jnp.where(own, margined(cosines), cosines), labels))


def _arcface(*arrays: Any) -> Any:
    return _of_cosines(lambda cosines: jnp.cos(jnp.arccos(cosines) + 0.5), *arrays)


def _cosface(*arrays: Any) -> Any:
    return _of_cosines(lambda cosines: cosines - 0.35, *arrays)


def _distillation(hidden: Any, kernel: Any, teacher_hidden: Any, teacher_kernel: Any) -> Any:
    student, teacher = (
        jax.nn.log_softmax(hidden @ kernel),
        jax.nn.log_softmax(teacher_hidden @ teacher_kernel),
    )
    return jnp.mean(jnp.sum(jnp.exp(teacher) * (teacher - student), -1))


for _loss, _line in (("arcface_loss", _arcface), ("cosface_loss", _cosface)):
    add(
        _loss,
        lambda rng, *size: (*_layer(rng, *size), rng.randint(0, size[-1], size[0]).astype(np.int32)),
        LAYERS,
        line=_line,
        moved=(0, 1),
    )
add(
    "linear_distillation_loss",
    lambda rng, *size: (*_layer(rng, *size), *_layer(rng, *size)),
    LAYERS,
    line=_distillation,
    moved=(0, 1, 2, 3),
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
    """Returns similarities, and which of them are of positives and of negatives."""
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


# Teachers.


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


# Statistics of two views.


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
