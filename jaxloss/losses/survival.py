"""Losses for survival analysis, with censored times."""

from __future__ import annotations

import functools
from typing import Literal

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxloss._core.arguments import (
    agree,
    fill_masked,
    mask,
    on_automatic_axes,
    refuse_unknown,
    widened,
)
from jaxloss._core.checks import checked, one_or_nan
from jaxloss._core.decorator import compiled
from jaxloss._core.derivatives import (
    binary_or_nan,
    checked_binary,
    cumulative_exponentials,
    inverse_or_zero,
    log_of_total,
    log_ratio,
)
from jaxloss._core.reduction import Reduction, reduce_losses

Ties = Literal["efron", "breslow"]


@compiled(static=("ties", "reduction"))
def cox_loss(
    scores: ArrayLike,
    times: ArrayLike,
    events: ArrayLike,
    *,
    ties: Ties = "efron",
    where: ArrayLike | None = None,
    reduction: Reduction = "mean",
) -> jax.Array:
    """Negative log partial likelihood of Cox's proportional hazards model.

    For a subject i with an event, by Breslow's rule for ties,

        loss_i = log Σ_{times[j] >= times[i]} exp(scores[j]) - scores[i]

    By Efron's rule for d events at the same time, the sum of the k-th event, k = 0 ... d - 1, is reduced by
    k / d of the sum over these d events, and each event has the mean of the d logarithms. Subjects without
    an event have loss 0. Rows may be in any order.

    Args:
        scores: Logarithms of the relative hazards, shape (N,).
        times: Time of the event or of censoring, shape (N,).
        events: True or 1 for an event, False or 0 for a censored time, shape (N,).
        ties: "efron" or "breslow", static.
        where: Mask, broadcast to shape (N,). A masked subject is never at risk.
        reduction: "mean" (divides by the number of events), "sum", "none" or "sum_and_weight".

    Returns:
        A scalar, or an array of shape (N,) for "none"; in nats.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxloss
        >>> scores, times = jnp.array([1.0, 0.0, -1.0]), jnp.array([2.0, 5.0, 7.0])
        >>> jaxloss.cox_loss(scores, times, jnp.array([True, True, False]))
        Array(0.3604, dtype=float32)

    Differences from other libraries:
        * torchsurv's mean divides by the number of distinct event times; pycox does not handle ties.

    Source:
        D. R. Cox (1972), Regression Models and Life-Tables. B. Efron (1977), The Efficiency of Cox's
        Likelihood Function for Censored Data. torchsurv documentation: torchsurv.loss.cox.
    """
    refuse_unknown("ties", ties, Ties)
    scores, times, events = agree(scores=scores, times=times, events=events)
    if scores.ndim != 1:
        raise ValueError(f"scores must have shape (N,), got shape {scores.shape}")
    where = mask(where, scores)
    scores, times, happened = widened(*(fill_masked(where, array) for array in (scores, times, events)))
    unknown = jnp.isnan(times)
    times = checked(times, ~unknown, "times: expected numbers")
    happened = checked_binary("events", happened, None)
    weight = binary_or_nan(happened)
    at_risk = jnp.broadcast_to(jnp.ones(1, bool) if where is None else where, scores.shape)
    of_subjects = functools.partial(_of_subjects, efron=ties == "efron")
    losses = on_automatic_axes(of_subjects, scores, 0)(scores, times, happened == 1, at_risk)
    losses = jnp.where(happened == 0, 0, losses) * weight * one_or_nan(~jnp.any(unknown), scores.dtype)
    return reduce_losses(losses, weight, where, reduction)


def _of_subjects(
    scores: jax.Array, times: jax.Array, happened: jax.Array, at_risk: jax.Array, efron: bool
) -> jax.Array:
    """Returns the loss of each subject as if it had an event at its time."""
    size = scores.shape[0]
    order = jnp.lexsort((-times, ~at_risk))  # the longest time first
    times, happened, valid = times[order], happened[order], at_risk[order]
    ordered = jnp.where(valid, scores[order], -jnp.inf)
    is_new = (times != jnp.roll(times, 1)) | (valid != jnp.roll(valid, 1))
    group = jnp.cumsum(is_new.at[:1].set(True), dtype=jnp.int32) - 1  # one for each distinct time

    def of_group(array: jax.Array) -> jax.Array:
        return jax.ops.segment_sum(array, group, size, indices_are_sorted=True)[group]

    last = jax.ops.segment_max(jnp.arange(size), group, size, indices_are_sorted=True)[group]
    largest, risk = (array[last] for array in cumulative_exponentials(ordered, 0))
    gap = log_ratio(largest, ordered)
    if efron:
        count = jnp.cumsum(happened, dtype=scores.dtype)
        events = of_group(happened.astype(scores.dtype))
        rank = count - 1 - (count[last] - events)  # among the events of the group, from 0
        share = of_group(jnp.where(happened, jnp.exp(-gap), 0)) * inverse_or_zero(risk)
        taken = jnp.where(happened, rank / jnp.maximum(events, 1), 0) * share
        gap = gap + of_group(jnp.log1p(-taken)) / jnp.maximum(events, 1)
    losses = jnp.where(valid, gap + log_of_total(risk), 0)
    return losses[jnp.argsort(order)]
