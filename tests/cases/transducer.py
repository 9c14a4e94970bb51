"""RNN-transducer loss: entries, formula and certificate row."""

import itertools
from collections.abc import Callable, Iterator

import numpy as np

from tests.case import Arrays, add
from tests.formulas import beyond_pytorch, exp, log, log_softmax, total
from tests.situation import INF, at, row


def paths(labels: list[int], frames: int, blank: int) -> Iterator[list[tuple[int, int, int]]]:
    """Yields every path that emits the labels, as its steps (t, u, emitted)."""
    for times in itertools.combinations_with_replacement(range(frames), len(labels)):
        emitted = [(t, u, label) for u, (t, label) in enumerate(zip(times, labels, strict=True))]
        reads = [(t, sum(time <= t for time in times), blank) for t in range(frames)]
        yield emitted + reads


@beyond_pytorch(None)
def rnnt_loss(logits, targets, input_lengths, target_lengths, blank=0):
    def loss(scores, labels, frames, count):
        log_probs = [[log_softmax(place) for place in row[: count + 1]] for row in scores[:frames]]
        steps = paths(list(labels[:count]), frames, blank)
        return -log(total(exp(total(log_probs[t][u][c] for t, u, c in path)) for path in steps))

    samples = zip(logits, targets, input_lengths, target_lengths, strict=True)
    return np.array([loss(*sample) for sample in samples], object)


def _samples(
    frames: int,
    targets: list[list[int]],
    input_lengths: list[int],
    target_lengths: list[int],
    *,
    classes: int = 3,
    scale: float = 2,
) -> Callable[[np.random.RandomState], Arrays]:
    def make(rng: np.random.RandomState) -> Arrays:
        return {
            "logits": rng.randn(len(targets), frames, len(targets[0]) + 1, classes) * scale,
            "targets": np.array(targets),
            "input_lengths": np.array(input_lengths),
            "target_lengths": np.array(target_lengths),
        }

    return make


add("rnnt_loss", "lengths", _samples(3, [[1, 2], [2, 2], [1, 1]], [3, 2, 1], [2, 1, 0]))
add("rnnt_loss", "last-blank", _samples(2, [[0, 2], [1, 1]], [2, 2], [2, 2], classes=4), blank=-1)
add("rnnt_loss", "sharp", _samples(2, [[1, 2], [2, 1]], [2, 1], [2, 2], scale=300), smooth=False)

_PLACES = np.array(
    [
        [[-1.0, -0.5, -2.0], [0.25, -1.5, 3.0], [-2.0, 1.0, -0.5]],
        [[0.75, -1.25, -1.0], [-0.25, 0.5, -3.0], [-2.0, -1.0, 1.5]],
    ]
)


def _with(*places: tuple[int, int, list[float]]) -> list[object]:
    """Returns one sample of 2 frames and 2 labels, with the logits replaced at the given places."""
    logits = _PLACES.copy()
    for t, u, scores in places:
        logits[t, u] = scores
    return [logits[None].tolist(), [[1, 2]], [2], [2]]


row(
    "rnnt_loss",
    "logits targets input_lengths target_lengths",
    "logits",
    zeros=[([[[[0.0] * 3] * 3] * 2], [[1, 2]], [2], [2])],
    plus=[at(*_with((0, 1, [INF, 0.0, 1.0])), documented="A logit of +inf")],
    minus=[
        _with((0, 1, [0.0, 1.0, -INF])),
        _with((1, 0, [0.0, -INF, -INF])),
        at(
            *_with((1, 2, [-INF, 0.0, 1.0])),
            documented="the loss is ∞ with gradient 0",
            convention={"gradient": 0, "jvp": 0, "HVP": 0},
        ),
        at(*_with((1, 0, [-INF, -INF, -INF])), documented="logits that are all -inf, give NaN"),
    ],
    far=[_with((0, 1, [-1e4, 1e4, 0.0]), (1, 1, [1e4, 0.0, 1e4]))],
    half=[_with(), _with((0, 0, [300.0, -200.0, 0.5]))],
)
