"""Negative log-likelihoods of values under predicted distributions."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxloss._core.arguments import (
    agree,
    arithmetic_dtype,
    as_array,
    fill_masked,
    mask,
    sharded_like,
    widened,
)
from jaxloss._core.checks import checked, one_or_nan
from jaxloss._core.decorator import compiled, not_negative
from jaxloss._core.derivatives import derivatives
from jaxloss._core.reduction import Reduction, reduce_elementwise


@compiled(static=("log_input", "full", "reduction"), domains={"eps": not_negative})
def poisson_nll_loss(
    predictions: ArrayLike,
    targets: ArrayLike,
    *,
    log_input: bool = True,
    full: bool = False,
    eps: ArrayLike = 1e-8,
    where: ArrayLike | None = None,
    reduction: Reduction = "mean",
) -> jax.Array:
    """Negative log-likelihood of counts under Poisson distributions.

        loss = exp(predictions) - targets · predictions         if predictions are log-rates (the default)
        loss = predictions - targets · log(predictions + eps)   if they are rates (log_input=False)

    The term log(targets!) is omitted, since it does not depend on the predictions. `full` adds Stirling's
    approximation of it, targets · log(targets) - targets + log(2π · targets) / 2, where targets > 1.

    Args:
        predictions: Log-rates, any shape; or rates >= -eps with `log_input=False`. Lower rates give NaN.
        targets: Counts, of the shape of `predictions`. They need not be integers.
        log_input: Whether `predictions` are log-rates.
        full: Whether to add Stirling's approximation.
        eps: Number >= 0 that keeps the logarithm of rate 0 finite. Not used for log-rates.
        where: Mask, broadcast to the shape of `predictions`; see `help(jaxloss)`.
        reduction: "mean" (divides by the number of elements), "sum", "none" or "sum_and_weight".

    Returns:
        A scalar, or an array of the shape of `predictions` for "none"; in nats.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxloss
        >>> rates = jnp.array([0.5, 2.0, 4.0])
        >>> jaxloss.poisson_nll_loss(jnp.log(rates), jnp.array([0, 2, 3]))
        Array(0.3183, dtype=float32)

    Differences from PyTorch:
        * A rate of 0 with target 0 has loss 0, both as a log-rate of -inf and with eps = 0, and an infinite
          rate has loss ∞; PyTorch gives NaN.
        * With `full`, targets <= 0 get the gradient of the other terms; PyTorch's is NaN.
        * A rate below -eps also has gradient NaN. As in PyTorch, negative targets are accepted.

    Source:
        PyTorch documentation: torch.nn.PoissonNLLLoss, torch.nn.functional.poisson_nll_loss.
    """
    predictions, targets = agree(predictions=predictions, targets=targets)
    if not log_input:
        (wide,) = widened(predictions)
        valid = wide + jnp.asarray(eps, wide.dtype) >= 0
        valid = fill_masked(mask(where, predictions), valid, True)
        predictions = checked(predictions, valid, "predictions: expected rates >= -eps")

    def loss(predictions: jax.Array, targets: jax.Array, eps: jax.Array) -> jax.Array:
        short = _from_log_rates(predictions, targets) if log_input else _from_rates(predictions, targets, eps)
        return short + _stirling(targets) if full else short

    return reduce_elementwise(loss, [predictions, targets], [eps], where=where, reduction=reduction)


@compiled(static=("full", "reduction"), domains={"eps": not_negative})
def gaussian_nll_loss(
    predictions: ArrayLike,
    targets: ArrayLike,
    var: ArrayLike,
    *,
    full: bool = False,
    eps: ArrayLike = 1e-6,
    where: ArrayLike | None = None,
    reduction: Reduction = "mean",
) -> jax.Array:
    """Negative log-likelihood of values under normal distributions.

    With v = max(var, eps),

        loss = (log(v) + (predictions - targets)² / v) / 2

    `full` adds the constant log(2π) / 2.

    Args:
        predictions: Predicted means, any shape, in the unit of `targets`.
        targets: True values, of the shape of `predictions`.
        var: Predicted variances >= 0, in the unit of `targets`, squared: of the shape of `predictions`,
            with size 1 on any of its axes, without its last axis, or a single number.
        full: Whether to add the constant.
        eps: Lower bound on the variance, a number >= 0 that receives no gradient. With 0, variances of 0 give
            NaN. The gradient with respect to `var` is taken at v, so that variances below the bound can grow.
        where: Mask, broadcast to the shape of `predictions`; see `help(jaxloss)`.
        reduction: "mean" (divides by the number of elements), "sum", "none" or "sum_and_weight".

    Returns:
        A scalar, or an array of the shape of `predictions` for "none"; in nats.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxloss
        >>> predictions = jnp.array([[1.0, 2.0], [3.0, 4.0]])
        >>> targets = jnp.array([[1.5, 2.0], [2.0, 4.0]])
        >>> jaxloss.gaussian_nll_loss(predictions, targets, jnp.array([0.25, 1.0]))  # a variance for each row
        Array(-0.0966, dtype=float32)

    Differences from PyTorch:
        * A negative variance gives NaN; PyTorch raises. `var` may have size 1 on several axes, or be a
          scalar array or a Python integer.
        * The loss is finite if the squared error overflows but its quotient by the variance does not.

    Source:
        D. A. Nix and A. S. Weigend (1994), Estimating the Mean and Variance of the Target Probability
        Distribution. PyTorch documentation: torch.nn.GaussianNLLLoss,
        torch.nn.functional.gaussian_nll_loss.
    """
    predictions, targets = agree(predictions=predictions, targets=targets)
    var = _variances(var, predictions, targets)
    (wide,) = widened(var)
    valid = (wide >= 0) & (jnp.maximum(wide, jnp.asarray(eps, wide.dtype)) > 0)
    used = mask(where, predictions)
    if used is not None:  # a variance is used if it applies to any unmasked element
        used = jnp.any(used, [axis for axis, size in enumerate(var.shape) if size == 1], keepdims=True)
    valid = fill_masked(used, valid, True)
    var = checked(var, valid, "var: expected variances >= 0, and > 0 where eps is 0")

    def loss(*arguments: jax.Array) -> jax.Array:
        return _gaussian(*arguments) + (0.5 * math.log(2 * math.pi) if full else 0)

    return reduce_elementwise(loss, [predictions, targets, var], [eps], where=where, reduction=reduction)


def _times_log(counts: jax.Array, logs: jax.Array) -> jax.Array:
    """Returns counts · logs, 0 for count 0 at -∞, and finite at ∞, where the rate itself makes the loss ∞."""
    return jnp.where((counts == 0) & (logs == -jnp.inf), 0, counts * jnp.minimum(logs, 1000))


@derivatives(
    lambda predictions, targets: jnp.exp(predictions) - targets,
    lambda predictions, targets: -predictions,
)
def _from_log_rates(predictions: jax.Array, targets: jax.Array) -> jax.Array:
    return jnp.exp(predictions) - _times_log(targets, predictions)


def _log_slope(predictions: jax.Array, targets: jax.Array, eps: jax.Array) -> jax.Array:
    """Returns the slope of -targets · log(predictions + eps) in predictions and eps, 0 for count 0."""
    rates = predictions + eps
    invalid = rates < 0
    quotient = targets / jnp.where(invalid | (targets == 0) & (rates == 0), 1, rates)
    return one_or_nan(~invalid, rates.dtype) - 1 - jnp.where(invalid, 0, quotient)


@derivatives(
    lambda predictions, targets, eps: 1 + _log_slope(predictions, targets, eps),
    lambda predictions, targets, eps: -jnp.log(predictions + eps),
    _log_slope,
)
def _from_rates(predictions: jax.Array, targets: jax.Array, eps: jax.Array) -> jax.Array:
    return predictions - _times_log(targets, jnp.log(predictions + eps))


def _stirling_slope(counts: jax.Array) -> jax.Array:
    above = jnp.maximum(counts, 1)
    return jnp.where(counts > 1, jnp.log(above) + 0.5 / above, 0)


@derivatives(_stirling_slope)
def _stirling(counts: jax.Array) -> jax.Array:
    above = jnp.maximum(counts, 1)
    return jnp.where(counts > 1, above * (jnp.log(above) - 1) + 0.5 * jnp.log(2 * math.pi * above), 0)


def _variances(var: ArrayLike, predictions: jax.Array, targets: jax.Array) -> jax.Array:
    """Returns the variances with the rank of the predictions, and with their sizes or 1."""
    converted, shape = as_array("var", var), predictions.shape
    if not converted.ndim:
        dtype = arithmetic_dtype(predictions, targets, converted)
        return converted.astype(dtype).reshape((1,) * len(shape))
    if converted.shape == shape[:-1]:
        converted = jnp.expand_dims(converted, -1)
    if converted.ndim != len(shape) or any(
        size not in (1, whole) for size, whole in zip(converted.shape, shape, strict=True)
    ):
        raise ValueError(
            f"var must be a number, have the shape of predictions, {shape}, where any size may be 1, "
            f"or have that shape without its last axis, got shape {converted.shape}"
        )
    return sharded_like(predictions, converted)


@jax.custom_jvp
def _floored(var: jax.Array, eps: jax.Array) -> jax.Array:
    """Returns max(var, eps) with the gradient of var alone; NaN if not positive."""
    bounded = jnp.maximum(var, eps)
    return bounded * one_or_nan((var >= 0) & (bounded > 0), var.dtype)


_floored.defjvps(lambda tangent, value, var, eps: tangent, None)


def _pull(predictions: jax.Array, targets: jax.Array, var: jax.Array, eps: jax.Array) -> jax.Array:
    return (predictions - targets) / _floored(var, eps)


@derivatives(
    _pull,
    lambda *arguments: -_pull(*arguments),
    lambda predictions, targets, var, eps: (
        0.5 * (1 / _floored(var, eps) - _pull(predictions, targets, var, eps) ** 2)
    ),
    lambda predictions, targets, var, eps: jnp.zeros_like(predictions),
)
def _gaussian(predictions: jax.Array, targets: jax.Array, var: jax.Array, eps: jax.Array) -> jax.Array:
    error, floored = predictions - targets, _floored(var, eps)
    return 0.5 * (jnp.log(floored) + error * (error / floored))
