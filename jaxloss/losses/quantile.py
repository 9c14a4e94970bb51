"""Losses for quantiles, expectiles and predicted distributions."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from jaxloss._core.arguments import (
    agree,
    agree_except_last_axis,
    arithmetic_dtype,
    broadcastable,
    fill_masked,
    mask,
    masked_items,
    sharded_like,
    widened,
)
from jaxloss._core.checks import checked, one_or_nan
from jaxloss._core.decorator import compiled, fraction, fractions
from jaxloss._core.derivatives import derivatives, weighted
from jaxloss._core.reduction import Reduction, reduce_elementwise, reduce_losses


@compiled(static=("reduction",), domains={"quantiles": fractions})
def quantile_loss(
    predictions: ArrayLike,
    targets: ArrayLike,
    *,
    quantiles: ArrayLike = 0.5,
    where: ArrayLike | None = None,
    reduction: Reduction = "mean",
) -> jax.Array:
    """Quantile loss (pinball loss), minimized by a quantile of the targets.

    With e = targets - predictions,

        loss = max(quantiles · e, (quantiles - 1) · e)

    with gradient 0 at e = 0.

    Args:
        predictions: Predicted quantiles, any shape, in the unit of `targets`. If `quantiles` has shape (Q,),
            shape (..., Q); a mesh with `Explicit` axes must not shard the last axis.
        targets: True values, of the shape of `predictions`, or (...) if `quantiles` has shape (Q,).
        quantiles: A number in [0, 1], or an array (Q,) of them.
        where: Mask, broadcast to the shape of `predictions`; see `help(jaxloss)`.
        reduction: "mean" (divides by the number of predictions), "sum", "none" or "sum_and_weight".

    Returns:
        A scalar, or an array of the shape of `predictions` for "none"; in the unit of `targets`.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxloss
        >>> predictions = jnp.array([[1.0, 2.0, 4.0], [0.0, 3.0, 5.0]])
        >>> targets, quantiles = jnp.array([2.0, 6.0]), jnp.array([0.25, 0.5, 0.75])
        >>> jaxloss.quantile_loss(predictions, targets, quantiles=quantiles, reduction="none")
        Array([[0.25, 0.  , 0.5 ],
               [1.5 , 1.5 , 0.75]], dtype=float32)

    Differences from other libraries:
        * pytorch-forecasting's loss is twice this one.

    Source:
        R. Koenker and G. Bassett (1978), Regression Quantiles. scikit-learn documentation:
        sklearn.metrics.mean_pinball_loss.
    """
    if jnp.ndim(quantiles):
        predictions, targets = agree_except_last_axis(predictions=predictions, targets=targets)
    else:
        predictions, targets = agree(predictions=predictions, targets=targets)
    quantiles = jnp.asarray(quantiles, arithmetic_dtype(predictions, targets))
    if quantiles.ndim and quantiles.shape != predictions.shape[-1:]:
        raise ValueError(
            f"quantiles must be a number or have the shape of the last axis of predictions, "
            f"got quantiles {quantiles.shape} and predictions {predictions.shape}"
        )
    quantiles = broadcastable("quantiles", quantiles, predictions)
    return reduce_elementwise(
        lambda predictions, targets, quantiles: _pinball(targets - predictions, quantiles),
        [predictions, targets, quantiles],
        where=where,
        reduction=reduction,
    )


@compiled(static=("reduction",), domains={"expectile": fraction})
def expectile_loss(
    predictions: ArrayLike,
    targets: ArrayLike,
    *,
    expectile: ArrayLike = 0.5,
    where: ArrayLike | None = None,
    reduction: Reduction = "mean",
) -> jax.Array:
    """Expectile loss, a squared error with different weights for positive and negative errors.

    With e = targets - predictions,

        loss = expectile · e²          where e >= 0
        loss = (1 - expectile) · e²    elsewhere

    Args:
        predictions: Predicted expectiles, any shape, in the unit of `targets`.
        targets: True values, of the shape of `predictions`.
        expectile: A number in [0, 1]. With 0.5 the loss is half of `mse_loss`.
        where: Mask, broadcast to the shape of `predictions`; see `help(jaxloss)`.
        reduction: "mean" (divides by the number of elements), "sum", "none" or "sum_and_weight".

    Returns:
        A scalar, or an array of the shape of `predictions` for "none"; in the unit of `targets`, squared.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxloss
        >>> predictions, targets = jnp.array([1.0, 1.0]), jnp.array([3.0, -1.0])
        >>> jaxloss.expectile_loss(predictions, targets, expectile=0.75, reduction="none")
        Array([3., 1.], dtype=float32)

    Source:
        W. K. Newey and J. L. Powell (1987), Asymmetric Least Squares Estimation and Testing. I. Kostrikov et
        al. (2022), Offline Reinforcement Learning with Implicit Q-Learning.
    """
    arrays = agree(predictions=predictions, targets=targets)
    return reduce_elementwise(
        lambda predictions, targets, expectile: _asymmetric_square(targets - predictions, expectile),
        arrays,
        [expectile],
        where=where,
        reduction=reduction,
    )


@compiled(static=("fair", "reduction"))
def crps_ensemble_loss(
    predictions: ArrayLike,
    targets: ArrayLike,
    *,
    fair: bool = False,
    where: ArrayLike | None = None,
    reduction: Reduction = "mean",
) -> jax.Array:
    """Continuous ranked probability score of an ensemble.

    With the members x of an ensemble of size M and its target y,

        loss = Σ_i |x_i - y| / M - Σ_ij |x_i - x_j| / (2 · M²)

    or, if `fair`, with 2 · M · (M - 1) in place of 2 · M². Ties have slope 0.

    Args:
        predictions: Members of the ensembles, shape (..., M), in the unit of `targets`. A mesh with
            `Explicit` axes must not shard the members.
        targets: True values, shape (...).
        fair: Whether the loss is unbiased for a finite ensemble, static. For one member, the loss is the
            absolute error in both cases.
        where: Mask, broadcast to the shape of `targets`; see `help(jaxloss)`.
        reduction: "mean" (divides by the number of targets), "sum", "none" or "sum_and_weight".

    Returns:
        A scalar, or an array of the shape of `targets` for "none"; in the unit of `targets`.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxloss
        >>> predictions, targets = jnp.array([[0.0, 2.0], [1.0, 1.0]]), jnp.array([1.0, 3.0])
        >>> jaxloss.crps_ensemble_loss(predictions, targets, reduction="none")
        Array([0.5, 2. ], dtype=float32)

    Source:
        T. Gneiting and A. E. Raftery (2007), Strictly Proper Scoring Rules, Prediction, and Estimation. C.
        Ferro (2014), Fair Scores for Ensemble Forecasts. scoringrules documentation:
        scoringrules.crps_ensemble.
    """
    members, targets = agree_except_last_axis(predictions=predictions, targets=targets)
    if not members.shape[-1]:
        raise ValueError(f"predictions must have at least one member, got predictions {members.shape}")
    (members, targets), where = masked_items([members, targets], 1, where)
    lead = _lead(lax.stop_gradient(members))  # before widening: sorting moves fewer bytes
    members, targets = widened(members, targets)
    error = members - targets
    losses = jnp.sum(weighted(_slope_of_crps(lead, error, fair), error), -1)
    return reduce_losses(losses, None, where, reduction)


@compiled(static=("reduction",))
def crps_normal_loss(
    predictions: ArrayLike,
    targets: ArrayLike,
    scale: ArrayLike,
    *,
    where: ArrayLike | None = None,
    reduction: Reduction = "mean",
) -> jax.Array:
    """Continuous ranked probability score of a normal distribution.

    With z = (targets - predictions) / scale and the standard normal density φ and distribution function Φ,

        loss = scale · (z · (2 · Φ(z) - 1) + 2 · φ(z) - 1 / sqrt(π))

    and |targets - predictions| for scale 0.

    Args:
        predictions: Predicted means, any shape, in the unit of `targets`.
        targets: True values, of the shape of `predictions`.
        scale: Predicted standard deviations >= 0, of the shape of `predictions`. At 0 second derivatives
            are 0.
        where: Mask, broadcast to the shape of `predictions`; see `help(jaxloss)`.
        reduction: "mean" (divides by the number of elements), "sum", "none" or "sum_and_weight".

    Returns:
        A scalar, or an array of the shape of `predictions` for "none"; in the unit of `targets`.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxloss
        >>> predictions, targets, scale = jnp.zeros(3), jnp.array([0.0, 2.0, 2.0]), jnp.array([1.0, 1.0, 0.0])
        >>> jaxloss.crps_normal_loss(predictions, targets, scale, reduction="none")
        Array([0.2337, 1.4528 , 2.     ], dtype=float32)

    Source:
        T. Gneiting et al. (2005), Calibrated Probabilistic Forecasting Using Ensemble Model Output Statistics
        and Minimum CRPS Estimation. scoringrules documentation: scoringrules.crps_normal.
    """
    predictions, targets, scale = agree(predictions=predictions, targets=targets, scale=scale)
    where = mask(where, predictions)
    (wide,) = widened(scale)
    scale = checked(scale, fill_masked(where, wide >= 0, True), "scale: expected numbers >= 0")
    return reduce_elementwise(
        lambda predictions, targets, scale: _crps_normal(
            targets - predictions, scale * one_or_nan(scale >= 0, scale.dtype)
        ),
        [predictions, targets, scale],
        where=where,
        reduction=reduction,
    )


def _share(error: jax.Array, quantile: jax.Array) -> jax.Array:
    return jnp.where(error > 0, quantile, 1 - quantile)


@derivatives(
    lambda error, quantile: jnp.sign(error) * _share(error, quantile),
    lambda error, quantile: error,
)
def _pinball(error: jax.Array, quantile: jax.Array) -> jax.Array:
    return weighted(_share(error, quantile), jnp.abs(error))


@derivatives(
    lambda error, expectile: 2 * weighted(_weight(error, expectile), error),
    lambda error, expectile: jnp.sign(error) * error * error,
)
def _asymmetric_square(error: jax.Array, expectile: jax.Array) -> jax.Array:
    return weighted(_weight(error, expectile), error * error)


def _weight(error: jax.Array, expectile: jax.Array) -> jax.Array:
    return jnp.where(error < 0, 1 - expectile, expectile)


def _slope_of_crps(lead: jax.Array, error: jax.Array, fair: bool) -> jax.Array:
    """Returns the slope of the score in each member, which is constant between ties.

    The score is the sum of the slopes times the errors, in which no large terms cancel.
    """
    size = error.shape[-1]
    pairs = max(size - 1, 1) if fair else size
    sign = jnp.sign(lax.stop_gradient(error))
    return (pairs * sign - lead.astype(error.dtype)) / (pairs * size)


def _lead(members: jax.Array) -> jax.Array:
    """Returns the number of smaller members minus the number of larger members, for each member."""
    last, size = members.ndim - 1, members.shape[-1]
    slots = sharded_like(members, lax.broadcasted_iota(jnp.int32, members.shape, last))
    ordered, origins = lax.sort((members, slots), num_keys=1)
    is_new = ordered != jnp.roll(ordered, 1, -1)
    first = lax.cummax(jnp.where(is_new, slots, 0), last)
    is_last = jnp.roll(is_new, -1, -1) | (slots == size - 1)
    end = lax.cummin(jnp.where(is_last, slots + 1, size), last, reverse=True)
    _, lead = lax.sort((origins, first + end - size), num_keys=1)
    return lead


def _standardized(error: jax.Array, scale: jax.Array) -> jax.Array:
    """Returns error / scale, clipped where the normal density is 0."""
    is_sure = scale == 0
    ratio = jnp.where(is_sure, jnp.sign(error) * 100, error / jnp.where(is_sure, 1, scale))
    return jnp.clip(ratio, -100, 100)


def _density(error: jax.Array, scale: jax.Array) -> jax.Array:
    """Returns 2 · φ(z)."""
    z = _standardized(error, scale)
    return math.sqrt(2 / math.pi) * jnp.exp(-0.5 * z * z)


def _curvature(error: jax.Array, scale: jax.Array) -> jax.Array:
    is_sure = scale == 0
    return jnp.where(is_sure, 0, _density(error, scale) / jnp.where(is_sure, 1, scale))


@derivatives(
    _curvature,
    lambda error, scale: -_standardized(error, scale) * _curvature(error, scale),
)
def _centered_probability(error: jax.Array, scale: jax.Array) -> jax.Array:
    """Returns 2 · Φ(z) - 1."""
    return lax.erf(_standardized(error, scale) * math.sqrt(0.5))


@derivatives(
    lambda error, scale: -_standardized(error, scale) * _curvature(error, scale),
    lambda error, scale: _standardized(error, scale) ** 2 * _curvature(error, scale),
)
def _slope_in_scale(error: jax.Array, scale: jax.Array) -> jax.Array:
    return _density(error, scale) - math.sqrt(1 / math.pi)


@derivatives(_centered_probability, _slope_in_scale)
def _crps_normal(error: jax.Array, scale: jax.Array) -> jax.Array:
    return error * _centered_probability(error, scale) + scale * _slope_in_scale(error, scale)
