"""Entries of the losses for large vocabularies."""

from collections.abc import Callable

import numpy as np

from tests.case import Arrays, add


def _adaptive(
    samples: int | None, features: int, edges: tuple[int, ...], widths: tuple[int, ...], bias: bool = False
) -> Callable[[np.random.RandomState], Arrays]:
    def make(rng: np.random.RandomState) -> Arrays:
        head_size = edges[0] + len(widths)
        rows = () if samples is None else (samples,)
        arrays = {
            "hidden": rng.randn(*rows, features) * 2,
            "targets": rng.randint(0, edges[-1], rows),
            "params.head.kernel": rng.randn(features, head_size),
        }
        if bias:
            arrays["params.head.bias"] = rng.randn(head_size)
        for index, (width, size) in enumerate(zip(widths, np.diff(edges), strict=True)):
            arrays[f"params.tail.{index}.down"] = rng.randn(features, width)
            arrays[f"params.tail.{index}.up"] = rng.randn(width, size)
        return arrays

    return make


def _rows_of_one_tail(rng: np.random.RandomState) -> Arrays:
    return {**_adaptive(3, 4, (2, 5, 9), (2, 1))(rng), "targets": np.array([3, 4, 2])}


add("adaptive_log_softmax", "one-tail", _adaptive(5, 4, (3, 8), (1,)), cutoffs=(3,))
add("adaptive_log_softmax", "tails-bias", _adaptive(7, 4, (1, 3, 9), (2, 1), bias=True), cutoffs=(1, 3))
add("adaptive_log_softmax", "one", _adaptive(None, 4, (2, 5, 9), (2, 1)), cutoffs=(2, 5))
add("adaptive_log_softmax", "rows-of-one-tail", _rows_of_one_tail, cutoffs=(2, 5))


def _linear(
    *shape: int, classes: int, probs: bool = False, bias: bool = False, weight: bool = False
) -> Callable[[np.random.RandomState], Arrays]:
    def make(rng: np.random.RandomState) -> Arrays:
        *positions, features = shape
        targets = rng.rand(*positions, classes) if probs else rng.randint(0, classes, positions)
        arrays = {
            "hidden": rng.randn(*shape),
            "kernel": rng.randn(features, classes),
            "targets": targets / targets.sum(-1, keepdims=True) if probs else np.asarray(targets),
        }
        if bias:
            arrays["bias"] = rng.randn(classes)
        if weight:
            arrays["weight"] = rng.uniform(0.2, 2, classes)
        return arrays

    return make


def _ignored(rng: np.random.RandomState) -> Arrays:
    return {**_linear(6, 4, classes=10)(rng), "targets": np.array([3, -100, 9, 0, -100, 5])}


add("linear_cross_entropy", "rows", _linear(6, 4, classes=10))
add("linear_cross_entropy", "one", _linear(4, classes=11, bias=True))
add("linear_cross_entropy", "ignored", _ignored)
add("linear_cross_entropy", "weight", _linear(5, 3, classes=12, bias=True, weight=True))
add("linear_cross_entropy", "smoothed", _linear(5, 3, classes=12, weight=True), label_smoothing=0.2)
add(
    "linear_cross_entropy",
    "sequences-z-cap",
    _linear(2, 3, 4, classes=8, bias=True),
    z_loss=0.1,
    soft_cap=30.0,
)
add("linear_cross_entropy", "probabilities", _linear(5, 3, classes=7, probs=True, bias=True))
add(
    "linear_cross_entropy",
    "probabilities-everything",
    _linear(4, 2, classes=9, probs=True, weight=True),
    label_smoothing=0.1,
    z_loss=0.2,
    soft_cap=3.0,
)
