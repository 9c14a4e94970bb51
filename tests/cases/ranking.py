"""Ranking losses: formulas, entries and certificate rows."""

from collections.abc import Callable
from decimal import Decimal

import numpy as np

from tests.case import Arrays, add
from tests.formulas import beyond_pytorch, exp, log, softplus, times, total
from tests.situation import INF, row


def _softmax(scores, targets):
    log_normalizer = log(total(map(exp, scores)))
    return total(times(y, log_normalizer - s) for y, s in zip(targets, scores, strict=True))


@beyond_pytorch(None)
def softmax_ranking_loss(scores, targets, weight=1):
    of_list = np.vectorize(_softmax, otypes=[object], signature="(l),(l)->()")
    return of_list(scores, targets * np.asarray(weight))


@beyond_pytorch("(l),(l)->()")
def listmle_loss(scores, targets):
    order = sorted(range(len(scores)), key=lambda i: -targets[i])
    ordered = [scores[i] for i in order]
    return total(log(total(map(exp, ordered[i:]))) - ordered[i] for i in range(len(ordered)))


@beyond_pytorch(None)
def pairwise_logistic_loss(scores, targets, weight=1):
    losses, pairs = (np.full(scores.shape[:-1], Decimal(0)) for _ in range(2))
    weight = np.broadcast_to(np.asarray(weight, object), scores.shape)
    for place in np.ndindex(*scores.shape[:-1]):
        s, y, w = scores[place], targets[place], weight[place]
        for i in range(len(s)):
            for j in range(len(s)):
                if y[i] > y[j]:
                    losses[place] += w[i] * softplus(s[j] - s[i])
                    pairs[place] += 1
    return losses, pairs


@beyond_pytorch("(l),(l)->(),()")
def approx_ndcg_loss(scores, targets, temperature=1):
    def discounted(gain, rank):
        return gain * log(Decimal(2)) / log(1 + rank)

    gains = [exp(y * log(Decimal(2))) - 1 for y in targets]
    ahead = ([1 / (1 + exp((s - other) / Decimal(temperature))) for other in scores] for s in scores)
    ranks = [Decimal("0.5") + total(a) for a in ahead]
    ideal = total(discounted(gain, Decimal(i + 1)) for i, gain in enumerate(sorted(gains, reverse=True)))
    if ideal == 0:
        return Decimal(0), 0
    return 1 - total(map(discounted, gains, ranks)) / ideal, 1


def _lists(
    *shape: int, weight: bool = False, least: float = 0.0
) -> Callable[[np.random.RandomState], Arrays]:
    def make(rng: np.random.RandomState) -> Arrays:
        arrays = {"scores": rng.randn(*shape), "targets": least + rng.randint(0, 3, shape)}
        return {**arrays, "weight": 0.5 + rng.rand(*shape)} if weight else arrays

    return make


_SCORES = ("scores",)
for _situation, _shape in (("lists", (3, 4)), ("weight", (2, 2, 3))):
    make = _lists(*_shape, weight=_situation == "weight", least=1.0)  # finite differences must stay above 0
    add("softmax_ranking_loss", _situation, make)
add("listmle_loss", "lists", _lists(3, 4), gradients=_SCORES)
add("pairwise_logistic_loss", "lists", _lists(3, 4), gradients=_SCORES)
add("pairwise_logistic_loss", "weight", _lists(2, 2, 3, weight=True), gradients=_SCORES)
add("approx_ndcg_loss", "lists", _lists(3, 4), gradients=_SCORES, temperature=0.5)

for _loss in ("softmax_ranking_loss", "listmle_loss", "pairwise_logistic_loss", "approx_ndcg_loss"):
    row(
        _loss,
        "scores targets",
        "scores",
        zeros=[([0.0, 0.0, 0.0], [1.0, 0.0, 2.0]), ([0.5, 1.0, 0.0], [0.0, 0.0, 0.0])],
        kinks="smooth in the scores",
        plus="none: a score of +∞ gives NaN, as in softmax",
        minus=[([-INF, 0.0, 1.0], [0.0, 1.0, 2.0]), ([-INF, 0.0, 1.0], [2.0, 0.0, 1.0])],
        far=[([1e4, 0.0, -1e4], [2.0, 1.0, 0.0]), ([-1e4, 0.0, 1e4], [2.0, 1.0, 0.0])],
        half=[([0.5, -1.25, 2.0], [1.0, 0.0, 2.0])],
    )
