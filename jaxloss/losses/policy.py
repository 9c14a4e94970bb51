"""Policy gradient losses: PPO, and GRPO with its variants."""

from __future__ import annotations

from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from jaxloss._core.arguments import agree, as_array, fill_masked, mask, refuse_unknown, widened
from jaxloss._core.checks import checked, one_or_nan
from jaxloss._core.decorator import compiled, fraction, not_negative, positive
from jaxloss._core.derivatives import derivatives, log_ratio
from jaxloss._core.reduction import Reduction, reduce_elementwise, reduce_losses

GRPOKind = Literal["clip", "cispo"]
GRPOLevel = Literal["token", "sequence"]
GRPOAggregate = Literal["sequence", "token", "length"]


@compiled(static=("reduction",), domains={"epsilon": fraction, "epsilon_high": not_negative})
def ppo_loss(
    log_probs: ArrayLike,
    advantages: ArrayLike,
    old_log_probs: ArrayLike,
    *,
    epsilon: ArrayLike = 0.2,
    epsilon_high: ArrayLike | None = None,
    where: ArrayLike | None = None,
    reduction: Reduction = "mean",
) -> jax.Array:
    """Clipped surrogate objective of proximal policy optimization (PPO).

    With the ratio r = exp(log_probs - old_log_probs) and the advantages A,

        loss = -min(r · A, clip(r, 1 - epsilon, 1 + epsilon_high) · A)

    A clipped ratio has gradient 0, also at the ends of the interval.

    Args:
        log_probs: Log-probabilities of the actions or tokens, any shape; in nats.
        advantages: Their advantages, of the shape of `log_probs`.
        old_log_probs: Their log-probabilities under the policy that sampled them, of the same shape. Where
            both are -∞, the ratio is 1 with gradient 0.
        epsilon: How far a ratio may fall below 1, a number in [0, 1].
        epsilon_high: How far it may rise above 1, a number >= 0. Default: `epsilon`.
        where: Mask, broadcast to the shape of `log_probs`; see `help(jaxloss)`.
        reduction: "mean" (divides by the number of elements), "sum", "none" or "sum_and_weight".

    Returns:
        A scalar, or an array of the shape of `log_probs` for "none"; in the unit of `advantages`.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxloss
        >>> log_probs, old_log_probs = jnp.array([-1.0, -2.0]), jnp.array([-2.0, -2.1])
        >>> jaxloss.ppo_loss(log_probs, jnp.array([1.0, -1.0]), old_log_probs, reduction="none")
        Array([-1.2   ,  1.1052], dtype=float32)

    Source:
        J. Schulman et al. (2017), Proximal Policy Optimization Algorithms.
    """

    def loss(
        log_probs: jax.Array, advantages: jax.Array, old: jax.Array, low: jax.Array, high: jax.Array
    ) -> jax.Array:
        return -advantages * _clipped(log_ratio(log_probs, old), advantages, 1 - low, 1 + high)

    arrays = agree(log_probs=log_probs, advantages=advantages, old_log_probs=old_log_probs)
    options = [epsilon, epsilon if epsilon_high is None else epsilon_high]
    return reduce_elementwise(loss, arrays, options, where=where, reduction=reduction)


@compiled(
    static=("kind", "level", "aggregate", "reduction"),
    domains={
        "epsilon": fraction,
        "epsilon_high": not_negative,
        "beta": not_negative,
        "max_length": positive,
    },
)
def grpo_loss(
    log_probs: ArrayLike,
    advantages: ArrayLike,
    old_log_probs: ArrayLike | None = None,
    reference_log_probs: ArrayLike | None = None,
    *,
    epsilon: ArrayLike = 0.2,
    epsilon_high: ArrayLike | None = None,
    beta: ArrayLike = 0.0,
    kind: GRPOKind = "clip",
    level: GRPOLevel = "token",
    aggregate: GRPOAggregate = "sequence",
    max_length: ArrayLike | None = None,
    where: ArrayLike | None = None,
    reduction: Reduction = "mean",
) -> jax.Array:
    """Group relative policy optimization (GRPO) and its variants BNPO, DAPO, Dr. GRPO, GSPO and CISPO.

    With the ratio r = exp(log_probs - old_log_probs) of each token, the advantages A and
    d = reference_log_probs - log_probs,

        loss = -min(r · A, clip(r, 1 - epsilon, 1 + epsilon_high) · A) + beta · (exp(d) - d - 1)

    Args:
        log_probs: Log-probabilities of the tokens, shape (B, T), in nats; see `linear_log_probs`.
        advantages: Advantages of the sequences, shape (B,), or of the tokens, shape (B, T).
        old_log_probs: Log-probabilities under the policy that sampled the tokens, shape (B, T). Default:
            `log_probs`, as constants. Where both are -∞, the ratio is 1 with gradient 0.
        reference_log_probs: Log-probabilities under the reference model, shape (B, T). Default: none; then
            `beta` must be 0, or the loss is NaN.
        epsilon: How far a ratio may fall below 1, a number in [0, 1].
        epsilon_high: How far it may rise above 1, a number >= 0. Default: `epsilon`.
        beta: Weight of the divergence from the reference model, a number >= 0.
        kind: "clip", as above, or "cispo", whose first term is -min(r, 1 + epsilon_high) · A · log_probs
            without gradient through the ratio. Static.
        level: "token", or "sequence" for the geometric mean of a sequence's ratios (GSPO). Static.
        aggregate: "sequence" averages the token means of the sequences (GRPO), "token" averages over all
            tokens (BNPO, DAPO), "length" divides by `max_length` for each sequence (Dr. GRPO). Static.
        max_length: A number > 0, for "length". Default: T.
        where: Mask of the tokens, broadcast to shape (B, T); see `help(jaxloss)`.
        reduction: "mean" (divides by the number of sequences with a token, by the number of tokens, or by the
            number of such sequences times `max_length`), "sum", "none" or "sum_and_weight".

    Returns:
        A scalar, or the losses of the tokens, shape (B, T), for "none".

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxloss
        >>> where = jnp.array([[True, True, True], [True, False, False]])
        >>> jaxloss.grpo_loss(jnp.full((2, 3), -1.0), jnp.array([1.0, -0.5]), where=where)
        Array(-0.25, dtype=float32)

    Differences from other libraries:
        * TRL counts a sequence without tokens as 0, and its `epsilon_high` for "cispo" is the cap itself.

    Source:
        Z. Shao et al. (2024), DeepSeekMath. TRL documentation: GRPOTrainer, which cites the variants.
    """
    refuse_unknown("kind", kind, GRPOKind)
    refuse_unknown("level", level, GRPOLevel)
    refuse_unknown("aggregate", aggregate, GRPOAggregate)
    (log_probs,) = agree(log_probs=log_probs)
    if log_probs.ndim != 2:
        raise ValueError(f"log_probs must have shape (B, T), got shape {log_probs.shape}")
    where = mask(where, log_probs)
    advantages = as_array("advantages", advantages)
    if advantages.shape == log_probs.shape[:1]:
        advantages = jnp.broadcast_to(advantages[:, None], log_probs.shape)
    given = {"log_probs": log_probs, "advantages": advantages}
    given |= {} if old_log_probs is None else {"old_log_probs": old_log_probs}
    given |= {} if reference_log_probs is None else {"reference_log_probs": reference_log_probs}
    wide = widened(*(fill_masked(where, array) for array in agree(**given)))
    arrays = dict(zip(given, wide, strict=True))
    dtype = arrays["log_probs"].dtype
    low, high = (
        jnp.asarray(option, dtype).reshape(1, 1)
        for option in (epsilon, epsilon if epsilon_high is None else epsilon_high)
    )
    losses = _of_tokens(arrays, where, low, high, kind, level)
    losses = losses + _divergence(arrays, jnp.asarray(beta, dtype).reshape(1, 1))
    if reduction == "none" or aggregate == "token":
        return reduce_losses(losses, None, where, reduction)
    return _reduced_by_sequences(fill_masked(where, losses), where, aggregate, max_length, reduction)


def _clipped(log_ratios: jax.Array, advantages: jax.Array, low: jax.Array, high: jax.Array) -> jax.Array:
    """Returns exp(log_ratios), clipped where this makes its product with the advantage smaller."""
    ratios = jnp.exp(lax.stop_gradient(log_ratios))
    too_low, too_high = (ratios <= low) & (advantages <= 0), (ratios >= high) & (advantages >= 0)
    unclipped = jnp.exp(jnp.where(too_low | too_high, 0, log_ratios))
    return jnp.where(too_low, low, jnp.where(too_high, high, unclipped))


def _of_tokens(
    arrays: dict[str, jax.Array],
    where: jax.Array | None,
    low: jax.Array,
    high: jax.Array,
    kind: str,
    level: str,
) -> jax.Array:
    """Returns the losses of the tokens, without the divergence from a reference."""
    log_probs, advantages = arrays["log_probs"], arrays["advantages"]
    old = arrays.get("old_log_probs", lax.stop_gradient(log_probs))
    log_ratios = log_ratio(log_probs, old)
    if level == "sequence":
        length = jnp.maximum(_lengths(log_probs, where), 1)
        log_ratios = (jnp.sum(log_ratios, 1) / length)[:, None]
    if kind == "clip":
        return -advantages * _clipped(log_ratios, advantages, 1 - low, 1 + high)
    return -jnp.minimum(jnp.exp(lax.stop_gradient(log_ratios)), 1 + high) * advantages * log_probs


def _divergence(arrays: dict[str, jax.Array], beta: jax.Array) -> jax.Array:
    """Returns beta · (exp(d) - d - 1) for d = reference_log_probs - log_probs."""
    if "reference_log_probs" not in arrays:
        beta = checked(beta, beta == 0, "beta: expected 0 without reference_log_probs")
        return beta * one_or_nan(beta == 0, beta.dtype)
    difference = log_ratio(arrays["reference_log_probs"], arrays["log_probs"])
    overflows = jnp.isinf(jnp.exp(lax.stop_gradient(difference)))
    difference = jnp.where((beta == 0) & overflows, 0, difference)
    return beta * _excess_of_exponential(difference)


@derivatives(jnp.expm1)
def _excess_of_exponential(number: jax.Array) -> jax.Array:
    """Returns exp(number) - number - 1."""
    return jnp.expm1(number) - jnp.where(number == jnp.inf, 0, number)


def _lengths(tokens: jax.Array, where: jax.Array | None) -> jax.Array:
    """Returns the number of tokens in each sequence, in the dtype of the tokens."""
    counted = jnp.ones((1, 1), bool) if where is None else where
    return jnp.sum(jnp.broadcast_to(counted, tokens.shape), 1, dtype=tokens.dtype)


def _reduced_by_sequences(
    losses: jax.Array,
    where: jax.Array | None,
    aggregate: str,
    max_length: ArrayLike | None,
    reduction: str,
) -> Any:
    totals, length, weight = jnp.sum(losses, 1), _lengths(losses, where), None
    if aggregate == "length":
        longest = losses.shape[1] if max_length is None else max_length
        weight = jnp.asarray(longest, totals.dtype).reshape(1)
    else:
        totals = totals / jnp.maximum(length, 1)
    return reduce_losses(totals, weight, length > 0, reduction)
