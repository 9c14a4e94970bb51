"""Robust regression losses, in which large errors have less weight than in the squared error."""

from __future__ import annotations

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxloss._core.arguments import agree
from jaxloss._core.checks import one_or_nan
from jaxloss._core.decorator import Domain, compiled, not_negative, positive_and_finite
from jaxloss._core.derivatives import absolute, derivatives, weighted
from jaxloss._core.reduction import Reduction, reduce_elementwise

_finite_or_minus_infinity = Domain("a finite number or -inf", lambda number: number < float("inf"))


@compiled(static=("reduction",), domains={"eps": not_negative})
def charbonnier_loss(
    predictions: ArrayLike,
    targets: ArrayLike,
    *,
    eps: ArrayLike = 1e-3,
    where: ArrayLike | None = None,
    reduction: Reduction = "mean",
) -> jax.Array:
    """Charbonnier loss, a smooth L1 loss.

        loss = sqrt((predictions - targets)² + eps²)

    Args:
        predictions: Predicted values, any shape, in the unit of `targets`.
        targets: True values, of the shape of `predictions`.
        eps: Width of the quadratic region, a number >= 0 in the unit of `targets`. 0 gives `l1_loss`.
        where: Mask, broadcast to the shape of `predictions`; see `help(jaxloss)`.
        reduction: "mean" (divides by the number of elements), "sum", "none" or "sum_and_weight".

    Returns:
        A scalar, or an array of the shape of `predictions` for "none"; in the unit of `targets`.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxloss
        >>> jaxloss.charbonnier_loss(jnp.array([3.0, 0.0]), jnp.zeros(2), eps=4.0, reduction="none")
        Array([5., 4.], dtype=float32)

    Differences from other libraries:
        * kornia's loss is sqrt((predictions - targets)² + 1) - 1, which is `general_robust_loss`.
        * BasicSR adds its eps inside the root without squaring it.

    Source:
        P. Charbonnier et al. (1994), Two Deterministic Half-Quadratic Regularization Algorithms for Computed
        Imaging.
    """
    arrays = agree(predictions=predictions, targets=targets)
    return reduce_elementwise(
        lambda predictions, targets, eps: _length(predictions - targets, eps),
        arrays,
        [eps],
        where=where,
        reduction=reduction,
    )


@compiled(static=("reduction",))
def log_cosh_loss(
    predictions: ArrayLike,
    targets: ArrayLike,
    *,
    where: ArrayLike | None = None,
    reduction: Reduction = "mean",
) -> jax.Array:
    """Log-cosh loss: about e² / 2 for a small error e, and |e| - log 2 for a large one.

        loss = log(cosh(predictions - targets))

    Args:
        predictions: Predicted values, any shape.
        targets: True values, of the shape of `predictions`.
        where: Mask, broadcast to the shape of `predictions`; see `help(jaxloss)`.
        reduction: "mean" (divides by the number of elements), "sum", "none" or "sum_and_weight".

    Returns:
        A scalar, or an array of the shape of `predictions` for "none".

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxloss
        >>> jaxloss.log_cosh_loss(jnp.array([1e-4, 1.0, 100.0]), jnp.zeros(3), reduction="none")
        Array([5.0000e-09, 4.3378e-01, 9.9307e+01], dtype=float32)

    Differences from other libraries:
        * Small errors keep their precision: in float32, 1e-4 gives 5e-9 here, and 0 in Keras and Optax.

    Source:
        P. Chen et al. (2019), Log Hyperbolic Cosine Loss Improves Variational Auto-Encoder. Keras
        documentation: keras.losses.LogCosh.
    """
    arrays = agree(predictions=predictions, targets=targets)
    return reduce_elementwise(
        lambda predictions, targets: _log_cosh(predictions - targets),
        arrays,
        where=where,
        reduction=reduction,
    )


@compiled(static=("reduction",), domains={"alpha": _finite_or_minus_infinity, "scale": positive_and_finite})
def general_robust_loss(
    predictions: ArrayLike,
    targets: ArrayLike,
    *,
    alpha: ArrayLike = 1.0,
    scale: ArrayLike = 1.0,
    where: ArrayLike | None = None,
    reduction: Reduction = "mean",
) -> jax.Array:
    """General and adaptive robust loss, a family from the squared error to bounded losses.

    With z = ((predictions - targets) / scale)² and b = |alpha - 2|,

        loss = b / alpha · ((z / b + 1)^(alpha / 2) - 1)

    and its limits: z / 2 for alpha = 2, log(z / 2 + 1) (Cauchy) for 0, 1 - exp(-z / 2) (Welsch) for -inf.
    alpha = 1 is sqrt(z + 1) - 1 (Charbonnier), -2 is 2z / (z + 4) (Geman-McClure).

    Args:
        predictions: Predicted values, any shape, in the unit of `targets`.
        targets: True values, of the shape of `predictions`.
        alpha: Shape of the loss, a finite number or -inf; the smaller, the less weight large errors have. It
            can be learned. Its gradient is 0 at 2, where the limit is infinite, and at -inf.
        scale: Error up to which the loss is about quadratic, a finite number > 0 in the unit of `targets`.
        where: Mask, broadcast to the shape of `predictions`; see `help(jaxloss)`.
        reduction: "mean" (divides by the number of elements), "sum", "none" or "sum_and_weight".

    Returns:
        A scalar, or an array of the shape of `predictions` for "none".

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxloss
        >>> errors = jnp.array([1.0, 10.0])
        >>> jaxloss.general_robust_loss(errors, jnp.zeros(2), alpha=-2.0, reduction="none")
        Array([0.4   , 1.9231], dtype=float32)

    Differences from other libraries:
        * The squared error does not overflow: at an error of 1e20 in float32 kornia's Cauchy loss is
          infinite, and its Geman-McClure loss NaN.

    Source:
        J. T. Barron (2019), A General and Adaptive Robust Loss Function. kornia documentation:
        kornia.losses.charbonnier_loss, cauchy_loss, geman_mcclure_loss and welsch_loss.
    """
    arrays = agree(predictions=predictions, targets=targets)
    return reduce_elementwise(
        lambda predictions, targets, alpha, scale: _general(predictions - targets, alpha, scale),
        arrays,
        [alpha, scale],
        where=where,
        reduction=reduction,
    )


@compiled(static=("reduction",), domains={"width": positive_and_finite, "curvature": positive_and_finite})
def wing_loss(
    predictions: ArrayLike,
    targets: ArrayLike,
    *,
    width: ArrayLike = 10.0,
    curvature: ArrayLike = 2.0,
    where: ArrayLike | None = None,
    reduction: Reduction = "mean",
) -> jax.Array:
    """Wing loss for landmark localization: logarithmic for small errors, linear for large ones.

    With e = predictions - targets,

        loss = width · log(1 + |e| / curvature)                         where |e| < width
        loss = |e| - width + width · log(1 + width / curvature)         elsewhere

    with gradient 0 at e = 0.

    Args:
        predictions: Predicted values, any shape, in the unit of `targets`.
        targets: True values, of the shape of `predictions`.
        width: Error from which the loss is linear, a finite number > 0 in the unit of `targets`.
        curvature: A finite number > 0 in the unit of `targets`; the smaller, the steeper at small errors.
        where: Mask, broadcast to the shape of `predictions`; see `help(jaxloss)`.
        reduction: "mean" (divides by the number of elements), "sum", "none" or "sum_and_weight".

    Returns:
        A scalar, or an array of the shape of `predictions` for "none"; in the unit of `targets`.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxloss
        >>> jaxloss.wing_loss(jnp.array([1.0, 20.0]), jnp.zeros(2), reduction="none")
        Array([ 4.0547, 27.9176], dtype=float32)

    Differences from other libraries:
        * The defaults are those of the paper and of mmpose; other libraries use 5 and 0.5.

    Source:
        Z.-H. Feng et al. (2018), Wing Loss for Robust Facial Landmark Localisation with Convolutional Neural
        Networks. mmpose documentation: mmpose.models.losses.WingLoss.
    """
    arrays = agree(predictions=predictions, targets=targets)
    return reduce_elementwise(
        lambda predictions, targets, width, curvature: _wing(predictions - targets, width, curvature),
        arrays,
        [width, curvature],
        where=where,
        reduction=reduction,
    )


def _cosine_slope(a: jax.Array, b: jax.Array) -> jax.Array:
    return _cosine(b, a) ** 2 / _nonzero(jnp.hypot(a, b))


def _cosine_slope_by_other(a: jax.Array, b: jax.Array) -> jax.Array:
    return -_cosine(a, b) * _cosine(b, a) / _nonzero(jnp.hypot(a, b))


@derivatives(_cosine_slope, _cosine_slope_by_other)
def _cosine(a: jax.Array, b: jax.Array) -> jax.Array:
    """Returns a / sqrt(a² + b²), 0 where both are 0."""
    return jnp.where(jnp.isinf(a), jnp.sign(a), a / _nonzero(jnp.hypot(a, b)))


def _nonzero(number: jax.Array) -> jax.Array:
    """Returns a number, and 1 in place of 0."""
    return jnp.where(number == 0, 1, number)


@derivatives(lambda a, b: _cosine(a, b), lambda a, b: _cosine(b, a))
def _length(a: jax.Array, b: jax.Array) -> jax.Array:
    return jnp.hypot(a, b)


def _slope_of_tanh(error: jax.Array) -> jax.Array:
    odds = jnp.exp(-2 * jnp.abs(error))  # avoids the cancellation in 1 - tanh²
    return 4 * odds / (1 + odds) ** 2


@derivatives(_slope_of_tanh)
def _tanh(error: jax.Array) -> jax.Array:
    return jnp.tanh(error)


@derivatives(_tanh)
def _log_cosh(error: jax.Array) -> jax.Array:
    magnitude = jnp.abs(error)
    small = jnp.log1p(2 * jnp.sinh(jnp.minimum(magnitude, 1) / 2) ** 2)
    large = magnitude + jnp.log1p(jnp.exp(-2 * magnitude)) - math.log(2)
    return jnp.where(magnitude < 1, small, large)


def _wing_slope(error: jax.Array, width: jax.Array, curvature: jax.Array) -> jax.Array:
    magnitude = absolute(error)
    slope = jnp.where(magnitude < width, width / (curvature + magnitude), 1)
    return jnp.sign(error) * slope * one_or_nan(~jnp.isnan(width + curvature), error.dtype)


def _wing_slope_in_width(error: jax.Array, width: jax.Array, curvature: jax.Array) -> jax.Array:
    bend = jnp.log1p(jnp.minimum(jnp.abs(error), width) / curvature)
    return bend - jnp.where(jnp.abs(error) < width, 0, curvature / (curvature + width))


def _wing_slope_in_curvature(error: jax.Array, width: jax.Array, curvature: jax.Array) -> jax.Array:
    magnitude = jnp.minimum(jnp.abs(error), width)
    return -(width / curvature) * (magnitude / (curvature + magnitude))


@derivatives(_wing_slope, _wing_slope_in_width, _wing_slope_in_curvature)
def _wing(error: jax.Array, width: jax.Array, curvature: jax.Array) -> jax.Array:
    magnitude = jnp.abs(error)
    bend = width * jnp.log1p(jnp.minimum(magnitude, width) / curvature)
    return bend + jnp.maximum(magnitude - width, 0)


class _Bend(NamedTuple):
    """Shared terms of the general loss and its slopes, for x = error / scale, z = x² and b = |alpha - 2|."""

    b: jax.Array
    sign: jax.Array  # of alpha - 2
    root: jax.Array  # sqrt(1 + z / b)
    is_far: jax.Array  # z > b, where powers of the root are more precise than exponentials
    log: jax.Array  # log(1 + z / b)
    half: jax.Array  # b / 2 · log(1 + z / b), which is z / 2 for b = ∞ and 0 for b = 0
    share: jax.Array  # z / (z + b)

    @classmethod
    def of(cls, x: jax.Array, alpha: jax.Array) -> _Bend:
        b, is_square = jnp.abs(alpha - 2), alpha == 2
        ratio = jnp.where(is_square | jnp.isinf(alpha), 0, jnp.abs(x) / jnp.sqrt(_nonzero(b)))
        is_far, root = ratio > 1, jnp.hypot(ratio, jnp.ones_like(ratio))
        square = jnp.minimum(ratio, 1) ** 2
        log = jnp.where(is_far, 2 * jnp.log(root), jnp.log1p(square))
        mean_slope = jnp.where(square == 0, 1, jnp.log1p(square) / _nonzero(square))
        half = jnp.where(is_far, weighted(0.5 * log, b), 0.5 * x * x * mean_slope)
        share = _cosine(ratio, jnp.ones_like(ratio)) ** 2
        return cls(b, jnp.sign(alpha - 2), root, is_far, log, jnp.where(is_square, 0, half), share)


def _general_curvature(x: jax.Array, alpha: jax.Array) -> jax.Array:
    bend = _Bend.of(x, alpha)
    power = bend.root ** jnp.where(bend.is_far, alpha - 2, 0)
    weight = jnp.where(bend.is_far, power, jnp.exp(bend.sign * bend.half))
    return weighted(weight, 1 + bend.sign * _over_root(x, bend) ** 2)


def _general_slope_by_alpha(x: jax.Array, alpha: jax.Array) -> jax.Array:
    bend = _Bend.of(x, alpha)
    return jnp.where(alpha == 2, 0, weighted(_general_slope(x, alpha), 0.5 * (bend.log - bend.share)))


def _over_root(x: jax.Array, bend: _Bend) -> jax.Array:
    """Returns x / sqrt(1 + z / b)."""
    return jnp.where(jnp.isinf(bend.root), jnp.sign(x) * jnp.sqrt(bend.b), x / bend.root)


@derivatives(_general_curvature, _general_slope_by_alpha)
def _general_slope(x: jax.Array, alpha: jax.Array) -> jax.Array:
    """Returns the slope of the general loss in x, x · (1 + z / b)^(alpha / 2 - 1)."""
    bend = _Bend.of(x, alpha)
    far = _over_root(x, bend) * bend.root ** jnp.where(bend.is_far, alpha - 1, 0)
    return jnp.where(bend.is_far, far, weighted(jnp.exp(bend.sign * bend.half), x))


def _exponent(bend: _Bend, alpha: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns alpha / b, alpha / 2 · log(1 + z / b), and the exponential of that."""
    rate = jnp.where(jnp.isinf(alpha), -1, alpha / _nonzero(bend.b))
    exponent = weighted(rate, bend.half)
    power = bend.root ** jnp.where(bend.is_far, alpha, 0)
    return rate, exponent, jnp.where(bend.is_far, power, jnp.exp(exponent))


def _near_square(bend: _Bend) -> jax.Array:
    """Whether alpha is so close to 2 that the loss is computed as a change of the squared error."""
    return (bend.b < 0.5) & (bend.half < 0.5)


def _general_value(x: jax.Array, alpha: jax.Array) -> jax.Array:
    bend = _Bend.of(x, alpha)
    rate, exponent, power = _exponent(bend, alpha)
    is_small, is_near = jnp.abs(exponent) < 1, _near_square(bend)
    small = jnp.where(is_small, exponent, 0)
    growth = jnp.where(small == 0, 1, jnp.expm1(small) / _nonzero(small))
    change = bend.sign * bend.half
    near = (x * x * jnp.exp(change) + bend.b * jnp.expm1(change)) / jnp.where(is_near, alpha, 1)
    general = jnp.where(is_small, bend.half * growth, (power - 1) / _nonzero(rate))
    return jnp.where(is_near, near, general)


def _slope_of_growth(exponent: jax.Array) -> jax.Array:
    """Returns the derivative of expm1(x) / x for |x| < 1, by its power series."""
    total = jnp.zeros_like(exponent)
    for k in reversed(range(19)):
        total = total * exponent + (k + 1) / math.factorial(k + 2)
    return total


def _general_slope_in_alpha(x: jax.Array, alpha: jax.Array) -> jax.Array:
    bend = _Bend.of(x, alpha)
    _, exponent, power = _exponent(bend, alpha)
    is_small, is_near, gap = jnp.abs(exponent) < 1, _near_square(bend), bend.log - bend.share
    small = bend.log**2 * _slope_of_growth(jnp.where(is_small, exponent, 0))
    large = (weighted(power, exponent - 1) + 1) * (2 / jnp.where(is_small, 1, alpha)) ** 2
    general = 0.5 * bend.sign * (weighted(power, gap) - jnp.where(is_small, small, large))
    change = bend.sign * bend.half
    near = 0.5 * (x * x + bend.b) * jnp.exp(change) * gap + bend.sign * jnp.expm1(change)
    near = (near - _general_of_ratio(x, alpha)) / jnp.where(is_near, alpha, 1)
    return jnp.where(alpha == 2, 0, jnp.where(is_near, near, general))


@derivatives(_general_slope, _general_slope_in_alpha)
def _general_of_ratio(x: jax.Array, alpha: jax.Array) -> jax.Array:
    return _general_value(x, alpha)


@derivatives(
    lambda error, alpha, scale: _general_slope(error / scale, alpha) / scale,
    lambda error, alpha, scale: _general_slope_in_alpha(error / scale, alpha),
    lambda error, alpha, scale: -weighted(_general_slope(error / scale, alpha), error / scale) / scale,
)
def _general(error: jax.Array, alpha: jax.Array, scale: jax.Array) -> jax.Array:
    return _general_of_ratio(error / scale, alpha)
