"""Losses between predicted and true values."""

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxloss._core.arguments import agree
from jaxloss._core.decorator import compiled, not_negative, positive
from jaxloss._core.derivatives import derivatives
from jaxloss._core.reduction import Reduction, reduce_each


@compiled(static=("reduction",))
def mse_loss(
    predictions: ArrayLike,
    targets: ArrayLike,
    *,
    weight: ArrayLike | None = None,
    where: ArrayLike | None = None,
    reduction: Reduction = "mean",
) -> jax.Array:
    """Measures the squared error between predictions and targets.

    loss = weight · (predictions - targets)²

    Args:
        predictions: What the model predicts, real numbers of any shape, in the unit of `targets`.
        targets: The true values, of the shape of `predictions`.
        weight: How much each element counts, broadcast to the shape of `predictions`. Default: 1 each.
        where: Boolean mask, broadcast to the shape of `predictions`. What lies behind False has no influence
            on value or gradient, NaN included, and does not count in the mean.
        reduction: "mean" for Σ loss / Σ weight, "sum", "none" for the loss of each element, or
            "sum_and_weight" for the pair (Σ loss, Σ weight), which adds up over micro-batches and devices to
            the exact mean.

    Returns:
        A scalar for "mean" and "sum", an array of the shape of `predictions` for "none", two scalars for
        "sum_and_weight". The dtype is float32, or float64 where predictions or targets are; the unit is that
        of `targets`, squared. Where Σ weight is 0 the mean is NaN with gradient 0. An empty sum is 0.

    Raises:
        TypeError: An argument is not an array of real numbers, or `where` is not boolean.
        ValueError: `predictions` and `targets` differ in shape, `weight` or `where` does not broadcast to
            that shape, or the reduction is unknown.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxloss
        >>> predictions = jnp.array([2.5, 0.0, 2.0])
        >>> targets = jnp.array([3.0, -0.5, 2.0])
        >>> jaxloss.mse_loss(predictions, targets)
        Array(0.1667, dtype=float32)

    Differences from PyTorch:
        * Predictions and targets never broadcast against each other: (3, 1) with (3,) is an error. `weight`
          may broadcast, PyTorch's may not.
        * bfloat16 and float16 inputs are computed in float32, and the loss stays float32.
        * Where the weights sum to 0, PyTorch's gradient of the mean is NaN.

    Source:
        PyTorch documentation: torch.nn.MSELoss, torch.nn.functional.mse_loss.
    """
    arrays = agree(predictions=predictions, targets=targets)
    return reduce_each(
        _squared, arrays, weight=weight, where=where, reduction=reduction, is_mean_over_weight=True
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
    """Measures the absolute error between predictions and targets.

    loss = weight · |predictions - targets|, with gradient 0 where the two are equal.

    Args:
        predictions: What the model predicts, real numbers of any shape, in the unit of `targets`.
        targets: The true values, of the shape of `predictions`.
        weight: How much each element counts, broadcast to the shape of `predictions`. Default: 1 each.
        where: Boolean mask, broadcast to the shape of `predictions`. What lies behind False has no influence
            on value or gradient, NaN included, and does not count in the mean.
        reduction: "mean" for Σ loss / Σ weight, "sum", "none" for the loss of each element, or
            "sum_and_weight" for the pair (Σ loss, Σ weight), which adds up over micro-batches and devices to
            the exact mean.

    Returns:
        A scalar for "mean" and "sum", an array of the shape of `predictions` for "none", two scalars for
        "sum_and_weight". The dtype is float32, or float64 where predictions or targets are; the unit is that
        of `targets`. Where Σ weight is 0 the mean is NaN with gradient 0. An empty sum is 0.

    Raises:
        TypeError: An argument is not an array of real numbers, or `where` is not boolean.
        ValueError: `predictions` and `targets` differ in shape, `weight` or `where` does not broadcast to
            that shape, or the reduction is unknown.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxloss
        >>> predictions = jnp.array([2.5, 0.0, 2.0])
        >>> targets = jnp.array([3.0, -0.5, 2.0])
        >>> jaxloss.l1_loss(predictions, targets, reduction="none")
        Array([0.5, 0.5, 0. ], dtype=float32)

    Differences from PyTorch:
        * Predictions and targets never broadcast against each other: (3, 1) with (3,) is an error. `weight`
          may broadcast, PyTorch's may not.
        * bfloat16 and float16 inputs are computed in float32, and the loss stays float32.
        * Where the weights sum to 0, PyTorch's gradient of the mean is NaN.
        * Complex numbers are refused.

    Source:
        PyTorch documentation: torch.nn.L1Loss, torch.nn.functional.l1_loss.
    """
    arrays = agree(predictions=predictions, targets=targets)
    return reduce_each(
        _absolute_error, arrays, weight=weight, where=where, reduction=reduction, is_mean_over_weight=True
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
    """Measures the absolute error, rounded off to a parabola where the error is small.

    With e = predictions - targets,

        loss = e² / (2 · beta)      where |e| < beta
        loss = |e| - beta / 2       elsewhere

    so the slope never exceeds 1. It is `huber_loss` with delta = beta, divided by beta; with beta = 0 it is
    `l1_loss`.

    Args:
        predictions: What the model predicts, real numbers of any shape, in the unit of `targets`.
        targets: The true values, of the shape of `predictions`.
        beta: The error at which the parabola ends, a number >= 0 in the unit of `targets`. Traced: it can be
            scheduled, learned or swept without compiling again.
        where: Boolean mask, broadcast to the shape of `predictions`. What lies behind False has no influence
            on value or gradient, NaN included, and does not count in the mean.
        reduction: "mean" for Σ loss / number of elements, "sum", "none" for the loss of each element, or
            "sum_and_weight" for the pair (Σ loss, number of elements), which adds up over micro-batches and
            devices to the exact mean.

    Returns:
        A scalar for "mean" and "sum", an array of the shape of `predictions` for "none", two scalars for
        "sum_and_weight". The dtype is float32, or float64 where predictions or targets are; the unit is that
        of `targets`. The mean over no element is NaN with gradient 0. An empty sum is 0. A negative `beta`
        that is an array gives NaN, and an error under `jax.experimental.checkify`.

    Raises:
        TypeError: An argument is not an array of real numbers, or `where` is not boolean.
        ValueError: `predictions` and `targets` differ in shape, `where` does not broadcast to that shape,
            `beta` is a negative Python number, or the reduction is unknown.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxloss
        >>> predictions = jnp.array([2.5, 0.0, 5.0])
        >>> targets = jnp.array([3.0, -0.5, 2.0])
        >>> jaxloss.smooth_l1_loss(predictions, targets, reduction="none")
        Array([0.125, 0.125, 2.5  ], dtype=float32)

    Differences from PyTorch:
        * Predictions and targets never broadcast against each other: (3, 1) with (3,) is an error.
        * bfloat16 and float16 inputs are computed in float32, and the loss stays float32.
        * The loss has a derivative in `beta`.

    Source:
        R. Girshick (2015), Fast R-CNN, where beta is 1. PyTorch documentation: torch.nn.SmoothL1Loss,
        torch.nn.functional.smooth_l1_loss.
    """
    arrays = agree(predictions=predictions, targets=targets)
    return reduce_each(_smooth_l1, arrays, [beta], where=where, reduction=reduction)


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
    """Measures the squared error up to a bound, and from there on the absolute error.

    With e = predictions - targets,

        loss = weight · e² / 2                      where |e| < delta
        loss = weight · delta · (|e| - delta / 2)   elsewhere

    so an outlier pulls no harder than an error of size delta.

    Args:
        predictions: What the model predicts, real numbers of any shape, in the unit of `targets`.
        targets: The true values, of the shape of `predictions`.
        delta: The error at which the parabola ends, a number > 0 in the unit of `targets`. Traced: it can be
            scheduled, learned or swept without compiling again.
        weight: How much each element counts, broadcast to the shape of `predictions`. Default: 1 each.
        where: Boolean mask, broadcast to the shape of `predictions`. What lies behind False has no influence
            on value or gradient, NaN included, and does not count in the mean.
        reduction: "mean" for Σ loss / number of elements, "sum", "none" for the loss of each element, or
            "sum_and_weight" for the pair (Σ loss, number of elements), which adds up over micro-batches and
            devices to the exact mean. As in PyTorch the weights are not in the denominator; for a mean over
            Σ weight, give them to `jaxloss.reduce`.

    Returns:
        A scalar for "mean" and "sum", an array of the shape of `predictions` for "none", two scalars for
        "sum_and_weight". The dtype is float32, or float64 where predictions or targets are; the unit is that
        of `targets`, squared. The mean over no element is NaN with gradient 0. An empty sum is 0. A `delta`
        <= 0 that is an array gives NaN, and an error under `jax.experimental.checkify`.

    Raises:
        TypeError: An argument is not an array of real numbers, or `where` is not boolean.
        ValueError: `predictions` and `targets` differ in shape, `weight` or `where` does not broadcast to
            that shape, `delta` is a Python number <= 0, or the reduction is unknown.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxloss
        >>> predictions = jnp.array([2.5, 0.0, 5.0])
        >>> targets = jnp.array([3.0, -0.5, 2.0])
        >>> jaxloss.huber_loss(predictions, targets, delta=2.0, reduction="none")
        Array([0.125, 0.125, 4.   ], dtype=float32)

    Differences from PyTorch:
        * Predictions and targets never broadcast against each other: (3, 1) with (3,) is an error. `weight`
          may broadcast, PyTorch's may not.
        * bfloat16 and float16 inputs are computed in float32, and the loss stays float32.
        * The loss has a derivative in `delta`, which may be an array.

    Source:
        P. J. Huber (1964), Robust Estimation of a Location Parameter. PyTorch documentation:
        torch.nn.HuberLoss, torch.nn.functional.huber_loss.
    """
    arrays = agree(predictions=predictions, targets=targets)
    return reduce_each(_huber, arrays, [delta], weight=weight, where=where, reduction=reduction)


@derivatives(lambda error: 2 * error, of_difference=True)
def _squared(error: jax.Array) -> jax.Array:
    return error * error


@derivatives(jnp.sign, of_difference=True)  # as that of `absolute`
def _absolute_error(error: jax.Array) -> jax.Array:
    return jnp.abs(error)


def _smooth_l1_slope(error: jax.Array, beta: jax.Array) -> jax.Array:
    # beta = 0 is the L1 loss, of slope 0 at 0.
    # At |error| = beta it is the slope of the straight side, in its own derivative, too.
    return jnp.where(jnp.abs(error) >= beta, jnp.sign(error), error / jnp.where(beta == 0, 1, beta))


@derivatives(
    _smooth_l1_slope,
    lambda error, beta: -0.5 * _smooth_l1_slope(error, beta) ** 2,
    of_difference=True,
)
def _smooth_l1(error: jax.Array, beta: jax.Array) -> jax.Array:
    magnitude = jnp.abs(error)
    curved = 0.5 * error * (error / jnp.where(beta == 0, 1, beta))
    return jnp.where(magnitude < beta, curved, magnitude - 0.5 * beta)


@derivatives(
    lambda error, delta: jnp.where(jnp.abs(error) < delta, error, delta * jnp.sign(error)),
    lambda error, delta: jnp.maximum(jnp.abs(error) - delta, 0),
    of_difference=True,
)
def _huber(error: jax.Array, delta: jax.Array) -> jax.Array:
    magnitude = jnp.abs(error)
    return jnp.where(magnitude < delta, 0.5 * error * error, delta * (magnitude - 0.5 * delta))
