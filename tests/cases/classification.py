"""Entries of the classification losses, `kl_div` and the margin losses over classes."""

from collections.abc import Callable

import numpy as np

from tests.case import Arrays, add


def classes(
    *shape: int, axis: int = -1, ignored: int | None = None, weight: bool = False, soft: bool = False
) -> Callable[[np.random.RandomState], Arrays]:
    def make(rng: np.random.RandomState) -> Arrays:
        scores = rng.randn(*shape) * 2
        count = shape[axis]
        if soft:
            targets = rng.rand(*shape)
            targets /= targets.sum(axis, keepdims=True)
        else:
            targets = np.asarray(rng.randint(0, count, np.delete(shape, axis)))
        if ignored is not None:
            targets.ravel()[::3] = ignored
        weights = {"weight": rng.rand(count) + 0.1} if weight else {}
        return {"logits": scores, "targets": targets, **weights}

    return make


def _as_log_probs(
    make: Callable[[np.random.RandomState], Arrays],
) -> Callable[[np.random.RandomState], Arrays]:
    def made(rng: np.random.RandomState) -> Arrays:
        arrays = make(rng)
        return {"log_probs": -np.abs(arrays["logits"]), **{k: v for k, v in arrays.items() if k != "logits"}}

    return made


for _loss, _wrap in (("cross_entropy", lambda make: make), ("nll_loss", _as_log_probs)):
    add(_loss, "rows", _wrap(classes(5, 6)))
    add(_loss, "one", _wrap(classes(6)))
    add(_loss, "sequence", _wrap(classes(4, 3, 6)))
    add(_loss, "image", _wrap(classes(4, 6, 2, 3, axis=1)), axis=1)
    add(_loss, "weight", _wrap(classes(5, 6, weight=True)))
    add(_loss, "ignored", _wrap(classes(7, 6, ignored=-100)))
    add(_loss, "ignored-class", _wrap(classes(7, 6, ignored=2)), ignore_index=2)
    add(_loss, "all-ignored", _wrap(lambda rng: {"logits": rng.randn(2, 3), "targets": np.full(2, -100)}))
    add(
        _loss,
        "image-weight-ignored",
        _wrap(classes(4, 6, 2, axis=1, ignored=255, weight=True)),
        axis=1,
        ignore_index=255,
    )
add("cross_entropy", "smoothed", classes(5, 6), label_smoothing=0.1)
add("cross_entropy", "smoothed-weight-ignored", classes(7, 6, ignored=-100, weight=True), label_smoothing=0.3)
add("cross_entropy", "smoothed-fully", classes(5, 6), label_smoothing=1.0)
add("cross_entropy", "image-smoothed", classes(4, 6, 2, axis=1, weight=True), axis=1, label_smoothing=0.2)
add("cross_entropy", "probabilities", classes(5, 6, soft=True))
add("cross_entropy", "probabilities-one", classes(6, soft=True))
add("cross_entropy", "probabilities-image", classes(4, 6, 3, axis=1, soft=True), axis=1)
add(
    "cross_entropy",
    "probabilities-weight-smoothed",
    classes(5, 6, soft=True, weight=True),
    label_smoothing=0.2,
)


add("cross_entropy", "z-loss-cap", classes(5, 6), z_loss=0.1, soft_cap=2.0)
add("cross_entropy", "probabilities-z-loss", classes(5, 6, soft=True), z_loss=0.1)


def _extreme_logits(rng: np.random.RandomState) -> Arrays:
    logits = np.array([[1e4, -1e4, 0.0], [-np.inf, 0.0, 1.0], [1e30, 0.0, -1e30], [50.0, 50.0, 50.0]])
    return {"logits": logits, "targets": np.array([0, 2, 0, 1])}


add("cross_entropy", "extreme", _extreme_logits, smooth=False)
add(
    "cross_entropy",
    "minus-infinity-target",
    lambda rng: {"logits": np.array([[0.0, -np.inf]]), "targets": np.array([1])},
    smooth=False,
)
add(
    "nll_loss",
    "minus-infinity",
    lambda rng: {"log_probs": np.array([[0.0, -np.inf], [-np.inf, 0.0]]), "targets": np.array([0, 0])},
    smooth=False,
)


def _distributions(*shape: int, log_target: bool = False) -> Callable[[np.random.RandomState], Arrays]:
    def make(rng: np.random.RandomState) -> Arrays:
        probs = rng.uniform(0.05, 1, shape)
        return {"log_probs": -rng.rand(*shape), "targets": np.log(probs) if log_target else probs}

    return make


add("kl_div", "matrix", _distributions(6, 3))
add("kl_div", "scalar", _distributions())
add("kl_div", "logarithms", _distributions(4, 2, 3, log_target=True), log_target=True)
add(
    "kl_div",
    "zeros",
    lambda rng: {"log_probs": np.array([0.0, -1.0, -np.inf]), "targets": np.array([0.0, 0.0, 0.5])},
    smooth=False,
    gradients=("log_probs",),
)


def _scored(*shape: int, weight: bool = False) -> Callable[[np.random.RandomState], Arrays]:
    def make(rng: np.random.RandomState) -> Arrays:
        arrays = classes(*shape, weight=weight)(rng)
        return {"scores": arrays.pop("logits") / 2, **arrays}

    return make


add("multi_margin_loss", "rows", _scored(5, 6))
add("multi_margin_loss", "one", _scored(6))
add("multi_margin_loss", "squares", _scored(5, 6), p=2)
add("multi_margin_loss", "margin-weight", _scored(5, 6, weight=True), margin=0.5)
add("multi_margin_loss", "margin-weight-squares", _scored(4, 5, weight=True), p=2, margin=2.0)
for _power in (1, 2):
    add(
        "multi_margin_loss",
        f"ties-{_power}",
        lambda rng: {"scores": np.array([[1.0, 0, 2], [0, 0, 0], [0, 1, 0]]), "targets": np.array([0, 1, 1])},
        smooth=False,
        p=_power,
    )


def _listed(*rows: list[int]) -> Callable[[np.random.RandomState], Arrays]:
    return lambda rng: {"scores": rng.randn(*np.shape(rows)), "targets": np.array(rows)}


add("multilabel_margin_loss", "rows", _listed([2, 0, -1, 1], [3, -1, -1, -1], [1, 2, 0, -1]))
add("multilabel_margin_loss", "one", lambda rng: {"scores": rng.randn(5), "targets": [3, 1, -1, 0, 0]})
add("multilabel_margin_loss", "none-and-all", _listed([-1, 0, 1, 2], [2, 0, 1, 3], [3, 2, -1, -1]))
add("multilabel_margin_loss", "twice", _listed([2, 2, 0, 2], [1, 3, 1, -1]))
add(
    "multilabel_margin_loss",
    "ties",
    lambda rng: {
        "scores": np.array([[1.0, 0, 2, 1], [0, 1, 1, 0]]),
        "targets": [[0, 2, -1, 3], [1, -1, 0, 0]],
    },
    smooth=False,
)
