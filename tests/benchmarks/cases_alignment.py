"""Cases of preference, policy, ranking, sparse, adversarial, ordinal and survival losses."""

import jax
import jax.numpy as jnp
import numpy as np

from tests.benchmarks.case import CLASSES, ELEMENTS, add, labelled, normal, normals, softplus, uniform

# Preferences and policies.


def negative(rng: np.random.RandomState, *shape: int) -> np.ndarray:
    """Returns log-probabilities."""
    return -5 * uniform(rng, *shape)


def _ratio(log_probs, old):
    return jnp.exp(log_probs - old)


add(
    "dpo_loss",
    lambda rng, size: tuple(negative(rng, size) for _ in range(4)),
    ELEMENTS,
    line=lambda c, r, fc, fr: jnp.mean(softplus(-0.1 * (c - fc - (r - fr)))),
    moved=(0, 1),
)
add(
    "simpo_loss",
    lambda rng, size: (negative(rng, size), negative(rng, size)),
    ELEMENTS,
    line=lambda c, r: jnp.mean(softplus(1 - 2 * (c - r))),
    moved=(0, 1),
)


def _orpo(c, r):
    odds = c - r - jnp.log1p(-jnp.exp(c)) + jnp.log1p(-jnp.exp(r))
    return jnp.mean(0.1 * softplus(-odds) - c)


add(
    "orpo_loss",
    lambda rng, size: (negative(rng, size), negative(rng, size)),
    ELEMENTS,
    line=_orpo,
    moved=(0, 1),
)
add(
    "kto_loss",
    lambda rng, size: (negative(rng, size), rng.randint(0, 2, size).astype(np.float32), negative(rng, size)),
    ELEMENTS,
    line=lambda x, t, ref: jnp.mean(jax.nn.sigmoid((1 - 2 * t) * 0.1 * (x - ref))),
)
add(
    "bradley_terry_loss",
    normals(2),
    ELEMENTS,
    line=lambda c, r: jnp.mean(softplus(r - c)),
    moved=(0, 1),
)
add(
    "ppo_loss",
    lambda rng, size: (negative(rng, size), normal(rng, size), negative(rng, size)),
    ELEMENTS,
    line=lambda x, a, old: -jnp.mean(jnp.minimum(_ratio(x, old) * a, jnp.clip(_ratio(x, old), 0.8, 1.2) * a)),
)
add(
    "grpo_loss",
    lambda rng, *shape: (negative(rng, *shape), normal(rng, shape[0]), negative(rng, *shape)),
    {"small": (8, 128), "cached": (512, 2048), "large": (2048, 8192)},
    line=lambda x, a, old: (
        -jnp.mean(jnp.minimum(_ratio(x, old) * a[:, None], jnp.clip(_ratio(x, old), 0.8, 1.2) * a[:, None]))
    ),
)

# Sparse probabilities.


def _sparsemax(x, y):
    ordered, ranks = -jnp.sort(-x), jnp.arange(1, x.shape[1] + 1)
    thresholds = (jnp.cumsum(ordered, 1) - 1) / ranks
    count = jnp.sum(ordered > thresholds, 1, keepdims=True)
    threshold = jnp.take_along_axis(thresholds, count - 1, 1)
    support = jnp.where(x > threshold, x**2 - threshold**2, 0)
    return jnp.mean((jnp.sum(support, 1) + 1) / 2 - jnp.take_along_axis(x, y[:, None], 1)[:, 0])


add("sparsemax_loss", labelled, CLASSES, line=_sparsemax)
add("entmax15_loss", labelled, CLASSES, line=None)

# Ranking.


def _relevant(rng, *shape):
    return normal(rng, *shape), rng.randint(0, 5, shape).astype(np.float32)


def _pairwise(s, y):
    is_pair = y[:, :, None] > y[:, None]
    return jnp.sum(jnp.where(is_pair, softplus(s[:, None] - s[:, :, None]), 0)) / jnp.sum(is_pair)


def _ndcg(s, y):
    gains, ranks = 2**y - 1, 0.5 + jnp.sum(jax.nn.sigmoid(s[:, None] - s[:, :, None]), -1)
    places = jnp.arange(1, s.shape[1] + 1)[None]
    ideal = jnp.sum(-jnp.sort(-gains) / jnp.log2(1 + places), -1)
    return jnp.mean(1 - jnp.sum(gains / jnp.log2(1 + ranks), -1) / ideal)


def _listmle(s, y):
    ordered = jnp.take_along_axis(s, jnp.argsort(-y, stable=True), -1)
    return jnp.mean(jnp.sum(jax.lax.cumlogsumexp(ordered, 1, reverse=True) - ordered, -1))


_LISTS = {"small": (8, 32), "cached": (64, 256), "large": (8, 4096)}
add(
    "softmax_ranking_loss",
    _relevant,
    _LISTS,
    line=lambda s, y: -jnp.mean(jnp.sum(y * jax.nn.log_softmax(s), -1)),
)
add("listmle_loss", _relevant, _LISTS, line=_listmle)
add("pairwise_logistic_loss", _relevant, _LISTS, line=_pairwise)
add("approx_ndcg_loss", _relevant, _LISTS, line=_ndcg)

# Adversarial and ordinal losses.

add(
    "discriminator_loss",
    normals(2),
    ELEMENTS,
    line=lambda real, fake: jnp.mean(softplus(-real) + softplus(fake)),
    moved=(0, 1),
)
add("generator_loss", normals(1), ELEMENTS, line=lambda fake: jnp.mean(softplus(-fake)))


def _ordered(rng, rows, count):
    return normal(rng, rows, count - 1), rng.randint(0, count, rows).astype(np.int32)


def _coral(x, t):
    above = jnp.arange(x.shape[1])[None] < t[:, None]
    return jnp.mean(jnp.sum(softplus(jnp.where(above, -x, x)), -1))


def _corn(x, t):
    place, t = jnp.arange(x.shape[1])[None], t[:, None]
    answers = softplus(jnp.where(place < t, -x, x))
    return jnp.sum(jnp.where(place <= t, answers, 0)) / jnp.sum(jnp.minimum(t + 1, x.shape[1]))


_ORDERED = {"small": (64, 10), "cached": (100_000, 10), "large": (1_600_000, 10)}
add("coral_loss", _ordered, _ORDERED, line=_coral)
add("corn_loss", _ordered, _ORDERED, line=_corn)


# Survival.


def _cox(s, times, events):
    order = jnp.argsort(-times)
    gaps = jax.lax.cumlogsumexp(s[order]) - s[order]
    return jnp.sum(jnp.where(events[order], gaps, 0)) / jnp.sum(events)  # no two times are equal


add(
    "cox_loss",
    lambda rng, size: (normal(rng, size), rng.permutation(size).astype(np.float32), rng.rand(size) < 0.5),
    {"small": (100,), "cached": (10_000,), "large": (1_000_000,)},
    line=_cox,
)
