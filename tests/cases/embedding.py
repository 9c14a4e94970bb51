"""Entries of the losses on embeddings, distances and pairs of scores."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from tests.case import Arrays, add


def _signs(rng: np.random.RandomState, *shape: int) -> np.ndarray:
    return rng.choice([-1.0, 1.0], shape)


def _distances(*shape: int) -> Callable[[np.random.RandomState], Arrays]:
    return lambda rng: {"distances": rng.randn(*shape), "targets": _signs(rng, *shape)}


def _scores(*shape: int) -> Callable[[np.random.RandomState], Arrays]:
    return lambda rng: {
        "scores1": rng.randn(*shape),
        "scores2": rng.randn(*shape),
        "targets": _signs(rng, *shape),
    }


def _pairs(*shape: int) -> Callable[[np.random.RandomState], Arrays]:
    return lambda rng: {
        "embeddings1": rng.randn(*shape),
        "embeddings2": rng.randn(*shape),
        "targets": _signs(rng, *shape[:-1]),
    }


def _triplets(*shape: int) -> Callable[[np.random.RandomState], Arrays]:
    # Small distances, so that the loss, a difference of distances, is not much smaller than they are.
    return lambda rng: {name: 0.2 * rng.randn(*shape) for name in ("anchors", "positives", "negatives")}


def _add_distances(situation: str, make: Callable[[np.random.RandomState], Arrays], **options: Any) -> None:
    add("hinge_embedding_loss", situation, make, gradients=("distances",), **options)


def _add_scores(situation: str, make: Callable[[np.random.RandomState], Arrays], **options: Any) -> None:
    add("margin_ranking_loss", situation, make, gradients=("scores1", "scores2"), **options)


def _add_pairs(situation: str, make: Callable[[np.random.RandomState], Arrays], **options: Any) -> None:
    add("cosine_embedding_loss", situation, make, gradients=("embeddings1", "embeddings2"), **options)


_add_distances("matrix", _distances(6, 3))
_add_distances("scalar", _distances())
_add_distances("margin", _distances(8), margin=2.5)
_add_distances(
    "ties",
    lambda rng: {
        "distances": np.array([1.0, 1.0, 0.0, 0.0, 5.0, -5.0, np.inf, np.inf]),
        "targets": np.array([1, -1, 1, -1, -1, -1, 1, -1]),
    },
    smooth=False,
)

_add_scores("matrix", _scores(6, 3))
_add_scores("scalar", _scores())
_add_scores("margin", _scores(8), margin=0.5)
_add_scores("negative-margin", _scores(8), margin=-0.5)
_add_scores(
    "ties",
    lambda rng: {
        "scores1": np.array([1.0, 1.0, 2.0, 1.0, 1e30]),
        "scores2": np.array([1.0, 1.0, 1.0, 2.0, -1e30]),
        "targets": np.array([1.0, -1.0, 1.0, 1.0, -1.0]),
    },
    smooth=False,
)
_add_scores(
    "margin-ties",
    lambda rng: {
        "scores1": np.array([1.5, 1.0, np.inf]),
        "scores2": np.array([1.0, 1.5, 0.0]),
        "targets": np.array([1, -1, 1]),
    },
    smooth=False,
    margin=0.5,
)

_add_pairs("rows", _pairs(6, 4))
_add_pairs("one", _pairs(5))
_add_pairs("margin", _pairs(8, 3), margin=0.3)
_add_pairs("negative-margin", _pairs(8, 3), margin=-0.3)
_add_pairs(
    "small",
    lambda rng: {
        "embeddings1": np.array([[6e-7, 8e-7], [6e-7, 8e-7], [1e-6, 0.0]]),
        "embeddings2": np.array([[3.0, 4.0], [3.0, 4.0], [1e-6, 1e-6]]),
        "targets": np.array([1, -1, -1]),
    },
    smooth=False,
)
_add_pairs(
    "zeros-and-right-angles",
    lambda rng: {
        "embeddings1": np.array([[0.0, 0.0], [0.0, 0.0], [1.0, 0.0], [1.0, 0.0]]),
        "embeddings2": np.array([[3.0, 4.0], [-3.0, 4.0], [0.0, 2.0], [0.0, 0.0]]),
        "targets": np.array([1, -1, -1, -1]),
    },
    smooth=False,
)

for _loss in ("triplet_margin_loss", "triplet_margin_with_distance_loss"):
    add(_loss, "rows", _triplets(6, 4))
    add(_loss, "one", _triplets(5))
    add(_loss, "sequence-margin", _triplets(4, 2, 3), margin=0.1)
    add(_loss, "swap", _triplets(8, 2), swap=True)
for _p in (1.0, 1.5, 3.0, float("inf")):
    add("triplet_margin_loss", f"p-{_p:g}", _triplets(4, 3), p=_p)
add("triplet_margin_loss", "everything", _triplets(8, 3), p=4.0, eps=0.1, margin=0.1, swap=True)


def _tied_triplets(rng: np.random.RandomState) -> Arrays:
    return {
        "anchors": np.array([[0.0, 0.0], [0.0, 0.0], [1.0, 0.0], [2.0, 2.0]]),
        "positives": np.array([[0.0, 0.0], [1.0, 0.0], [1.0, 0.0], [2.0, 2.0]]),
        "negatives": np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 0.0], [2.0, 2.0]]),
    }


for _p in (1.0, 2.0, 3.0, float("inf")):
    add("triplet_margin_loss", f"ties-p-{_p:g}", _tied_triplets, smooth=False, p=_p, eps=0.0)
add("triplet_margin_loss", "ties-swap", _tied_triplets, smooth=False, eps=0.0, swap=True)


class _SquaredDistance(NamedTuple):
    """A distance that works on JAX arrays and on torch tensors."""

    def __call__(self, x: Any, y: Any) -> Any:
        return ((x - y) ** 2).sum(-1)


add(
    "triplet_margin_with_distance_loss",
    "squared",
    _triplets(6, 4),
    distance_function=_SquaredDistance(),
    margin=0.1,
    swap=True,
)
