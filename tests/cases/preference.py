"""Preference losses: formulas, entries and certificate rows."""

from collections.abc import Callable
from decimal import Decimal

import numpy as np

from tests.case import Arrays, add
from tests.formulas import beyond_pytorch, exp, log, positive_part, softplus, times
from tests.situation import INF, at, row


def sigma(x):
    return 1 / (1 + exp(-x))


@beyond_pytorch("(),(),(),()->()")
def dpo_loss(
    chosen, rejected, reference_chosen, reference_rejected, beta=0.1, kind="sigmoid", label_smoothing=0
):
    r, s = chosen - reference_chosen, rejected - reference_rejected
    beta, smoothing = Decimal(beta), Decimal(label_smoothing)
    u = beta * (r - s)
    return {
        "sigmoid": lambda: (1 - smoothing) * softplus(-u) + times(smoothing, softplus(u)),
        "robust": lambda: ((1 - smoothing) * softplus(-u) - smoothing * softplus(u)) / (1 - 2 * smoothing),
        "hinge": lambda: positive_part(1 - u),
        "ipo": lambda: (r - s - 1 / (2 * beta)) ** 2,
        "apo_zero": lambda: sigma(-beta * r) + sigma(beta * s),
        "apo_down": lambda: sigma(beta * r) + sigma(-u),
        "nca_pair": lambda: softplus(-beta * r) + (softplus(beta * r) + softplus(beta * s)) / 2,
        "sppo_hard": lambda: (r - 1 / (2 * beta)) ** 2 + (s + 1 / (2 * beta)) ** 2,
    }[kind]()


@beyond_pytorch("(),()->()")
def simpo_loss(chosen, rejected, beta=2, gamma=1, label_smoothing=0):
    u, smoothing = Decimal(beta) * (chosen - rejected) - Decimal(gamma), Decimal(label_smoothing)
    return (1 - smoothing) * softplus(-u) + times(smoothing, softplus(u))


@beyond_pytorch("(),()->()")
def orpo_loss(chosen, rejected, beta=0.1):
    p, q = exp(chosen), exp(rejected)
    return -chosen + Decimal(beta) * log(1 + q * (1 - p) / (p * (1 - q)))


@beyond_pytorch("(),(),()->()")
def kto_loss(
    log_probs, targets, reference_log_probs, kl=0, beta=0.1, desirable_weight=1, undesirable_weight=1
):
    gain = Decimal(beta) * (log_probs - reference_log_probs - max(Decimal(kl), 0))
    weight = Decimal(desirable_weight if targets else undesirable_weight)
    return weight * sigma(-gain if targets else gain)


@beyond_pytorch(None)
def bradley_terry_loss(scores, rejected_scores, margin=0, center=0):
    gap = scores - rejected_scores - margin
    loss = np.vectorize(softplus, otypes=[object])(-gap)
    return loss + Decimal(center) * (scores + rejected_scores) ** 2 if center else loss


def _log_probs(*names: str) -> Callable[[np.random.RandomState], Arrays]:
    return lambda rng: {name: -5 * rng.rand(5) for name in names}


_PAIRS = "chosen rejected reference_chosen reference_rejected"
_four = _log_probs(*_PAIRS.split())
add("dpo_loss", "vector", _four, beta=0.5)
add("dpo_loss", "smoothed", _four, beta=0.5, label_smoothing=0.25)
for _kind in ("robust", "ipo", "nca_pair"):
    add("dpo_loss", _kind, _four, kind=_kind, beta=0.5, label_smoothing=0.25 if _kind == "robust" else 0.0)
for _kind in ("hinge", "apo_zero", "apo_down", "sppo_hard"):
    add("dpo_loss", _kind, _four, kind=_kind, beta=0.5)
add("simpo_loss", "vector", _log_probs("chosen", "rejected"), label_smoothing=0.125)
add("orpo_loss", "vector", _log_probs("chosen", "rejected"))
add(
    "orpo_loss",
    "extreme",
    lambda rng: {
        "chosen": np.array([-1e-6, -300.0, -90.0, -0.6875, -1e-20]),
        "rejected": np.array([-300.0, -1e-6, -91.0, -0.703125, -1e-10]),
    },
    smooth=False,
    beta=0.5,
)
add(
    "kto_loss",
    "vector",
    lambda rng: {
        "log_probs": -5 * rng.rand(5),
        "targets": np.array([1, 0, 1, 1, 0]),
        "reference_log_probs": -5 * rng.rand(5),
    },
    kl=0.25,
    beta=0.5,
    undesirable_weight=1.5,
)
add(
    "bradley_terry_loss",
    "margins",
    lambda rng: {"scores": rng.randn(5), "rejected_scores": rng.randn(5), "margin": rng.rand(5)},
    center=0.25,
)

_BOTH_IMPOSSIBLE = {
    "documented": "both models have probability 0, the difference is 0 with gradient 0",
    "convention": {"gradient": 0, "HVP": 0},
}
_NOTHING = [at(-INF, -1.0, -INF, -3.0, **_BOTH_IMPOSSIBLE)]
for _kind, _impossible in (("sigmoid", []), ("hinge", _NOTHING), ("apo_zero", _NOTHING), ("ipo", [])):
    row(
        "dpo_loss",
        _PAIRS,
        _PAIRS,
        {"kind": _kind, "beta": 0.5},
        zeros=[(0.0, 0.0, 0.0, 0.0)],
        kinks=[(-1.0, -3.0, -2.0, -2.0)],
        plus=[(0.0, 0.0, -INF, -1.0)],
        minus=[(-INF, -1.0, -2.0, -3.0), *_impossible],
        far=[(-1e200, 0.0, 0.0, 0.0), (0.0, -1e4, -1e4, 0.0)],
        half=[(-0.5, -1.25, -2.0, -0.75)],
    )
_TWO = {
    "zeros": [(0.0, 0.0)],
    "plus": "log-probabilities are at most 0",
    "minus": [(-INF, -1.0), (-1.0, -INF)],
    "half": [(-0.5, -1.25), (-2.0, -0.75)],
}
row("simpo_loss", "chosen rejected", "chosen rejected", far=[(-1e200, 0.0), (0.0, -1e200)], **_TWO)
_TWO["zeros"] = [
    at(
        *(0.0, 0.0),
        documented="both are 0, the odds ratio is 1 with gradient 0",
        convention={"value": 0.1 * np.log(2), "gradient": [-1.0, 0.0], "jvp": -1.0, "HVP": 0},
    ),
    (0.0, -1.0),
]
row("orpo_loss", "chosen rejected", "chosen rejected", far=[(-1e4, -1.0), (-1.0, -1e4)], **_TWO)
row(
    "kto_loss",
    "log_probs targets reference_log_probs",
    "log_probs reference_log_probs",
    {"kl": 0.5, "beta": 0.5},
    zeros=[(0.0, 1, 0.0)],
    plus=[(0.0, 1, -INF), (0.0, 0, -INF)],
    minus=[(-INF, 1, -1.0), (-INF, 0, -1.0)],
    far=[(-1e200, 1, 0.0), (-1e200, 0, 0.0)],
    half=[(-0.5, 1, -1.25), (-2.0, 0, -0.75)],
)
row(
    "bradley_terry_loss",
    "scores rejected_scores",
    "scores rejected_scores",
    {"center": 0.25},
    zeros=[(0.0, 0.0)],
    plus=[(INF, 0.0)],
    minus=[(0.0, -INF)],
    far=[(1e100, 0.0), (1e-200, 0.0)],
    half=[(0.5, -1.25), (2.0, 3.0)],
)
