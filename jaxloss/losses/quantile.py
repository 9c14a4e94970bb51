"""Losses for quantiles, expectiles and predicted distributions."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxloss._core.arguments import agree, agree_but_for_last_axis, arithmetic_dtype, broadcastable
from jaxloss._core.decorator import compiled, fractions
from jaxloss._core.derivatives import derivatives, weighted
from jaxloss._core.reduction import Reduction, reduce_elementwise


@compiled(static=("reduction",), domains={"quantiles": fractions})
def quantile_loss(
    predictions: ArrayLike,
    targets: ArrayLike,
    *,
    quantiles: ArrayLike = 0.5,
    where: ArrayLike | None = None,
    reduction: Reduction = "mean",
) -> jax.Array:
    """Quantile loss (pinball loss), which the quantile of the targets minimizes.

    With e = targets - predictions,

        loss = max(quantiles · e, (quantiles - 1) · e), with gradient 0 at e = 0.

    Args:
        predictions: Predicted quantiles, any shape, in the unit of `targets`. If `quantiles` has shape (Q,),
            shape (..., Q); a mesh with `Explicit` axes must not split the last axis.
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
        predictions, targets = agree_but_for_last_axis(predictions=predictions, targets=targets)
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


def _share(error: jax.Array, quantile: jax.Array) -> jax.Array:
    return jnp.where(error > 0, quantile, 1 - quantile)


@derivatives(
    lambda error, quantile: jnp.sign(error) * _share(error, quantile),
    lambda error, quantile: error,
)
def _pinball(error: jax.Array, quantile: jax.Array) -> jax.Array:
    return weighted(_share(error, quantile), jnp.abs(error))
