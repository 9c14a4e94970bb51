"""Losses on yes-or-no targets, one or many at each position."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxloss._core.arguments import (
    agree,
    arithmetic_dtype,
    as_array,
    class_axis,
    hide,
    mask,
    stretchable,
    widened,
)
from jaxloss._core.checks import checked
from jaxloss._core.classes import ClassAxis, weight_of_classes
from jaxloss._core.decorator import compiled
from jaxloss._core.derivatives import checked_signs, derivatives, product, sign_or_nan
from jaxloss._core.elementwise import in_one_loop
from jaxloss._core.logarithms import log, log1p_of_fraction
from jaxloss._core.reduction import Reduction, reduce_each


@compiled(static=("reduction",))
def binary_cross_entropy(
    probs: ArrayLike,
    targets: ArrayLike,
    *,
    weight: ArrayLike | None = None,
    where: ArrayLike | None = None,
    reduction: Reduction = "mean",
) -> jax.Array:
    """Measures how surprised the model is by yes-or-no targets: cross-entropy of probabilities.

    loss = -weight · (targets · log(probs) + (1 - targets) · log(1 - probs)), each logarithm at least -100, so
    that a wrong certainty costs 100 and not ∞. Where raw scores are at hand,
    `binary_cross_entropy_with_logits` is more exact.

    Args:
        probs: Probabilities of yes in [0, 1], of any shape.
        targets: 1 or True for yes, 0 or False for no, or probabilities of yes; of the shape of `probs`.
        weight: How much each element counts, broadcast to the shape of `probs`. Default: 1 each.
        where: Boolean mask, broadcast to the shape of `probs`. What lies behind False has no influence on
            value or gradient, NaN included, and does not count in the mean.
        reduction: "mean" for Σ loss / number of elements, "sum", "none" for the loss of each element, or
            "sum_and_weight" for the pair (Σ loss, number of elements), which adds up over micro-batches and
            devices to the exact mean. As in PyTorch the weights are not in the denominator.

    Returns:
        A scalar for "mean" and "sum", an array of the shape of `probs` for "none", two scalars for
        "sum_and_weight". The dtype is float32, or float64 where probs or targets are; the unit is nats. A
        value of `probs` outside [0, 1] gives NaN in the value and in the gradient, and an error under
        `jax.experimental.checkify`. The mean over no element is NaN with gradient 0. An empty sum is 0.

    Raises:
        TypeError: An argument is not an array of real numbers, or `where` is not boolean.
        ValueError: `probs` and `targets` differ in shape, `weight` or `where` does not broadcast to that
            shape, or the reduction is unknown.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxloss
        >>> probs = jnp.array([0.9, 0.2, 0.5])
        >>> jaxloss.binary_cross_entropy(probs, jnp.array([1, 0, 1]))
        Array(0.3406, dtype=float32)

    Differences from PyTorch:
        * Probabilities and targets outside [0, 1] are NaN, or an error under checkify, where PyTorch raises.
        * The gradient in the targets stays within ±100 as the logarithms do, where PyTorch's is infinite at
          probabilities of 0 and 1.
        * Second derivatives are those of the bounded gradient, where PyTorch's grow beyond all bounds.
        * bfloat16 and float16 inputs are computed in float32, and the loss stays float32.
        * Targets may be integers or booleans.

    Source:
        PyTorch documentation: torch.nn.BCELoss, torch.nn.functional.binary_cross_entropy.
    """
    probs, targets = agree(probs=probs, targets=targets)
    where = mask(where, probs.shape)
    arrays = [_probabilities("probs", probs, where), _probabilities("targets", targets, where)]
    return reduce_each(_from_probs, arrays, weight=weight, where=where, reduction=reduction)


@compiled(static=("reduction",))
def binary_cross_entropy_with_logits(
    logits: ArrayLike,
    targets: ArrayLike,
    *,
    weight: ArrayLike | None = None,
    pos_weight: ArrayLike | None = None,
    where: ArrayLike | None = None,
    reduction: Reduction = "mean",
) -> jax.Array:
    """Measures how surprised the model is by yes-or-no targets: cross-entropy of raw scores.

    loss = weight · (pos_weight · targets · softplus(-logits) + (1 - targets) · softplus(logits))

    with softplus(x) = log(1 + exp(x)). This is `binary_cross_entropy` of sigmoid(logits) without its rounding
    and its bound.

    Args:
        logits: Raw scores, real numbers of any shape; above 0 the model says yes.
        targets: 1 or True for yes, 0 or False for no, or probabilities of yes; of the shape of `logits`.
        weight: How much each element counts, broadcast to the shape of `logits`. Default: 1 each.
        pos_weight: How much more a yes counts than a no, broadcast to the shape of `logits`: one number, or
            one for each class on the last axis. Default: 1.
        where: Boolean mask, broadcast to the shape of `logits`. What lies behind False has no influence on
            value or gradient, NaN included, and does not count in the mean.
        reduction: "mean" for Σ loss / number of elements, "sum", "none" for the loss of each element, or
            "sum_and_weight" for the pair (Σ loss, number of elements), which adds up over micro-batches and
            devices to the exact mean. As in PyTorch no weights are in the denominator.

    Returns:
        A scalar for "mean" and "sum", an array of the shape of `logits` for "none", two scalars for
        "sum_and_weight". The dtype is float32, or float64 where logits or targets are; the unit is nats. The
        mean over no element is NaN with gradient 0. An empty sum is 0.

    Raises:
        TypeError: An argument is not an array of real numbers, or `where` is not boolean.
        ValueError: `logits` and `targets` differ in shape, `weight`, `pos_weight` or `where` does not
            broadcast to that shape, or the reduction is unknown.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxloss
        >>> logits = jnp.array([2.0, -1.0, 0.0])
        >>> jaxloss.binary_cross_entropy_with_logits(logits, jnp.array([1, 0, 1]))
        Array(0.3778, dtype=float32)

    Differences from PyTorch:
        * At infinite logits the loss is the limit, 0 for a right certainty and ∞ for a wrong one, where
          PyTorch is NaN at -inf, and at inf with target 1.
        * bfloat16 and float16 inputs are computed in float32, and the loss stays float32.
        * Targets may be integers or booleans. The loss has a derivative in `pos_weight`, too.

    Source:
        PyTorch documentation: torch.nn.BCEWithLogitsLoss,
        torch.nn.functional.binary_cross_entropy_with_logits.
    """
    arrays = agree(logits=logits, targets=targets)
    factor = as_array("pos_weight", 1.0 if pos_weight is None else pos_weight)
    factor = stretchable("pos_weight", factor.astype(arithmetic_dtype(*arrays)), arrays[0].shape)
    return reduce_each(_from_logits, [*arrays, factor], weight=weight, where=where, reduction=reduction)


@compiled(static=("reduction",))
def soft_margin_loss(
    scores: ArrayLike,
    targets: ArrayLike,
    *,
    where: ArrayLike | None = None,
    reduction: Reduction = "mean",
) -> jax.Array:
    """Measures how far scores are on the wrong side of 0, softly.

    loss = log(1 + exp(-targets · scores)), which is `binary_cross_entropy_with_logits` with targets 1 and -1
    in place of 1 and 0.

    Args:
        scores: Raw scores, real numbers of any shape; above 0 the model says 1, below 0 it says -1.
        targets: 1 or -1, of the shape of `scores`.
        where: Boolean mask, broadcast to the shape of `scores`. What lies behind False has no influence on
            value or gradient, NaN included, and does not count in the mean.
        reduction: "mean" for Σ loss / number of elements, "sum", "none" for the loss of each element, or
            "sum_and_weight" for the pair (Σ loss, number of elements), which adds up over micro-batches and
            devices to the exact mean.

    Returns:
        A scalar for "mean" and "sum", an array of the shape of `scores` for "none", two scalars for
        "sum_and_weight". The dtype is float32, or float64 where scores or targets are; the unit is nats. A
        target that is neither 1 nor -1 gives NaN in the value and in the gradient, and an error under
        `jax.experimental.checkify`. The mean over no element is NaN with gradient 0. An empty sum is 0.

    Raises:
        TypeError: An argument is not an array of real numbers, or `where` is not boolean.
        ValueError: `scores` and `targets` differ in shape, `where` does not broadcast to that shape, or the
            reduction is unknown.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxloss
        >>> scores = jnp.array([2.0, -1.0, 0.0])
        >>> jaxloss.soft_margin_loss(scores, jnp.array([1, -1, 1]))
        Array(0.3778, dtype=float32)

    Differences from PyTorch:
        * A score far on the wrong side costs its distance from 0, where PyTorch overflows to ∞ with gradient
          NaN; a score far on the right side costs a little, where PyTorch rounds to 0.
        * A target that is neither 1 nor -1 is NaN, or an error under checkify. PyTorch takes any number.
        * Scores and targets never broadcast against each other: (3, 1) with (3,) is an error.
        * bfloat16 and float16 inputs are computed in float32, and the loss stays float32.
        * The loss has a derivative in `targets`, too.

    Source:
        PyTorch documentation: torch.nn.SoftMarginLoss, torch.nn.functional.soft_margin_loss.
    """
    scores, targets = agree(scores=scores, targets=targets)
    arrays = [scores, checked_signs(targets, mask(where, targets.shape))]
    return reduce_each(_soft_margin, arrays, where=where, reduction=reduction)


@compiled(static=("axis", "reduction", "axis_name"))
def multilabel_soft_margin_loss(
    logits: ArrayLike,
    targets: ArrayLike,
    *,
    axis: int = -1,
    weight: ArrayLike | None = None,
    where: ArrayLike | None = None,
    reduction: Reduction = "mean",
    axis_name: str | None = None,
) -> jax.Array:
    """Measures how surprised the model is by a yes or no for each class, averaged over the classes.

    loss = 1 / C · Σ_c weight[c] · (t[c] · softplus(-x[c]) + (1 - t[c]) · softplus(x[c]))

    with softplus(x) = log(1 + exp(x)), at a position with logits x and targets t of C classes that do not
    exclude each other. It is the mean over the classes of `binary_cross_entropy_with_logits`.

    Args:
        logits: Raw scores, real numbers of any shape that has a class axis; above 0 the model says yes.
        targets: 1 or True for yes, 0 or False for no, or probabilities of yes; of the shape of `logits`.
        axis: The class axis of `logits` and `targets`.
        weight: How much each class counts, shape (C,). Default: 1 each.
        where: Boolean mask, broadcast to the shape of `logits` without the class axis. What lies behind False
            has no influence on value or gradient, NaN included, and does not count in the mean.
        reduction: "mean" for Σ loss / number of positions, "sum", "none" for the loss of each position, or
            "sum_and_weight" for the pair (Σ loss, number of positions), which adds up over micro-batches and
            devices to the exact mean. As in PyTorch the weights are not in the denominator.
        axis_name: Inside `jax.shard_map`, the name of the mesh axis over which the class axis is split. Then
            `logits`, `targets` and `weight` are this device's slices.

    Returns:
        A scalar for "mean" and "sum", an array of the shape of `logits` without the class axis for "none",
        two scalars for "sum_and_weight". The dtype is float32, or float64 where logits or targets are; the
        unit is nats. The mean over no position is NaN with gradient 0. An empty sum is 0.

    Raises:
        TypeError: An argument is not an array of real numbers, `where` is not boolean, or an option that
            Python must know while tracing (`axis`, `reduction`, `axis_name`) is an array.
        ValueError: `logits` and `targets` differ in shape or have no such axis, `weight` has another shape
            than (C,), `where` does not broadcast to the positions, or the reduction is unknown.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxloss
        >>> logits = jnp.array([[2.0, -1.0, 0.0], [1.0, 1.0, -3.0]])
        >>> targets = jnp.array([[1, 0, 1], [1, 1, 0]])
        >>> jaxloss.multilabel_soft_margin_loss(logits, targets)
        Array(0.3014, dtype=float32)

    Differences from PyTorch:
        * The class axis is the last unless `axis` says otherwise, as in PyTorch, which has no such option.
        * Infinite logits give the limit: 0 for a right certainty and ∞ for a wrong one, where PyTorch gives
          NaN. A class of weight 0 adds 0.
        * Logits and targets never broadcast against each other, and `weight` has one value for each class.
        * bfloat16 and float16 inputs are computed in float32, and the loss stays float32.
        * Targets may be booleans.

    Source:
        PyTorch documentation: torch.nn.MultiLabelSoftMarginLoss,
        torch.nn.functional.multilabel_soft_margin_loss.
    """
    arrays = agree(logits=logits, targets=targets)
    shape = arrays[0].shape
    classes = ClassAxis(class_axis(axis, "logits", shape), axis_name)
    factor = weight_of_classes(weight, arrays[0], classes).astype(arithmetic_dtype(*arrays))

    def loss(logits: jax.Array, targets: jax.Array, factor: jax.Array, one: jax.Array) -> jax.Array:
        return product(factor, _from_logits(logits, targets, one))

    return reduce_each(
        loss,
        [*arrays, factor],
        [1.0],
        weight=1 / classes.count(arrays[0]),
        where=where,
        reduction=reduction,
        classes=classes,
    )


def _probabilities(name: str, array: jax.Array, where: jax.Array | None) -> jax.Array:
    (wide,) = widened(array)
    valid = hide(where, (wide >= 0) & (wide <= 1), True)
    return checked(array, valid, f"{name}: expected probabilities in [0, 1]")


# PyTorch bounds the gradient at probabilities 0 and 1 with a float32 constant, in every dtype.
_SMALLEST_VARIANCE = float(np.float32(1e-12))


def _variance(probs: jax.Array) -> jax.Array:
    """Returns probs · (1 - probs), bounded from below; NaN outside [0, 1]."""
    variance = probs * (1 - probs)
    return jnp.where(variance < 0, jnp.nan, jnp.maximum(variance, _SMALLEST_VARIANCE))


def _logs(probs: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns log(probs) and log(1 - probs), bounded as in PyTorch: nothing costs more than 100."""
    # As accurate as log1p, and faster: what rounding takes from 1 - probs comes back at first order.
    others = 1 - probs
    lost = jnp.where(probs < 0.5, ((1 - others) - probs) / others, 0)
    return jnp.maximum(log(probs), -100), jnp.maximum(log(others) + lost, -100)


@derivatives(lambda probs: -1 / _variance(probs))
def _log_odds_against(probs: jax.Array) -> jax.Array:
    log_of_probs, log_of_others = _logs(probs)
    return log_of_others - log_of_probs


def _where_probability(targets: jax.Array, values: jax.Array) -> jax.Array:
    return jnp.where((targets >= 0) & (targets <= 1), values, jnp.nan)


def _curvature(probs: jax.Array, targets: jax.Array) -> jax.Array:
    """Returns the slope of `_pull` in probs, in which nothing cancels: a constant where that is bounded."""
    variance = _variance(probs)
    is_free = variance > _SMALLEST_VARIANCE
    yes = jnp.where(is_free, probs, 0.5)
    no = 1 - yes
    free = targets / yes / yes + (1 - targets) / no / no  # squares would underflow in its own derivative
    return _where_probability(targets, jnp.where(is_free, free, 1 / variance))


@derivatives(_curvature, lambda probs, targets: _where_probability(targets, -1 / _variance(probs)))
def _pull(probs: jax.Array, targets: jax.Array) -> jax.Array:
    return _where_probability(targets, (probs - targets) / _variance(probs))


@derivatives(_pull, lambda probs, targets: _where_probability(targets, _log_odds_against(probs)))
def _from_probs(probs: jax.Array, targets: jax.Array) -> jax.Array:
    log_of_probs, log_of_others = _logs(probs)
    return _where_probability(targets, (targets - 1) * log_of_others - targets * log_of_probs)


def _curve(logits: jax.Array) -> jax.Array:
    """Returns log(1 + exp(-|logits|)), by which softplus exceeds max(logits, 0)."""
    return log1p_of_fraction(jnp.exp(-jnp.abs(logits)))


def _sigmoid_slope(logits: jax.Array) -> jax.Array:
    odds = jnp.exp(-jnp.abs(logits))  # differentiated at 0 as on one side, which is right: the slope is even
    return odds / (1 + odds) ** 2


@derivatives(_sigmoid_slope)
def _sigmoid(logits: jax.Array) -> jax.Array:
    """The sigmoid, in whose slope nothing cancels as in sigmoid · (1 - sigmoid)."""
    return jax.nn.sigmoid(logits)


@derivatives(_sigmoid)
def _softplus(logits: jax.Array) -> jax.Array:
    return in_one_loop(jnp.maximum(logits, 0) + _curve(logits))  # else slow if summed outside


@derivatives(
    lambda logits, factor: -factor * _sigmoid(-logits) - _sigmoid(logits),
    lambda logits, factor: _softplus(-logits),
)
def _excess_of_yes(logits: jax.Array, factor: jax.Array) -> jax.Array:
    """Returns factor · softplus(-logits) - softplus(logits): by how much a yes costs more than a no."""
    wrong = product(factor, jnp.maximum(-logits, 0)) - jnp.maximum(logits, 0)
    return wrong + (factor - 1) * _curve(logits)


def _slope(logits: jax.Array, targets: jax.Array, factor: jax.Array) -> jax.Array:
    """(1 - targets) · sigmoid(logits) - factor · targets · sigmoid(-logits), in which nothing cancels."""
    no, yes, odds = 1 - targets, factor * targets, jnp.exp(-jnp.abs(logits))
    return jnp.where(logits >= 0, no - yes * odds, no * odds - yes) / (1 + odds)


@derivatives(
    _slope,
    lambda logits, targets, factor: _excess_of_yes(logits, factor),
    lambda logits, targets, factor: product(targets, _softplus(-logits)),
)
def _from_logits(logits: jax.Array, targets: jax.Array, factor: jax.Array) -> jax.Array:
    """(1 - targets) · softplus(logits) + factor · targets · softplus(-logits)."""
    # What has no weight adds nothing, infinite as it may be.
    no, yes = 1 - targets, factor * targets
    wrong_yes = jnp.where(no == 0, 0, no * jnp.maximum(logits, 0))
    wrong_no = jnp.where(yes == 0, 0, yes * jnp.maximum(-logits, 0))
    return in_one_loop(wrong_yes + wrong_no + (no + yes) * _curve(logits))  # else slow if summed outside


def _wrongness(scores: jax.Array, targets: jax.Array) -> jax.Array:
    return _sigmoid(-sign_or_nan(targets) * scores)


@derivatives(
    lambda scores, targets: -targets * _wrongness(scores, targets),
    lambda scores, targets: product(
        jnp.where(scores < 0, 1, -1) * _wrongness(scores, targets), jnp.abs(scores)
    ),
)
def _soft_margin(scores: jax.Array, targets: jax.Array) -> jax.Array:
    return _softplus(-sign_or_nan(targets) * scores)
