"""Losses between predicted and true values."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxloss._core.arguments import agree, fill_masked, mask, widened
from jaxloss._core.checks import checked, one_or_nan
from jaxloss._core.decorator import compiled, not_negative, positive
from jaxloss._core.derivatives import absolute, derivatives, square, weighted
from jaxloss._core.reduction import Reduction, reduce_elementwise


@compiled(static=("reduction",))
def mse_loss(
    predictions: ArrayLike,
    targets: ArrayLike,
    *,
    weight: ArrayLike | None = None,
    where: ArrayLike | None = None,
    reduction: Reduction = "mean",
) -> jax.Array:
    """Mean squared error (L2 loss).

        loss = weight · (predictions - targets)²

    Args:
        predictions: Predicted values, any shape, in the unit of `targets`.
        targets: True values, of the shape of `predictions`.
        weight: Weight of each element, broadcast to the shape of `predictions`. Default: 1.
        where: Mask, broadcast to the shape of `predictions`; see `help(jaxloss)`.
        reduction: "mean" (divides by Σ weight), "sum", "none" or "sum_and_weight".

    Returns:
        A scalar, or an array of the shape of `predictions` for "none"; in the unit of `targets`, squared.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxloss
        >>> predictions = jnp.array([2.5, 0.0, 2.0])
        >>> targets = jnp.array([3.0, -0.5, 2.0])
        >>> jaxloss.mse_loss(predictions, targets)
        Array(0.1667, dtype=float32)

    Differences from PyTorch:
        * `weight` may broadcast; PyTorch's must have the shape of the predictions.

    Source:
        PyTorch documentation: torch.nn.MSELoss, torch.nn.functional.mse_loss.
    """
    arrays = agree(predictions=predictions, targets=targets)
    return reduce_elementwise(
        lambda predictions, targets: square(predictions - targets),
        arrays,
        weight=weight,
        where=where,
        reduction=reduction,
        is_mean_over_weight=True,
    )


@compiled(static=("reduction",))
def l1_loss(
    predictions: ArrayLike,
    targets: ArrayLike,
    *,
    weight: ArrayLike | None = None,
    where: ArrayLike | None = None,
    reduction: Reduction = "mean",
) -> jax.Array:
    """Mean absolute error (L1 loss).

        loss = weight · |predictions - targets|

    with gradient 0 where the two are equal.

    Args:
        predictions: Predicted values, any shape, in the unit of `targets`.
        targets: True values, of the shape of `predictions`.
        weight: Weight of each element, broadcast to the shape of `predictions`. Default: 1.
        where: Mask, broadcast to the shape of `predictions`; see `help(jaxloss)`.
        reduction: "mean" (divides by Σ weight), "sum", "none" or "sum_and_weight".

    Returns:
        A scalar, or an array of the shape of `predictions` for "none"; in the unit of `targets`.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxloss
        >>> predictions = jnp.array([2.5, 0.0, 2.0])
        >>> targets = jnp.array([3.0, -0.5, 2.0])
        >>> jaxloss.l1_loss(predictions, targets, reduction="none")
        Array([0.5, 0.5, 0. ], dtype=float32)

    Differences from PyTorch:
        * `weight` may broadcast; PyTorch's must have the shape of the predictions.
        * Complex numbers are not supported.

    Source:
        PyTorch documentation: torch.nn.L1Loss, torch.nn.functional.l1_loss.
    """
    arrays = agree(predictions=predictions, targets=targets)
    return reduce_elementwise(
        lambda predictions, targets: absolute(predictions - targets),
        arrays,
        weight=weight,
        where=where,
        reduction=reduction,
        is_mean_over_weight=True,
    )


@compiled(static=("reduction",), domains={"beta": not_negative})
def smooth_l1_loss(
    predictions: ArrayLike,
    targets: ArrayLike,
    *,
    beta: ArrayLike = 1.0,
    where: ArrayLike | None = None,
    reduction: Reduction = "mean",
) -> jax.Array:
    """Smooth L1 loss.

    With e = predictions - targets,

        loss = e² / (2 · beta)      where |e| < beta
        loss = |e| - beta / 2       elsewhere

    This is `huber_loss` with delta = beta, divided by beta. With beta = 0 it is `l1_loss`.

    Args:
        predictions: Predicted values, any shape, in the unit of `targets`.
        targets: True values, of the shape of `predictions`.
        beta: Error at which the loss becomes linear, a number >= 0 in the unit of `targets`.
        where: Mask, broadcast to the shape of `predictions`; see `help(jaxloss)`.
        reduction: "mean" (divides by the number of elements), "sum", "none" or "sum_and_weight".

    Returns:
        A scalar, or an array of the shape of `predictions` for "none"; in the unit of `targets`.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxloss
        >>> predictions = jnp.array([2.5, 0.0, 5.0])
        >>> targets = jnp.array([3.0, -0.5, 2.0])
        >>> jaxloss.smooth_l1_loss(predictions, targets, reduction="none")
        Array([0.125, 0.125, 2.5  ], dtype=float32)

    Source:
        R. Girshick (2015), Fast R-CNN (with beta = 1). PyTorch documentation: torch.nn.SmoothL1Loss,
        torch.nn.functional.smooth_l1_loss.
    """
    arrays = agree(predictions=predictions, targets=targets)
    return reduce_elementwise(
        lambda predictions, targets, beta: _smooth_l1(predictions - targets, beta),
        arrays,
        [beta],
        where=where,
        reduction=reduction,
    )


@compiled(static=("reduction",), domains={"delta": positive})
def huber_loss(
    predictions: ArrayLike,
    targets: ArrayLike,
    *,
    delta: ArrayLike = 1.0,
    weight: ArrayLike | None = None,
    where: ArrayLike | None = None,
    reduction: Reduction = "mean",
) -> jax.Array:
    """Huber loss.

    With e = predictions - targets,

        loss = weight · e² / 2                      where |e| < delta
        loss = weight · delta · (|e| - delta / 2)   elsewhere

    Args:
        predictions: Predicted values, any shape, in the unit of `targets`.
        targets: True values, of the shape of `predictions`.
        delta: Error at which the loss becomes linear, a number > 0 in the unit of `targets`.
        weight: Weight of each element, broadcast to the shape of `predictions`. Default: 1.
        where: Mask, broadcast to the shape of `predictions`; see `help(jaxloss)`.
        reduction: "mean" (divides by the number of elements, not by Σ weight, as in PyTorch), "sum", "none"
            or "sum_and_weight". For a mean over Σ weight, pass the weights to `jaxloss.reduce` instead.

    Returns:
        A scalar, or an array of the shape of `predictions` for "none"; in the unit of `targets`, squared.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxloss
        >>> predictions = jnp.array([2.5, 0.0, 5.0])
        >>> targets = jnp.array([3.0, -0.5, 2.0])
        >>> jaxloss.huber_loss(predictions, targets, delta=2.0, reduction="none")
        Array([0.125, 0.125, 4.   ], dtype=float32)

    Differences from PyTorch:
        * `weight` may broadcast; PyTorch's must have the shape of the predictions.

    Source:
        P. J. Huber (1964), Robust Estimation of a Location Parameter. PyTorch documentation:
        torch.nn.HuberLoss, torch.nn.functional.huber_loss.
    """
    arrays = agree(predictions=predictions, targets=targets)
    return reduce_elementwise(
        lambda predictions, targets, delta: _huber(predictions - targets, delta),
        arrays,
        [delta],
        weight=weight,
        where=where,
        reduction=reduction,
    )


@compiled(static=("reduction",), domains={"eps": positive})
def mape_loss(
    predictions: ArrayLike,
    targets: ArrayLike,
    *,
    eps: ArrayLike = 1e-6,
    where: ArrayLike | None = None,
    reduction: Reduction = "mean",
) -> jax.Array:
    """Mean absolute percentage error, as a fraction.

        loss = |predictions - targets| / max(|targets|, eps)

    with gradient 0 where the two are equal.

    Args:
        predictions: Predicted values, any shape, in the unit of `targets`.
        targets: True values, of the shape of `predictions`.
        eps: Lower bound on the magnitude of targets, a number > 0 in the unit of `targets`.
        where: Mask, broadcast to the shape of `predictions`; see `help(jaxloss)`.
        reduction: "mean" (divides by the number of elements), "sum", "none" or "sum_and_weight".

    Returns:
        A scalar, or an array of the shape of `predictions` for "none"; 0.5 means an error of 50 percent.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxloss
        >>> jaxloss.mape_loss(jnp.array([2.0, 5.0]), jnp.array([4.0, -4.0]), reduction="none")
        Array([0.5 , 2.25], dtype=float32)

    Differences from other libraries:
        * Keras's loss is 100 times this one.

    Source:
        scikit-learn documentation: sklearn.metrics.mean_absolute_percentage_error.
    """
    arrays = agree(predictions=predictions, targets=targets)
    return reduce_elementwise(_relative_error, arrays, [eps], where=where, reduction=reduction)


@compiled(static=("reduction",))
def msle_loss(
    predictions: ArrayLike,
    targets: ArrayLike,
    *,
    where: ArrayLike | None = None,
    reduction: Reduction = "mean",
) -> jax.Array:
    """Mean squared logarithmic error.

        loss = (log(1 + predictions) - log(1 + targets))²

    Args:
        predictions: Predicted values >= -1, any shape.
        targets: True values >= -1, of the shape of `predictions`.
        where: Mask, broadcast to the shape of `predictions`; see `help(jaxloss)`.
        reduction: "mean" (divides by the number of elements), "sum", "none" or "sum_and_weight".

    Returns:
        A scalar, or an array of the shape of `predictions` for "none". If one of the two values is -1, the
        loss is infinite; if both are, value and gradient are 0.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxloss
        >>> jaxloss.msle_loss(jnp.array([3.0, -0.5]), jnp.array([0.0, 1.0]), reduction="none")
        Array([1.9218, 1.9218], dtype=float32)

    Differences from other libraries:
        * Keras replaces values below 1e-7 by 1e-7, and scikit-learn raises for values <= -1.

    Source:
        scikit-learn documentation: sklearn.metrics.mean_squared_log_error.
    """
    arrays = agree(predictions=predictions, targets=targets)
    where = mask(where, arrays[0])
    names = ("predictions", "targets")
    arrays = [_checked_above_minus_1(*pair, where) for pair in zip(names, arrays, strict=True)]
    return reduce_elementwise(_squared_log_ratio, arrays, where=where, reduction=reduction)


def _smooth_l1_slope(error: jax.Array, beta: jax.Array) -> jax.Array:
    # beta = 0 is the L1 loss, with slope 0 at 0. At |error| = beta, this slope and its derivative are those
    # of the linear part.
    return jnp.where(jnp.abs(error) >= beta, jnp.sign(error), error / jnp.where(beta == 0, 1, beta))


@derivatives(_smooth_l1_slope, lambda error, beta: -0.5 * _smooth_l1_slope(error, beta) ** 2)
def _smooth_l1(error: jax.Array, beta: jax.Array) -> jax.Array:
    magnitude = jnp.abs(error)
    curved = 0.5 * error * (error / jnp.where(beta == 0, 1, beta))
    return jnp.where(magnitude < beta, curved, magnitude - 0.5 * beta)


@derivatives(
    lambda error, delta: jnp.where(jnp.abs(error) < delta, error, delta * jnp.sign(error)),
    lambda error, delta: jnp.maximum(jnp.abs(error) - delta, 0),
)
def _huber(error: jax.Array, delta: jax.Array) -> jax.Array:
    magnitude = jnp.abs(error)
    return jnp.where(magnitude < delta, 0.5 * error * error, delta * (magnitude - 0.5 * delta))


def _magnitude(targets: jax.Array, eps: jax.Array) -> jax.Array:
    return jnp.maximum(absolute(targets), eps)


def _relative_slope(predictions: jax.Array, targets: jax.Array, eps: jax.Array) -> jax.Array:
    return jnp.sign(predictions - targets) / _magnitude(targets, eps)


def _slope_of_magnitude(predictions: jax.Array, targets: jax.Array, eps: jax.Array) -> jax.Array:
    return -_relative_error(predictions, targets, eps) / _magnitude(targets, eps)


@derivatives(
    _relative_slope,
    lambda p, t, eps: (
        -_relative_slope(p, t, eps)
        + jnp.where(jnp.abs(t) > eps, jnp.sign(t) * _slope_of_magnitude(p, t, eps), 0)
    ),
    lambda p, t, eps: jnp.where(jnp.abs(t) > eps, 0, _slope_of_magnitude(p, t, eps)),
)
def _relative_error(predictions: jax.Array, targets: jax.Array, eps: jax.Array) -> jax.Array:
    error = jnp.abs(predictions - targets) / _magnitude(targets, eps)
    return jnp.where(jnp.isinf(targets) & jnp.isfinite(predictions), 1, error)


def _checked_above_minus_1(name: str, array: jax.Array, where: jax.Array | None) -> jax.Array:
    """Returns an array; under `checkify` an unmasked number below -1 is an error."""
    (wide,) = widened(array)
    return checked(array, fill_masked(where, wide >= -1, True), f"{name}: expected numbers >= -1")


def _inverse(number: jax.Array, other: jax.Array) -> jax.Array:
    """Returns 1 / (1 + number), and 0 where both numbers are -1."""
    is_both = (number == -1) & (other == -1)
    return jnp.where(is_both, 0, 1 / (1 + jnp.where(is_both, 0, number)))


@derivatives(lambda p, t: _inverse(p, t), lambda p, t: -_inverse(t, p))
def _log_ratio(predictions: jax.Array, targets: jax.Array) -> jax.Array:
    """Returns log(1 + predictions) - log(1 + targets) without cancellation; NaN below -1."""
    smaller = jnp.minimum(predictions, targets)
    is_equal = predictions == targets
    ratio = jnp.where(is_equal, 0, jnp.abs(predictions - targets) / jnp.where(is_equal, 1, 1 + smaller))
    return jnp.sign(predictions - targets) * jnp.log1p(ratio) * one_or_nan(smaller >= -1, smaller.dtype)


@derivatives(
    lambda p, t: 2 * weighted(_inverse(p, t) ** 2, 1 - _log_ratio(p, t)),
    lambda p, t: -2 * _inverse(p, t) * _inverse(t, p),
)
def _squared_log_slope(number: jax.Array, other: jax.Array) -> jax.Array:
    return 2 * weighted(_inverse(number, other), _log_ratio(number, other))


@derivatives(lambda p, t: _squared_log_slope(p, t), lambda p, t: _squared_log_slope(t, p))
def _squared_log_ratio(predictions: jax.Array, targets: jax.Array) -> jax.Array:
    return _log_ratio(predictions, targets) ** 2
