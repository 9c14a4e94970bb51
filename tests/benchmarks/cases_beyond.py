"""Cases of regression, classification, segmentation and transducer losses that PyTorch does not have."""

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

# Robust and relative regression.

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

# Binary targets.

add(
    "hinge_loss",
    lambda rng, size: (normal(rng, size), signs(rng, size)),
    ELEMENTS,
    line=lambda s, t: jnp.mean(jnp.maximum(0, 1 - t * s)),
)


# Classes.


def _nll(logits: Any, labels: Any) -> Any:
    return -jnp.take_along_axis(jax.nn.log_softmax(logits), labels[..., None], -1)


def _focal(logits: Any, labels: Any) -> Any:
    nll = _nll(logits, labels)
    return jnp.mean((1 - jnp.exp(-nll)) ** 2 * nll)


def _poly(logits: Any, labels: Any) -> Any:
    nll = _nll(logits, labels)
    return jnp.mean(nll + 2 * (1 - jnp.exp(-nll)))


def _generalized(logits: Any, labels: Any) -> Any:
    return jnp.mean(1 - jnp.exp(-0.7 * _nll(logits, labels))) / 0.7


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


# Losses over a last layer.

LAYERS = {"small": (32, 16, 1000), "cached": (512, 64, 20_000), "large": (512, 512, 32_000)}


def _layer(rng: np.random.RandomState, rows: int, width: int, classes: int) -> tuple[np.ndarray, ...]:
    return normal(rng, rows, width), normal(rng, width, classes) / np.float32(math.sqrt(width))


def _of_cosines(margined: Any, embeddings: Any, kernel: Any, labels: Any) -> Any:
    rows = embeddings / jnp.linalg.norm(embeddings, axis=1, keepdims=True)
    cosines = rows @ (kernel / jnp.linalg.norm(kernel, axis=0, keepdims=True))
    own = jnp.arange(kernel.shape[1]) == labels[:, None]
    return jnp.mean(_nll(64 * jnp.where(own, margined(cosines), cosines), labels))


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

# Segmentation.


def _images(rng: np.random.RandomState, *shape: int) -> tuple[np.ndarray, ...]:
    """Returns probabilities and a class label for each pixel."""
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

        # Paths from the previous frame, then paths that have emitted a label in this frame.
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
