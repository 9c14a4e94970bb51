"""Entries of the CTC loss."""

from collections.abc import Callable

import numpy as np

from tests.case import Arrays, add


def _sequences(
    frames: int,
    targets: list[list[int]],
    target_lengths: list[int],
    *,
    classes: int = 5,
    input_lengths: list[int] | None = None,
) -> Callable[[np.random.RandomState], Arrays]:
    def make(rng: np.random.RandomState) -> Arrays:
        logits = rng.randn(frames, len(targets), classes) * 2
        return {
            "log_probs": logits - np.log(np.exp(logits).sum(-1, keepdims=True)),
            "targets": np.array(targets),
            "input_lengths": np.array(input_lengths or [frames] * len(targets)),
            "target_lengths": np.array(target_lengths),
        }

    return make


_DISTINCT, _REPEATED, _MIXED = [1, 2, 3], [4, 4, 4], [2, 2, 3]
_BATCH = [_DISTINCT, _REPEATED, _MIXED, _DISTINCT]


def _one(rng: np.random.RandomState) -> Arrays:
    arrays = _sequences(5, [_MIXED], [3])(rng)
    arrays["log_probs"] = arrays["log_probs"][:, 0]
    return {name: array if name == "log_probs" else array[0] for name, array in arrays.items()}


add("ctc_loss", "padded", _sequences(7, _BATCH, [3, 3, 2, 1], input_lengths=[7, 6, 5, 7]))
add("ctc_loss", "one", _one)
add("ctc_loss", "empty-targets", _sequences(4, _BATCH, [0, 2, 0, 3], input_lengths=[4, 4, 0, 3]))
add("ctc_loss", "single-path", _sequences(5, _BATCH[:3], [3, 3, 2], input_lengths=[3, 5, 3]))
add("ctc_loss", "blank", _sequences(6, [[1, 2, 0], [0, 0, 3]], [3, 2]), blank=4)
add("ctc_loss", "blank-as-label", _sequences(6, [[1, 0, 2], [0, 0, 3]], [3, 3]))
# The second and third sample have too few frames for their labels; the last has none.
add(
    "ctc_loss",
    "zero-infinity",
    _sequences(5, _BATCH, [3, 3, 2, 1], input_lengths=[3, 4, 2, 0]),
    zero_infinity=True,
)
