"""Large vocabularies."""

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
