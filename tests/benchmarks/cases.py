"""Cases of the losses that PyTorch has."""

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

# Regression.

add(
    "mse_loss",
    normals(2),
    ELEMENTS,
    line=lambda p, t: jnp.mean((p - t) ** 2),
    optax=lambda optax, p, t: optax.squared_error(p, t).mean(),
)
add("l1_loss", apart, ELEMENTS, line=lambda p, t: jnp.mean(jnp.abs(p - t)))


def _huber(p: Any, t: Any) -> Any:
    error = jnp.abs(p - t)
    return jnp.mean(jnp.where(error < 1, 0.5 * error * error, error - 0.5))


add("smooth_l1_loss", normals(2), ELEMENTS, line=_huber)
add("huber_loss", normals(2), ELEMENTS, line=_huber, optax=lambda optax, p, t: optax.huber_loss(p, t).mean())
add(
    "poisson_nll_loss",
    lambda rng, size: (normal(rng, size), rng.poisson(2, size).astype(np.float32)),
    ELEMENTS,
    line=lambda p, t: jnp.mean(jnp.exp(p) - t * p),
)
add(
    "gaussian_nll_loss",
    lambda rng, size: (normal(rng, size), normal(rng, size), uniform(rng, size)),
    ELEMENTS,
    line=lambda p, t, v: 0.5 * jnp.mean(jnp.log(jnp.maximum(v, 1e-6)) + (p - t) ** 2 / jnp.maximum(v, 1e-6)),
    moved=(0, 2),
)


# Classes.


def _cross_entropy(logits: Any, labels: Any, axis: int = -1) -> Any:
    log_probs = jax.nn.log_softmax(logits, axis)
    return -jnp.mean(jnp.take_along_axis(log_probs, jnp.expand_dims(labels, axis), axis))


add(
    "cross_entropy",
    labelled,
    {**CLASSES, "vocabulary": (512, 128_256)},
    line=_cross_entropy,
    optax=lambda optax, x, y: optax.softmax_cross_entropy_with_integer_labels(x, y).mean(),
)
add(
    "cross_entropy",
    functools.partial(labelled, axis=1),
    {"image": (8, 21, 256, 256)},
    ours=functools.partial(jaxloss.cross_entropy, axis=1),
    line=functools.partial(_cross_entropy, axis=1),
    optax=lambda optax, x, y: optax.softmax_cross_entropy_with_integer_labels(x, y, axis=1).mean(),
)


def _smoothed(logits: Any, labels: Any) -> Any:
    log_probs = jax.nn.log_softmax(logits)
    right = jnp.take_along_axis(log_probs, labels[:, None], -1)[:, 0]
    return -jnp.mean(0.9 * right + 0.1 * jnp.mean(log_probs, -1))


add(
    "cross_entropy",
    labelled,
    {"smoothed": (4096, 1000)},
    ours=functools.partial(jaxloss.cross_entropy, label_smoothing=0.1),
    line=_smoothed,
    torch=lambda torch, x, y: torch.nn.functional.cross_entropy(x, y, label_smoothing=0.1),
    optax=lambda optax, x, y: optax.softmax_cross_entropy(
        x, optax.smooth_labels(jax.nn.one_hot(y, x.shape[-1]), 0.1)
    ).mean(),
)
add(
    "cross_entropy",
    lambda rng, *shape: (normal(rng, *shape), rng.dirichlet([1] * shape[1], shape[0]).astype(np.float32)),
    {"probabilities": (4096, 1000)},
    line=lambda x, t: -jnp.mean(jnp.sum(t * jax.nn.log_softmax(x), -1)),
    optax=lambda optax, x, t: optax.softmax_cross_entropy(x, t).mean(),
)
add(
    "nll_loss",
    labelled,
    CLASSES,
    line=lambda x, y: -jnp.mean(jnp.take_along_axis(x, y[:, None], 1)),
)
add(
    "kl_div",
    lambda rng, size: (-np.abs(normal(rng, size)), uniform(rng, size)),
    ELEMENTS,
    line=lambda x, t: jnp.mean(t * (jnp.log(t) - x)),
)


def _multi_margin(scores: Any, labels: Any) -> Any:
    missing = jnp.maximum(0, 1 - jnp.take_along_axis(scores, labels[:, None], 1) + scores)
    others = labels[:, None] != jnp.arange(scores.shape[1])
    return jnp.mean(jnp.where(others, missing, 0))


add("multi_margin_loss", labelled, {**CLASSES, "large": (16_384, 1000)}, line=_multi_margin)


def _label_lists(rng: np.random.RandomState, rows: int, classes: int) -> tuple[np.ndarray, ...]:
    targets = np.full((rows, classes), -1, np.int32)
    for row in targets:
        count = rng.randint(1, max(2, classes // 10))
        row[:count] = rng.permutation(classes)[:count]
    return normal(rng, rows, classes), targets


def _multilabel_margin(scores: Any, targets: Any) -> Any:
    listed = targets >= 0
    right = jnp.any((targets[:, :, None] == jnp.arange(scores.shape[1])) & listed[:, :, None], 1)
    chosen = jnp.take_along_axis(scores, jnp.where(listed, targets, 0), 1)
    missing = jnp.maximum(0, 1 - chosen[:, :, None] + scores[:, None])
    return jnp.mean(jnp.where(listed[:, :, None] & ~right[:, None], missing, 0).sum((1, 2))) / scores.shape[1]


add(
    "multilabel_margin_loss",
    _label_lists,
    {"small": (16, 10), "cached": (512, 100), "large": (2048, 200)},
    line=_multilabel_margin,
)


# Binary targets.


def _yes_or_no(rng: np.random.RandomState, *shape: int) -> tuple[np.ndarray, ...]:
    return normal(rng, *shape), (rng.random_sample(shape) < 0.5).astype(np.float32)


def _torch_focal(torch: Any, logits: Any, targets: Any) -> Any:
    p = torch.sigmoid(logits)
    miss = p * (1 - targets) + (1 - p) * targets
    loss = torch.nn.functional.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    return torch.mean((0.25 * targets + 0.75 * (1 - targets)) * miss**2 * loss)


add(
    "binary_cross_entropy",
    lambda rng, size: (uniform(rng, size), uniform(rng, size)),
    ELEMENTS,
    line=lambda q, t: -jnp.mean(t * jnp.log(q) + (1 - t) * jnp.log1p(-q)),
)
add(
    "binary_cross_entropy_with_logits",
    _yes_or_no,
    ELEMENTS,
    line=lambda x, t: jnp.mean(softplus(x) - x * t),
    optax=lambda optax, x, t: optax.sigmoid_binary_cross_entropy(x, t).mean(),
)
add(
    "sigmoid_focal_loss",
    _yes_or_no,
    ELEMENTS,
    line=lambda x, t: jnp.mean(
        (0.25 * t + 0.75 * (1 - t))
        * (jax.nn.sigmoid(x) * (1 - t) + jax.nn.sigmoid(-x) * t) ** 2
        * (softplus(x) - x * t)
    ),
    torch=_torch_focal,
    optax=lambda optax, x, t: optax.sigmoid_focal_loss(x, t, alpha=0.25).mean(),
)
add(
    "soft_margin_loss",
    lambda rng, size: (normal(rng, size), signs(rng, size)),
    ELEMENTS,
    line=lambda x, t: jnp.mean(softplus(-t * x)),
)
add(
    "multilabel_soft_margin_loss",
    _yes_or_no,
    {"small": (64, 10), "cached": (10_000, 100), "large": (160_000, 100)},
    line=lambda x, t: jnp.mean(softplus(x) - x * t),
)


# Embeddings.

VECTORS = {"small": (64, 32), "cached": (2048, 128), "large": (8192, 512)}
TRIPLETS = {**VECTORS, "large": (8192, 256)}


def _pairs(rng: np.random.RandomState, rows: int, width: int) -> tuple[np.ndarray, ...]:
    return normal(rng, rows, width), normal(rng, rows, width), signs(rng, rows)


def _cosine(a: Any, b: Any) -> Any:
    return jnp.sum(a * b, -1) / jnp.sqrt(jnp.sum(a * a, -1) * jnp.sum(b * b, -1))


def _cosine_embedding(a: Any, b: Any, t: Any) -> Any:
    return jnp.mean(jnp.where(t > 0, 1 - _cosine(a, b), jnp.maximum(_cosine(a, b), 0)))


def _distance(a: Any, b: Any) -> Any:
    return jnp.linalg.norm(a - b + 1e-6, axis=-1)


def _triplet(a: Any, p: Any, n: Any) -> Any:
    return jnp.mean(jnp.maximum(0, 1 + _distance(a, p) - _distance(a, n)))


add(
    "hinge_embedding_loss",
    lambda rng, size: (np.abs(normal(rng, size)), signs(rng, size)),
    ELEMENTS,
    line=lambda d, t: jnp.mean(jnp.where(t > 0, d, jnp.maximum(0, 1 - d))),
)


add(
    "margin_ranking_loss",
    lambda rng, size: (*apart(rng, size), signs(rng, size)),
    ELEMENTS,
    line=lambda a, b, t: jnp.mean(jnp.maximum(0, -t * (a - b))),
    moved=(0, 1),
)
add("cosine_embedding_loss", _pairs, VECTORS, line=_cosine_embedding, moved=(0, 1))
add(
    "triplet_margin_loss",
    normals(3),
    TRIPLETS,
    line=_triplet,
    optax=lambda optax, *arrays: optax.losses.triplet_margin_loss(*arrays).mean(),
    moved=(0, 1, 2),
)
add("triplet_margin_with_distance_loss", normals(3), TRIPLETS, line=_triplet, moved=(0, 1, 2))
add(
    "pairwise_distance",
    normals(2),
    VECTORS,
    ours=lambda a, b: jnp.mean(jaxloss.pairwise_distance(a, b)),
    line=lambda a, b: jnp.mean(_distance(a, b)),
    torch=lambda torch, a, b: torch.nn.functional.pairwise_distance(a, b).mean(),
    moved=(0, 1),
)
add(
    "cosine_similarity",
    normals(2),
    VECTORS,
    ours=lambda a, b: jnp.mean(jaxloss.cosine_similarity(a, b)),
    line=lambda a, b: jnp.mean(_cosine(a, b)),
    torch=lambda torch, a, b: torch.nn.functional.cosine_similarity(a, b, -1).mean(),
    optax=lambda optax, a, b: optax.cosine_similarity(a, b).mean(),
    moved=(0, 1),
)


# Sequences and vocabularies. PyTorch's gradient of ctc_loss is right only after log_softmax.


def _sequences(
    rng: np.random.RandomState, frames: int, samples: int, classes: int, labels: int
) -> tuple[np.ndarray, ...]:
    lengths = np.full(samples, frames, np.int32), np.full(samples, labels, np.int32)
    targets = rng.randint(1, classes, (samples, labels)).astype(np.int32)
    return normal(rng, frames, samples, classes), targets, *lengths


def _padding(size: int, lengths: Any) -> Any:
    return (jnp.arange(size) >= lengths[:, None]).astype(jnp.float32)


def _optax_ctc(optax: Any, logits: Any, targets: Any, frames: Any, labels: Any) -> Any:
    paddings = _padding(logits.shape[0], frames), _padding(targets.shape[1], labels)
    return jnp.mean(optax.ctc_loss(logits.swapaxes(0, 1), paddings[0], targets, paddings[1]) / labels)


add(
    "ctc_loss",
    _sequences,
    {"small": (20, 4, 20, 5), "cached": (200, 32, 80, 40), "large": (1000, 16, 80, 100)},
    ours=lambda x, *others: jaxloss.ctc_loss(jax.nn.log_softmax(x), *others),
    line=None,
    torch=lambda torch, x, *others: torch.nn.functional.ctc_loss(x.log_softmax(-1), *others),
    optax=_optax_ctc,
)


def _cutoffs(classes: int) -> tuple[int, int]:
    return classes // 20, classes // 4


def _adaptive(rng: np.random.RandomState, rows: int, width: int, classes: int) -> tuple[np.ndarray, ...]:
    first, second = _cutoffs(classes)
    shapes = [(width, first + 2), (width, width // 4), (width // 4, second - first)]
    shapes += [(width, width // 16), (width // 16, classes - second)]
    labels = (classes * rng.random_sample(rows) ** 3).astype(np.int32)
    return normal(rng, rows, width), labels, *(normal(rng, *shape) / math.sqrt(shape[0]) for shape in shapes)


def _classes(head: Any, tail: tuple[Any, ...]) -> int:
    return head.shape[1] - 2 + tail[1].shape[1] + tail[3].shape[1]


def _adaptive_log_softmax(hidden: Any, labels: Any, head: Any, *tail: Any) -> Any:
    layers = [{"down": down, "up": up} for down, up in zip(tail[::2], tail[1::2], strict=True)]
    params = {"head": {"kernel": head}, "tail": layers}
    return jaxloss.adaptive_log_softmax(hidden, params, labels, cutoffs=_cutoffs(_classes(head, tail)))


@functools.cache
def _adaptive_module(torch: Any, width: int, classes: int) -> Any:
    return torch.nn.AdaptiveLogSoftmaxWithLoss(width, classes, list(_cutoffs(classes)), device="meta")


def _torch_adaptive_log_softmax(torch: Any, hidden: Any, labels: Any, head: Any, *tail: Any) -> Any:
    module = _adaptive_module(torch, head.shape[0], _classes(head, tail))
    names = ["head.weight", "tail.0.0.weight", "tail.0.1.weight", "tail.1.0.weight", "tail.1.1.weight"]
    weights = {name: kernel.t() for name, kernel in zip(names, (head, *tail), strict=True)}
    return torch.func.functional_call(module, weights, (hidden, labels)).loss


add(
    "adaptive_log_softmax",
    _adaptive,
    {"small": (32, 16, 1000), "cached": (512, 64, 20_000), "large": (2048, 256, 100_000)},
    ours=_adaptive_log_softmax,
    line=None,
    torch=_torch_adaptive_log_softmax,
    moved=(0, 2, 3, 4, 5, 6),
)


add(
    "linear_cross_entropy",
    lambda rng, rows, width, classes: (
        normal(rng, rows, width),
        normal(rng, width, classes) / math.sqrt(width),
        rng.randint(0, classes, rows).astype(np.int32),
    ),
    {"small": (32, 16, 1000), "cached": (512, 64, 20_000), "large": (512, 512, 32_000)},
    line=lambda hidden, kernel, labels: (
        -jnp.mean(jnp.take_along_axis(jax.nn.log_softmax(hidden @ kernel), labels[:, None], -1))
    ),
    torch=lambda torch, hidden, kernel, labels: torch.nn.functional.cross_entropy(hidden @ kernel, labels),
    moved=(0, 1),
)
