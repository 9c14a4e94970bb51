"""Preference optimization losses, on log-probabilities or scores of answers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from jaxloss._core.arguments import (
    agree,
    as_array,
    broadcastable,
    fill_masked,
    mask,
    refuse_unknown,
    widened,
)
from jaxloss._core.checks import checked, one_or_nan
from jaxloss._core.decorator import Domain, compiled, finite, not_negative, positive_and_finite
from jaxloss._core.derivatives import (
    binary_or_nan,
    checked_binary,
    cross_entropy_of_logits,
    derivatives,
    inverse_or_zero,
    log_ratio,
    positive_part,
    sigmoid,
    softplus,
    square,
    weighted,
)
from jaxloss._core.reduction import Reduction, reduce_elementwise

DPOKind = Literal["sigmoid", "robust", "hinge", "ipo", "apo_zero", "apo_down", "nca_pair", "sppo_hard"]
_SMOOTHING = Domain("a number in [0, 0.5)", lambda number: (number >= 0) & (number < 0.5))


@compiled(
    static=("kind", "label_smoothing", "reduction"),
    domains={"beta": positive_and_finite, "label_smoothing": _SMOOTHING},
)
def dpo_loss(
    chosen: ArrayLike,
    rejected: ArrayLike,
    reference_chosen: ArrayLike,
    reference_rejected: ArrayLike,
    *,
    beta: ArrayLike = 0.1,
    kind: DPOKind = "sigmoid",
    label_smoothing: float = 0.0,
    where: ArrayLike | None = None,
    reduction: Reduction = "mean",
) -> jax.Array:
    """Direct preference optimization (DPO), with its common variants.

    With r = chosen - reference_chosen, s = rejected - reference_rejected, h = r - s, ε = `label_smoothing`
    and the logistic function σ, the loss by `kind` is

        "sigmoid"     -(1 - ε) · log σ(beta · h) - ε · log σ(-beta · h)
        "robust"      (-(1 - ε) · log σ(beta · h) + ε · log σ(-beta · h)) / (1 - 2 · ε)
        "hinge"       max(0, 1 - beta · h)
        "ipo"         (h - 1 / (2 · beta))²    of log-probabilities that are means over the tokens
        "apo_zero"    σ(-beta · r) + σ(beta · s)
        "apo_down"    σ(beta · r) + σ(-beta · h)
        "nca_pair"    -log σ(beta · r) - ½ · log σ(-beta · r) - ½ · log σ(-beta · s)
        "sppo_hard"   (r - 1 / (2 · beta))² + (s + 1 / (2 · beta))²

    Args:
        chosen: Log-probabilities of the chosen answers, summed over their tokens, any shape; in nats.
            `linear_log_probs` gives those of tokens.
        rejected: Log-probabilities of the rejected answers, of the shape of `chosen`.
        reference_chosen: `chosen` under the reference model, of the same shape.
        reference_rejected: `rejected` under the reference model, of the same shape. Where both models have
            probability 0, the difference is 0 with gradient 0.
        beta: Strength of the regularization by the reference model, a finite number > 0.
        kind: The variant, static.
        label_smoothing: Assumed share of swapped preferences, a static number in [0, 0.5); for "sigmoid" and
            "robust" only.
        where: Mask, broadcast to the shape of `chosen`; see `help(jaxloss)`.
        reduction: "mean" (divides by the number of pairs), "sum", "none" or "sum_and_weight".

    Returns:
        A scalar, or an array of the shape of `chosen` for "none".

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxloss
        >>> chosen, rejected = jnp.array([-10.0]), jnp.array([-14.0])
        >>> jaxloss.dpo_loss(chosen, rejected, jnp.array([-12.0]), jnp.array([-13.0]))
        Array(0.5544, dtype=float32)

    Source:
        R. Rafailov et al. (2023), Direct Preference Optimization. TRL documentation: DPOTrainer, `loss_type`.
    """
    refuse_unknown("kind", kind, DPOKind)
    if label_smoothing and kind not in ("sigmoid", "robust"):
        raise ValueError(
            f"label_smoothing must be 0 for kind {kind!r}, got {label_smoothing}; only 'sigmoid' and "
            "'robust' support it"
        )

    def loss(
        chosen: jax.Array,
        rejected: jax.Array,
        reference_chosen: jax.Array,
        reference_rejected: jax.Array,
        beta: jax.Array,
    ) -> jax.Array:
        rewards = log_ratio(chosen, reference_chosen), log_ratio(rejected, reference_rejected)
        if kind in ("sigmoid", "robust"):
            return _logistic(beta * (rewards[0] - rewards[1]), label_smoothing, kind == "robust")
        return _VARIANTS[kind](*rewards, beta)

    arrays = agree(
        chosen=chosen,
        rejected=rejected,
        reference_chosen=reference_chosen,
        reference_rejected=reference_rejected,
    )
    return reduce_elementwise(loss, arrays, [beta], where=where, reduction=reduction)


@compiled(
    static=("label_smoothing", "reduction"),
    domains={"beta": positive_and_finite, "gamma": finite, "label_smoothing": _SMOOTHING},
)
def simpo_loss(
    chosen: ArrayLike,
    rejected: ArrayLike,
    *,
    beta: ArrayLike = 2.0,
    gamma: ArrayLike = 1.0,
    label_smoothing: float = 0.0,
    where: ArrayLike | None = None,
    reduction: Reduction = "mean",
) -> jax.Array:
    """Simple preference optimization (SimPO), which needs no reference model.

    With u = beta · (chosen - rejected) - gamma, ε = `label_smoothing` and the logistic function σ,

        loss = -(1 - ε) · log σ(u) - ε · log σ(-u)

    Args:
        chosen: Log-probabilities of the chosen answers, means over their tokens, any shape; in nats.
        rejected: Those of the rejected answers, of the shape of `chosen`.
        beta: Factor of the difference, a finite number > 0.
        gamma: Margin that beta · (chosen - rejected) should exceed, a finite number.
        label_smoothing: Assumed share of swapped preferences, a static number in [0, 0.5).
        where: Mask, broadcast to the shape of `chosen`; see `help(jaxloss)`.
        reduction: "mean" (divides by the number of pairs), "sum", "none" or "sum_and_weight".

    Returns:
        A scalar, or an array of the shape of `chosen` for "none"; in nats.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxloss
        >>> jaxloss.simpo_loss(jnp.array([-1.0, -2.0]), jnp.array([-2.0, -1.5]))
        Array(1.2201, dtype=float32)

    Differences from other libraries:
        * `gamma` is the margin itself, as in the paper; the authors' code takes gamma / beta.

    Source:
        Y. Meng et al. (2024), SimPO: Simple Preference Optimization with a Reference-Free Reward.
    """

    def loss(chosen: jax.Array, rejected: jax.Array, beta: jax.Array, gamma: jax.Array) -> jax.Array:
        return _logistic(beta * (chosen - rejected) - gamma, label_smoothing, False)

    arrays = agree(chosen=chosen, rejected=rejected)
    return reduce_elementwise(loss, arrays, [beta, gamma], where=where, reduction=reduction)


@compiled(static=("reduction",), domains={"beta": not_negative})
def orpo_loss(
    chosen: ArrayLike,
    rejected: ArrayLike,
    *,
    beta: ArrayLike = 0.1,
    where: ArrayLike | None = None,
    reduction: Reduction = "mean",
) -> jax.Array:
    """Odds ratio preference optimization (ORPO), which needs no reference model.

    With odds(p) = p / (1 - p) of the probabilities p = exp(chosen) and q = exp(rejected),

        loss = -chosen + beta · log(1 + odds(q) / odds(p))

    Args:
        chosen: Log-probabilities <= 0 of the chosen answers, means over their tokens, any shape; in nats.
        rejected: Those of the rejected answers, of the shape of `chosen`. Where both are 0, the odds ratio is
            1 with gradient 0.
        beta: Weight of the second term, a number >= 0.
        where: Mask, broadcast to the shape of `chosen`; see `help(jaxloss)`.
        reduction: "mean" (divides by the number of pairs), "sum", "none" or "sum_and_weight".

    Returns:
        A scalar, or an array of the shape of `chosen` for "none"; in nats.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxloss
        >>> jaxloss.orpo_loss(jnp.array([-0.5, -1.0]), jnp.array([-1.0, -0.5]))
        Array(0.8307, dtype=float32)

    Source:
        J. Hong et al. (2024), ORPO: Monolithic Preference Optimization without Reference Model.
    """

    def loss(chosen: jax.Array, rejected: jax.Array, beta: jax.Array) -> jax.Array:
        worse = _odds_ratio_loss(*map(_negative_or_nan, (chosen, rejected)))
        return weighted(beta, worse) - chosen

    chosen, rejected = agree(chosen=chosen, rejected=rejected)
    where = mask(where, chosen)
    arrays = [_checked_log_probs(n, a, where) for n, a in (("chosen", chosen), ("rejected", rejected))]
    return reduce_elementwise(loss, [*arrays], [beta], where=where, reduction=reduction)


@compiled(
    static=("reduction",),
    domains={
        "kl": finite,
        "beta": positive_and_finite,
        "desirable_weight": not_negative,
        "undesirable_weight": not_negative,
    },
)
def kto_loss(
    log_probs: ArrayLike,
    targets: ArrayLike,
    reference_log_probs: ArrayLike,
    *,
    kl: ArrayLike = 0.0,
    beta: ArrayLike = 0.1,
    desirable_weight: ArrayLike = 1.0,
    undesirable_weight: ArrayLike = 1.0,
    where: ArrayLike | None = None,
    reduction: Reduction = "mean",
) -> jax.Array:
    """Kahneman-Tversky optimization (KTO), on answers labelled desirable or undesirable.

    With r = log_probs - reference_log_probs, z = max(kl, 0) and the logistic function σ,

        loss = desirable_weight · σ(-beta · (r - z))       of a desirable answer
        loss = undesirable_weight · σ(beta · (r - z))      of any other

    Args:
        log_probs: Log-probabilities of the answers, summed over their tokens, any shape; in nats.
        targets: True or 1 for desirable answers, False or 0 for others, of the shape of `log_probs`.
        reference_log_probs: Log-probabilities under the reference model, of the shape of `log_probs`. Where
            both are -∞, the difference is 0 with gradient 0.
        kl: Estimate of the divergence of the model from the reference, a finite number without gradient.
        beta: Factor of r - z, a finite number > 0.
        desirable_weight: Weight of the loss of desirable answers, a number >= 0.
        undesirable_weight: Weight of the loss of the other answers, a number >= 0.
        where: Mask, broadcast to the shape of `log_probs`; see `help(jaxloss)`.
        reduction: "mean" (divides by the number of answers, not by the weights), "sum", "none" or
            "sum_and_weight".

    Returns:
        A scalar, or an array of the shape of `log_probs` for "none".

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxloss
        >>> log_probs, reference = jnp.array([-10.0, -14.0]), jnp.array([-12.0, -13.0])
        >>> jaxloss.kto_loss(log_probs, jnp.array([True, False]), reference)
        Array(0.4626, dtype=float32)

    Source:
        K. Ethayarajh et al. (2024), KTO: Model Alignment as Prospect Theoretic Optimization.
    """
    log_probs, targets, reference = agree(
        log_probs=log_probs, targets=targets, reference_log_probs=reference_log_probs
    )
    targets = checked_binary("targets", targets, mask(where, targets))
    options = [kl, beta, desirable_weight, undesirable_weight]
    return reduce_elementwise(
        _prospect, [log_probs, targets, reference], options, where=where, reduction=reduction
    )


@compiled(static=("reduction",), domains={"center": not_negative})
def bradley_terry_loss(
    scores: ArrayLike,
    rejected_scores: ArrayLike,
    *,
    margin: ArrayLike = 0.0,
    center: ArrayLike = 0.0,
    where: ArrayLike | None = None,
    reduction: Reduction = "mean",
) -> jax.Array:
    """Bradley-Terry loss of a reward model.

        loss = log(1 + exp(-(scores - rejected_scores - margin))) + center · (scores + rejected_scores)²

    Args:
        scores: Scores of the chosen answers, any shape.
        rejected_scores: Scores of the rejected answers, of the shape of `scores`.
        margin: Required difference of the scores, broadcast to the shape of `scores`.
        center: Weight of the term that keeps the scores near 0, a number >= 0.
        where: Mask, broadcast to the shape of `scores`; see `help(jaxloss)`.
        reduction: "mean" (divides by the number of pairs), "sum", "none" or "sum_and_weight".

    Returns:
        A scalar, or an array of the shape of `scores` for "none"; in nats.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxloss
        >>> jaxloss.bradley_terry_loss(jnp.array([2.0, 0.0]), jnp.array([1.0, 1.0]))
        Array(0.8133, dtype=float32)

    Source:
        L. Ouyang et al. (2022), Training Language Models to Follow Instructions with Human Feedback. J.
        Eisenstein et al. (2023), Helping or Herding? (the second term). TRL documentation: RewardTrainer.
    """

    def loss(scores: jax.Array, rejected: jax.Array, margin: jax.Array, center: jax.Array) -> jax.Array:
        return softplus(margin - (scores - rejected)) + weighted(center, square(scores + rejected))

    arrays = agree(scores=scores, rejected_scores=rejected_scores)
    arrays += [broadcastable("margin", as_array("margin", margin), arrays[0])]
    return reduce_elementwise(loss, arrays, [center], where=where, reduction=reduction)


def _logistic(advantage: jax.Array, smoothing: float, robust: bool) -> jax.Array:
    """Returns -log σ(advantage) with label smoothing."""
    if not smoothing:
        return softplus(-advantage)
    if robust:
        return softplus(-advantage) - smoothing / (1 - 2 * smoothing) * advantage
    ones = jnp.ones_like(advantage)
    return cross_entropy_of_logits(advantage, (1 - smoothing) * ones, ones)


_VARIANTS: dict[str, Callable[[jax.Array, jax.Array, jax.Array], jax.Array]] = {
    "hinge": lambda r, s, beta: positive_part(1 - beta * (r - s)),
    "ipo": lambda r, s, beta: square(r - s - 0.5 / beta),
    "apo_zero": lambda r, s, beta: sigmoid(-beta * r) + sigmoid(beta * s),
    "apo_down": lambda r, s, beta: sigmoid(beta * r) + sigmoid(-beta * (r - s)),
    "nca_pair": lambda r, s, beta: softplus(-beta * r) + (softplus(beta * r) + softplus(beta * s)) / 2,
    "sppo_hard": lambda r, s, beta: square(r - 0.5 / beta) + square(s + 0.5 / beta),
}


def _prospect(
    log_probs: jax.Array,
    targets: jax.Array,
    reference: jax.Array,
    kl: jax.Array,
    beta: jax.Array,
    desirable_weight: jax.Array,
    undesirable_weight: jax.Array,
) -> jax.Array:
    weight = jnp.where(targets == 1, desirable_weight, undesirable_weight)
    sign = 1 - 2 * binary_or_nan(targets)
    gain = log_ratio(log_probs, reference) - lax.stop_gradient(jnp.maximum(kl, 0))
    return weight * sigmoid(sign * beta * gain)


def _checked_log_probs(name: str, log_probs: jax.Array, where: jax.Array | None) -> jax.Array:
    """Returns log-probabilities; under `checkify` an unmasked one above 0 is an error."""
    (wide,) = widened(log_probs)
    return checked(log_probs, fill_masked(where, wide <= 0, True), f"{name}: expected log-probabilities <= 0")


def _negative_or_nan(log_probs: jax.Array) -> jax.Array:
    return log_probs * one_or_nan(log_probs <= 0, log_probs.dtype)


def _log_odds(log_probs: jax.Array) -> jax.Array:
    """Returns log(p / (1 - p)) of p = exp(log_probs)."""
    is_likely = log_probs > -0.7
    unlikely = jnp.where(is_likely, -1, log_probs)
    log_miss = jnp.where(is_likely, jnp.log(-jnp.expm1(log_probs)), jnp.log1p(-jnp.exp(unlikely)))
    return log_probs - log_miss


def _shares(chosen: jax.Array, rejected: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns q and p · (1 - q) + q · (1 - p), times a common factor, for p and q = exp of the arguments."""
    larger = lax.stop_gradient(jnp.maximum(chosen, rejected))  # so that no probability underflows
    larger = jnp.maximum(larger, jnp.finfo(larger.dtype).min)
    p, q = jnp.exp(chosen - larger), jnp.exp(rejected - larger)
    return q, -p * jnp.expm1(rejected) - q * jnp.expm1(chosen)


def _slope_in_chosen(chosen: jax.Array, rejected: jax.Array) -> jax.Array:
    q, total = _shares(chosen, rejected)
    return -q * inverse_or_zero(total)


def _slope_in_rejected(chosen: jax.Array, rejected: jax.Array) -> jax.Array:
    q, total = _shares(chosen, rejected)
    vanishes = total == 0
    miss = jnp.where(vanishes, 1, -total * jnp.expm1(rejected))
    return jnp.where(vanishes, 0, -q * jnp.expm1(chosen) / miss)


@derivatives(_slope_in_chosen, _slope_in_rejected)
def _odds_ratio_loss(chosen: jax.Array, rejected: jax.Array) -> jax.Array:
    """Returns log(1 + odds(q) / odds(p)) of p = exp(chosen) and q = exp(rejected)."""
    return softplus(log_ratio(_log_odds(rejected), _log_odds(chosen)))
