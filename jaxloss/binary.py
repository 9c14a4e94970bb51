"""Losses on yes-or-no targets, one or many at each position."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxloss._arguments import agree, arithmetic_dtype, as_array, broadcast, hide, mask, widened
from jaxloss._checks import checked
from jaxloss._compiled import compiled
from jaxloss._derivatives import constant, derivatives, product
from jaxloss._reduction import Reduction, reduce_weighted, weighted


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
        * bfloat16 and float16 inputs are computed in float32, and the loss stays float32.
        * Targets may be integers or booleans.

    Source:
        PyTorch documentation: torch.nn.BCELoss, torch.nn.functional.binary_cross_entropy.
    """
    probs, targets = agree(probs=probs, targets=targets)
    where = mask(where, probs.shape)
    probs, targets = hide(where, probs), hide(where, targets)
    probs, targets = _probabilities("probs", probs), _probabilities("targets", targets)
    losses, _ = weighted(_from_probs(probs, targets), weight, where)
    return reduce_weighted(losses, None, where, reduction)


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
    logits, targets = agree(logits=logits, targets=targets)
    where = mask(where, logits.shape)
    logits, targets = hide(where, logits), hide(where, targets)
    if pos_weight is None:
        losses = _from_logits(logits, targets)
    else:
        factor = as_array("pos_weight", pos_weight).astype(arithmetic_dtype(logits, targets))
        factor = hide(where, broadcast("pos_weight", factor, logits.shape))
        losses = _from_logits_weighted(logits, targets, factor)
    losses, _ = weighted(losses, weight, where)
    return reduce_weighted(losses, None, where, reduction)


def _probabilities(name: str, array: jax.Array) -> jax.Array:
    (wide,) = widened(array)
    return checked(array, (wide >= 0) & (wide <= 1), f"{name}: expected probabilities in [0, 1]")


# PyTorch bounds the gradient at probabilities 0 and 1 with a float32 constant, in every dtype.
_SMALLEST_VARIANCE = float(np.float32(1e-12))


def _bounded(log: jax.Array) -> jax.Array:
    # PyTorch's bound on each logarithm, which keeps the loss of a wrong certainty finite.
    return jnp.maximum(log, -100)


def _from_probs_slope(probs: jax.Array, targets: jax.Array) -> jax.Array:
    zero, one = constant(0, probs), constant(1, probs)
    slope = (probs - targets) / jnp.maximum(probs * (one - probs), _SMALLEST_VARIANCE)
    inside = (probs >= zero) & (probs <= one) & (targets >= zero) & (targets <= one)
    return jnp.where(inside, slope, jnp.nan)


@derivatives(
    _from_probs_slope,
    lambda probs, targets: _bounded(jnp.log1p(-probs)) - _bounded(jnp.log(probs)),
)
def _from_probs(probs: jax.Array, targets: jax.Array) -> jax.Array:
    # Probabilities outside [0, 1] have a logarithm that is NaN; targets outside, a square root.
    others = targets - 1
    outside = 0 * jnp.sqrt(-targets * others)
    return others * _bounded(jnp.log1p(-probs)) - targets * _bounded(jnp.log(probs)) + outside


def _softplus(logits: jax.Array) -> jax.Array:
    # jax.nn.softplus holds selects, which cost a temporary of full size.
    return jnp.maximum(logits, 0) + jnp.log1p(jnp.exp(-jnp.abs(logits)))


@derivatives(
    lambda logits, targets: jax.nn.sigmoid(logits) - targets,
    lambda logits, targets: -logits,
)
def _from_logits(logits: jax.Array, targets: jax.Array) -> jax.Array:
    # softplus(logits) - targets · logits; its linear part may be infinite where its weight is 0.
    sign = jnp.sign(logits)
    magnitude = jnp.abs(logits)
    return product(jnp.maximum(sign, 0) - targets * sign, magnitude) + jnp.log1p(jnp.exp(-magnitude))


@derivatives(
    lambda logits, targets, factor: (1 + (factor - 1) * targets) * jax.nn.sigmoid(logits) - factor * targets,
    lambda logits, targets, factor: factor * _softplus(-logits) - _softplus(logits),
    lambda logits, targets, factor: product(targets, _softplus(-logits)),
)
def _from_logits_weighted(logits: jax.Array, targets: jax.Array, factor: jax.Array) -> jax.Array:
    # (1 - targets) · softplus(logits) + factor · targets · softplus(-logits), split as above.
    sign = jnp.sign(logits)
    magnitude = jnp.abs(logits)
    linear = jnp.maximum(sign, 0) * (1 - targets) + jnp.maximum(-sign, 0) * (factor * targets)
    curved = jnp.log1p(jnp.exp(-magnitude))
    return product(linear, magnitude) + (1 + (factor - 1) * targets) * curved
