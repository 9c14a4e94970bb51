"""Policy losses: formulas, entries and certificate rows."""

from collections.abc import Callable
from decimal import Decimal

import numpy as np

from tests.case import Arrays, add
from tests.formulas import beyond_pytorch, exp, frozen, times, total
from tests.situation import INF, at, row


def clipped(ratio, advantage, low, high):
    bounded = min(max(ratio, 1 - Decimal(low)), 1 + Decimal(high))
    return -min(times(advantage, ratio), advantage * bounded)


def log_ratio(log_prob, other):
    return Decimal(0) if log_prob == other == Decimal("-inf") else log_prob - other


@beyond_pytorch("(),(),()->()")
def ppo_loss(log_probs, advantages, old_log_probs, epsilon=0.2, epsilon_high=None):
    ratio = exp(log_ratio(log_probs, old_log_probs))
    return clipped(ratio, advantages, epsilon, epsilon if epsilon_high is None else epsilon_high)


@beyond_pytorch(None)
def grpo_loss(
    log_probs,
    advantages,
    old_log_probs=None,
    reference_log_probs=None,
    epsilon=0.2,
    epsilon_high=None,
    beta=0,
    kind="clip",
    level="token",
    aggregate="sequence",
    max_length=None,
):
    size, length = log_probs.shape
    high = epsilon if epsilon_high is None else epsilon_high
    losses = np.full((size, length), Decimal(0))
    for i in range(size):
        old = [frozen(x) for x in log_probs[i]] if old_log_probs is None else old_log_probs[i]
        logs = [log_ratio(x, o) for x, o in zip(log_probs[i], old, strict=True)]
        if level == "sequence":
            logs = [total(logs) / length] * length
        for t in range(length):
            advantage = advantages[i] if advantages.ndim == 1 else advantages[i, t]
            if kind == "clip":
                losses[i, t] = clipped(exp(logs[t]), advantage, epsilon, high)
            else:
                ratio = frozen(min(exp(logs[t]), 1 + Decimal(high)))
                losses[i, t] = -ratio * advantage * log_probs[i, t]
            if reference_log_probs is not None:
                d = log_ratio(reference_log_probs[i, t], log_probs[i, t])
                losses[i, t] += times(Decimal(beta), exp(d) - d - 1)
    if aggregate == "sequence":
        return losses, Decimal(1) / length, Decimal(1) / length
    return losses, Decimal(max_length or length) / length if aggregate == "length" else 1


def _tokens(
    *names: str, of_tokens: bool = False, shape: tuple[int, int] = (3, 4)
) -> Callable[[np.random.RandomState], Arrays]:
    def make(rng: np.random.RandomState) -> Arrays:
        arrays = {
            "log_probs": -3 * rng.rand(*shape),
            "advantages": rng.randn(*(shape if of_tokens else shape[:1])),
        }
        moved = {name: arrays["log_probs"] + 0.5 * rng.randn(*shape) for name in names}
        return arrays | moved

    return make


add("ppo_loss", "matrix", _tokens("old_log_probs", of_tokens=True))
add(
    "ppo_loss",
    "clipped",
    lambda rng: {
        "log_probs": np.array([-0.5, -100.0, -0.5, -100.0, -1.0, -2.0]),
        "advantages": np.array([1.0, 1.0, -1.0, -1.0, 0.5, -2.0]),
        "old_log_probs": np.array([-100.0, -0.5, -1.0, -0.5, -1.0, -2.0]),
    },
    smooth=False,
    epsilon=0.25,
    epsilon_high=0.5,
)
add("grpo_loss", "plain", _tokens(), smooth=False)  # the gradient of the old policy is stopped
add("grpo_loss", "old", _tokens("old_log_probs", "reference_log_probs"), beta=0.5, epsilon_high=0.375)
add("grpo_loss", "tokens", _tokens("old_log_probs", of_tokens=True), aggregate="token")
add("grpo_loss", "length", _tokens("old_log_probs"), aggregate="length", max_length=8)
add("grpo_loss", "sequences", _tokens("old_log_probs"), level="sequence", epsilon=0.5)
add("grpo_loss", "cispo", _tokens("old_log_probs"), kind="cispo", aggregate="token")

_IMPOSSIBLE = {
    "documented": "both are -∞, the ratio is 1 with gradient 0",
    "convention": {"gradient": [0, -1, 0], "jvp": 0.5, "HVP": 0},
}
_NO_ADVANTAGE = {"documented": "A clipped ratio has gradient 0", "convention": {"gradient": 0}}
row(
    "ppo_loss",
    "log_probs advantages old_log_probs",
    "log_probs advantages old_log_probs",
    zeros=[(0.0, 1.0, 0.0)],
    kinks="clipped ratios are in the next columns; the ends of the interval are not representable",
    plus=[(0.0, 1.0, -INF), (0.0, -1.0, -INF)],
    minus=[(-INF, 1.0, -1.0), (-INF, -1.0, -1.0), at(-INF, 1.0, -INF, **_IMPOSSIBLE)],
    far=[(-0.5, 1.0, -1e4), (-1e4, 1.0, -0.5), (-1e4, -1.0, -0.5)],
    half=[(-0.5, 1.0, -0.625), (-1.5, -2.0, -0.5)],
)
row(
    "grpo_loss",
    "log_probs advantages old_log_probs reference_log_probs",
    "log_probs advantages old_log_probs reference_log_probs",
    {"beta": 0.5},
    zeros=[([[0.0, 0.0]], [1.0], [[0.0, 0.0]], [[0.0, 0.0]])],
    kinks="clipped ratios are in the next columns; the ends of the interval are not representable",
    plus=[([[0.0, -1.0]], [1.0], [[-INF, -1.5]], [[-1.0, -1.0]])],
    minus="infinite; the numbers have too many digits for finite differences",
    far=[([[-0.5, -1.0]], [1.0], [[-1e4, -1.0]], [[-1.0, -1e4]])],
    half=[([[-0.5, -1.0]], [1.0], [[-0.625, -1.25]], [[-1.0, -0.75]])],
)
