"""Contrastive losses: formulas, entries and certificate rows."""

from collections.abc import Callable
from decimal import Decimal
from typing import Any

import numpy as np

from tests.case import Arrays, add
from tests.formulas import beyond_pytorch, exp, log, total
from tests.situation import INF, at, row


def unit(vectors, normalize=True):
    if not normalize:
        return vectors
    lengths = [max((v @ v).sqrt(), Decimal("1e-12")) for v in vectors]
    return np.array([v / x for v, x in zip(vectors, lengths, strict=True)])


def neg_log_softmax(right, scores):
    """Returns -log_softmax of one of the scores."""
    return log(total(map(exp, scores))) - right


@beyond_pytorch(None)
def info_nce_loss(embeddings, targets, negatives=None, temperature=0.1, symmetric=False, normalize=True):
    x, y = unit(embeddings, normalize), unit(targets, normalize)
    z = x @ y.T / Decimal(temperature)
    if negatives is not None:
        others = negatives if negatives.ndim == 3 else np.broadcast_to(negatives, (len(x), *negatives.shape))
        scores = [unit(n, normalize) @ v / Decimal(temperature) for v, n in zip(x, others, strict=True)]
        return np.array([neg_log_softmax(z[i, i], [z[i, i], *scores[i]]) for i in range(len(x))], object)
    losses = [neg_log_softmax(z[i, i], z[i]) for i in range(len(x))]
    if symmetric:
        losses = [(loss + neg_log_softmax(z[i, i], z[:, i])) / 2 for i, loss in enumerate(losses)]
    return np.array(losses, object)


@beyond_pytorch(None)
def clip_loss(embeddings, targets, logit_scale, logit_bias=0, normalize=False):
    temperature = 1 / Decimal(np.asarray(logit_scale, object).item())
    return info_nce_loss(embeddings, targets, None, temperature, symmetric=True, normalize=normalize)


@beyond_pytorch(None)
def siglip_loss(embeddings, targets, logit_scale, logit_bias, normalize=False):
    scale, bias = (Decimal(np.asarray(option, object).item()) for option in (logit_scale, logit_bias))
    z = scale * (unit(embeddings, normalize) @ unit(targets, normalize).T) + bias
    right = 2 * np.eye(len(z), dtype=int) - 1
    return np.array([total(log(1 + exp(-logit)) for logit in row) for row in right * z], object)


@beyond_pytorch(None)
def nt_xent_loss(embeddings, targets, temperature=0.5, normalize=True):
    size = len(embeddings)
    labels = np.array([*range(size)] * 2)
    both = np.concatenate([embeddings, targets])
    losses, _ = supervised_contrastive_loss(both, labels, temperature, normalize)
    return (losses[:size] + losses[size:]) / 2


def supervised_contrastive_loss(embeddings, targets, temperature=0.1, normalize=True):
    x, size = unit(embeddings, normalize), len(embeddings)
    z = x @ x.T / Decimal(temperature)
    losses, weight = np.full(size, Decimal(0)), np.zeros(size, int)
    for i in range(size):
        others = [j for j in range(size) if j != i]
        positives = [p for p in others if targets[p] == targets[i]]
        if positives:
            weight[i] = 1
            losses[i] = total(neg_log_softmax(z[i, p], z[i, others]) for p in positives) / len(positives)
    return losses, weight


beyond_pytorch(None)(supervised_contrastive_loss)


def _views(*shape: int) -> Callable[[np.random.RandomState], Arrays]:
    return lambda rng: {"embeddings": rng.randn(*shape), "targets": rng.randn(*shape)}


def _with_negatives(*shape: int) -> Callable[[np.random.RandomState], Arrays]:
    return lambda rng: {**_views(4, 3)(rng), "negatives": rng.randn(*shape)}


add("info_nce_loss", "matrix", _views(4, 3), temperature=0.5)
add("info_nce_loss", "symmetric", _views(4, 3), symmetric=True, normalize=False)
add("info_nce_loss", "negatives", _with_negatives(5, 3), normalize=False)
add("info_nce_loss", "own-negatives", _with_negatives(4, 2, 3))
add("clip_loss", "matrix", _views(4, 3), logit_scale=2.5)
add(
    "clip_loss",
    "learned",
    lambda rng: {**_views(4, 3)(rng), "logit_scale": np.array(2.0), "logit_bias": np.array(-3.0)},
    normalize=True,
)
add("siglip_loss", "matrix", _views(4, 3), logit_scale=2.5, logit_bias=-1.0)
add(
    "siglip_loss",
    "learned",
    lambda rng: {**_views(4, 3)(rng), "logit_scale": np.array(2.0), "logit_bias": np.array(-3.0)},
    normalize=True,
)
add("nt_xent_loss", "matrix", _views(4, 3))
add(
    "supervised_contrastive_loss",
    "matrix",
    lambda rng: {"embeddings": rng.randn(6, 3), "targets": np.array([0, 1, 0, 7, 1, 1])},
    temperature=0.5,
)

_ZEROS, _X, _Y = (
    [[0.0, 0.0]] * 3,
    [[0.5, -1.25], [2.0, 1.0], [-1.5, 0.25]],
    [[1.0, 0.75], [-0.5, 2.0], [1.5, -1.0]],
)
_UP, _DOWN, _FAR = ([[number, 0.5], *_X[1:]] for number in (INF, -INF, 1e200))
_AT_ZERO = {
    "documented": "zero vector stays zero, and all its derivatives are 0",
    "convention": {"gradient": 0, "jvp": 0, "HVP": 0},
}
_INFINITE = {"documented": "An infinite embedding gives NaN"}


def extremes(
    loss: str,
    options: dict[str, Any],
    moved: str,
    targets: Any,
    *,
    same_targets: Any,
    zero_targets: Any,
    infinite: Any,
) -> None:
    """Adds the certificate row of a loss that compares the rows of a batch."""
    row(
        loss,
        "embeddings targets",
        moved,
        options,
        zeros=[at(_ZEROS, zero_targets, **_AT_ZERO)],
        plus=[at(*infinite(_UP), **_INFINITE)],
        minus=[at(*infinite(_DOWN), **_INFINITE)],
        far=[(_FAR, targets), ([[1e-200, 0.0], *_X[1:]], targets)],
        same=[(_X[:1] * 3, same_targets)],
        half=[(_X, targets)],
    )


for _loss, _options in (
    ("info_nce_loss", {"temperature": 0.5}),
    ("nt_xent_loss", {"temperature": 0.5}),
    ("clip_loss", {"logit_scale": 2.0, "normalize": True}),
):
    extremes(
        _loss,
        _options,
        "embeddings targets",
        _Y,
        same_targets=_X[:1] * 3,
        zero_targets=_ZEROS,
        infinite=lambda vectors: (_Y, vectors),
    )
extremes(
    "siglip_loss",
    {"logit_scale": 2.0, "logit_bias": -1.0, "normalize": True},
    "embeddings targets",
    _Y,
    same_targets=_X[:1] * 3,
    zero_targets=_ZEROS,
    infinite=lambda vectors: (vectors, vectors),  # with one infinite view, other rows are finite
)
extremes(
    "supervised_contrastive_loss",
    {"temperature": 0.5},
    "embeddings",
    [0, 1, 0],
    same_targets=[0, 0, 0],
    zero_targets=[0, 0, 1],
    infinite=lambda vectors: (vectors, [0, 1, 0]),
)
