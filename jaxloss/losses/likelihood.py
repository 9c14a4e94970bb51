"""Losses of predicted distributions over numbers: how unlikely they make the true values."""

import math

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxloss._core.arguments import agree, arithmetic_dtype, as_array, hide, mask, widened
from jaxloss._core.checks import checked
from jaxloss._core.decorator import compiled, not_negative
from jaxloss._core.derivatives import derivatives
from jaxloss._core.logarithms import log
from jaxloss._core.reduction import Reduction, reduce_each


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
    """Measures how unlikely counts are under Poisson distributions with the predicted rates.

        loss = exp(predictions) - targets · predictions         for the logarithms of the rates
        loss = predictions - targets · log(predictions + eps)   for the rates, with log_input=False

    This is the negative log-likelihood without log(targets!), which no prediction changes. `full` adds
    Stirling's approximation of it where it is good:

        targets · log(targets) - targets + log(2π · targets) / 2   where targets > 1

    Args:
        predictions: Logarithms of rates, real numbers of any shape; or rates >= -eps with `log_input=False`.
        targets: Counts, of the shape of `predictions`; they need not be whole numbers.
        log_input: Whether `predictions` are logarithms of the rates.
        full: Whether to add Stirling's term.
        eps: What keeps the logarithm of a rate of 0 finite, a number >= 0 in the unit of the rates. Traced:
            it can be scheduled or swept without compiling again. Without effect on logarithms of rates.
        where: Boolean mask, broadcast to the shape of `predictions`. What lies behind False has no influence
            on value or gradient, NaN included, and does not count in the mean.
        reduction: "mean" for Σ loss / number of elements, "sum", "none" for the loss of each element, or
            "sum_and_weight" for the pair (Σ loss, number of elements), which adds up over micro-batches and
            devices to the exact mean.

    Returns:
        A scalar for "mean" and "sum", an array of the shape of `predictions` for "none", two scalars for
        "sum_and_weight". The dtype is float32, or float64 where predictions or targets are; the unit is nats.
        A rate below -eps gives NaN in the value and in the gradient, and so does, of rates, a negative `eps`
        that is an array; both are errors under `jax.experimental.checkify`. The mean over no element is NaN
        with gradient 0. An empty sum is 0.

    Raises:
        TypeError: An argument is not an array of real numbers, or `where` is not boolean.
        ValueError: `predictions` and `targets` differ in shape, `where` does not broadcast to that shape,
            `eps` is a negative Python number, or the reduction is unknown.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxloss
        >>> rates = jnp.array([0.5, 2.0, 4.0])
        >>> jaxloss.poisson_nll_loss(jnp.log(rates), jnp.array([0, 2, 3]))
        Array(0.3183, dtype=float32)

    Differences from PyTorch:
        * A rate of 0 with target 0 costs 0, given as logarithm -inf or with eps = 0, and an infinite rate
          costs ∞, where PyTorch gives NaN.
        * With `full` the gradient in a target of 0 or below is that of the other terms, where PyTorch gives
          NaN.
        * A rate below -eps has gradient NaN and not only value NaN.
        * Predictions and targets never broadcast against each other: (3, 1) with (3,) is an error.
        * bfloat16 and float16 inputs are computed in float32, and the loss stays float32.
        * As in PyTorch negative targets are not refused, though no count is negative.

    Source:
        PyTorch documentation: torch.nn.PoissonNLLLoss, torch.nn.functional.poisson_nll_loss.
    """
    predictions, targets = agree(predictions=predictions, targets=targets)
    if not log_input:
        (wide,) = widened(predictions)
        valid = wide + jnp.asarray(eps, wide.dtype) >= 0
        valid = hide(mask(where, predictions.shape), valid, True)
        predictions = checked(predictions, valid, "predictions: expected rates >= -eps")

    def loss(predictions: jax.Array, targets: jax.Array, eps: jax.Array) -> jax.Array:
        predictions, targets = widened(predictions, targets)  # once, and the gradient is rounded once
        short = _from_log_rates(predictions, targets) if log_input else _from_rates(predictions, targets, eps)
        return short + _stirling(targets) if full else short

    return reduce_each(loss, [predictions, targets], [eps], where=where, reduction=reduction)


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
    """Measures how unlikely values are under normal distributions with the predicted means and variances.

    With v = max(var, eps),

        loss = (log(v) + (predictions - targets)² / v) / 2

    This is the negative log-likelihood without its constant log(2π) / 2, which `full` adds.

    Args:
        predictions: Predicted means, real numbers of any shape, in the unit of `targets`.
        targets: The true values, of the shape of `predictions`.
        var: Predicted variances >= 0, in the unit of `targets`, squared: of the shape of `predictions`; of
            that shape with size 1 on any of its axes, or without its last axis, for a variance that others
            share; or one number for all.
        full: Whether to add the constant.
        eps: The least variance that is reckoned with, a number >= 0. The gradient in `var` takes no notice of
            the bound: it is that at v, so that a variance below `eps` can grow again. Traced: it can be
            scheduled or swept without compiling again, but has no derivative.
        where: Boolean mask, broadcast to the shape of `predictions`. What lies behind False has no influence
            on value or gradient, NaN included, and does not count in the mean.
        reduction: "mean" for Σ loss / number of elements, "sum", "none" for the loss of each element, or
            "sum_and_weight" for the pair (Σ loss, number of elements), which adds up over micro-batches and
            devices to the exact mean.

    Returns:
        A scalar for "mean" and "sum", an array of the shape of `predictions` for "none", two scalars for
        "sum_and_weight". The dtype is float32, or float64 where an argument is; the unit is nats. A negative
        variance, or one of 0 where `eps` is 0, gives NaN in the value and in the gradient, and an error under
        `jax.experimental.checkify`. The mean over no element is NaN with gradient 0. An empty sum is 0.

    Raises:
        TypeError: An argument is not an array of real numbers, or `where` is not boolean.
        ValueError: `predictions` and `targets` differ in shape, `var` has none of the shapes above, `where`
            does not broadcast to the shape of `predictions`, `eps` is a negative Python number, or the
            reduction is unknown.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxloss
        >>> predictions = jnp.array([[1.0, 2.0], [3.0, 4.0]])
        >>> targets = jnp.array([[1.5, 2.0], [2.0, 4.0]])
        >>> jaxloss.gaussian_nll_loss(predictions, targets, jnp.array([0.25, 1.0]))  # a variance for each row
        Array(-0.0966, dtype=float32)

    Differences from PyTorch:
        * A negative variance is NaN, or an error under checkify, where PyTorch raises.
        * `var` may have size 1 on several axes, or be a scalar array or a Python integer.
        * Predictions and targets never broadcast against each other: (3, 1) with (3,) is an error.
        * A square of the error that exceeds the dtype does no harm where its quotient with the variance fits.
        * bfloat16 and float16 inputs are computed in float32, and the loss stays float32.

    Source:
        D. A. Nix and A. S. Weigend (1994), Estimating the Mean and Variance of the Target Probability
        Distribution. PyTorch documentation: torch.nn.GaussianNLLLoss, torch.nn.functional.gaussian_nll_loss.
    """
    predictions, targets = agree(predictions=predictions, targets=targets)
    var = _variances(var, predictions, targets)
    (wide,) = widened(var)
    valid = (wide >= 0) & (jnp.maximum(wide, jnp.asarray(eps, wide.dtype)) > 0)
    used = mask(where, predictions.shape)
    if used is not None:  # a variance is, if it holds for any element that counts
        used = jnp.any(used, [axis for axis, size in enumerate(var.shape) if size == 1], keepdims=True)
    valid = hide(used, valid, True)
    var = checked(var, valid, "var: expected variances >= 0, and > 0 where eps is 0")

    def loss(*arguments: jax.Array) -> jax.Array:
        return _gaussian(*arguments) + (0.5 * math.log(2 * math.pi) if full else 0)

    return reduce_each(loss, [predictions, targets, var], [eps], where=where, reduction=reduction)


def _times_log(counts: jax.Array, logs: jax.Array) -> jax.Array:
    """Returns counts · logs: 0 for no counts even at -∞, and finite at ∞, where what grows faster is ∞."""
    return jnp.where((counts == 0) & (logs == -jnp.inf), 0, counts * jnp.minimum(logs, 1000))


@derivatives(
    lambda predictions, targets: jnp.exp(predictions) - targets,
    lambda predictions, targets: -predictions,
)
def _from_log_rates(predictions: jax.Array, targets: jax.Array) -> jax.Array:
    return jnp.exp(predictions) - _times_log(targets, predictions)


def _log_slope(predictions: jax.Array, targets: jax.Array, eps: jax.Array) -> jax.Array:
    """Returns the slope of -targets · log(predictions + eps) in predictions and in eps: 0 for no counts."""
    rates = predictions + eps
    quotient = targets / jnp.where((targets == 0) & (rates == 0), 1, rates)
    return jnp.where(rates < 0, jnp.nan, -quotient)


@derivatives(
    lambda predictions, targets, eps: 1 + _log_slope(predictions, targets, eps),
    lambda predictions, targets, eps: -log(predictions + eps),
    _log_slope,
)
def _from_rates(predictions: jax.Array, targets: jax.Array, eps: jax.Array) -> jax.Array:
    return predictions - _times_log(targets, log(predictions + eps))


def _stirling_slope(counts: jax.Array) -> jax.Array:
    above = jnp.maximum(counts, 1)
    return jnp.where(counts > 1, log(above) + 0.5 / above, 0)


@derivatives(_stirling_slope)
def _stirling(counts: jax.Array) -> jax.Array:
    above = jnp.maximum(counts, 1)
    return jnp.where(counts > 1, above * (log(above) - 1) + 0.5 * log(2 * math.pi * above), 0)


def _variances(var: ArrayLike, predictions: jax.Array, targets: jax.Array) -> jax.Array:
    """Returns the variances in a shape that stretches axis by axis, or refuses what does not."""
    converted, shape = as_array("var", var), predictions.shape
    if not converted.ndim:
        dtype = arithmetic_dtype(predictions, targets, converted)
        return converted.astype(dtype).reshape((1,) * len(shape))
    if converted.shape == shape[:-1]:
        return jnp.expand_dims(converted, -1)
    if converted.ndim != len(shape) or any(
        size not in (1, whole) for size, whole in zip(converted.shape, shape, strict=True)
    ):
        raise ValueError(
            f"var must be a number, or of the shape of predictions {shape}, with size 1 on some axes, "
            f"or of that shape without its last axis, got shape {converted.shape}"
        )
    return converted


@jax.custom_jvp
def _floored(var: jax.Array, eps: jax.Array) -> jax.Array:
    """max(var, eps), through which the gradient passes as if there were no bound; NaN if not positive."""
    bounded = jnp.maximum(var, eps)
    return jnp.where((var >= 0) & (bounded > 0), bounded, jnp.nan)


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
    return 0.5 * (log(floored) + error * (error / floored))
