"""Losses that learn a metric: similarities of embeddings agree with their labels."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from jaxloss._core.decorator import compiled, finite, positive_and_finite
from jaxloss._core.derivatives import softplus
from jaxloss._core.pairs import Statistics, compare, labelled, statistics
from jaxloss._core.reduction import Reduction, reduce_losses


@compiled(
    static=("normalize", "reduction", "axis_name"), domains={"margin": finite, "gamma": positive_and_finite}
)
def circle_loss(
    embeddings: ArrayLike,
    targets: ArrayLike,
    *,
    margin: ArrayLike = 0.4,
    gamma: ArrayLike = 80.0,
    normalize: bool = True,
    where: ArrayLike | None = None,
    reduction: Reduction = "mean",
    axis_name: str | None = None,
) -> jax.Array:
    """Circle loss, where embeddings with the same label are positives.

    With x the rows of `embeddings`, divided by max(‖·‖, 1e-12) if `normalize`, s_ij = x_i · x_j, P(i) the
    other rows with the label of row i, and N(i) the rows with other labels,

        loss_i = log(1 + Σ_{p∈P(i)} exp(-gamma a_ip (s_ip - 1 + margin))
                       · Σ_{n∈N(i)} exp(gamma b_in (s_in - margin)))

    where a_ip = max(1 + margin - s_ip, 0) and b_in = max(s_in + margin, 0) are constants to all derivatives.
    A row without positives or without negatives has loss 0 and does not count in the mean. The N x N matrix s
    is never held.

    Args:
        embeddings: Embeddings, shape (N, D). A zero vector stays zero, and all its derivatives are 0. An
            infinite embedding gives NaN.
        targets: Any integers as labels, shape (N,).
        margin: Relaxation of the optimum, where positives have similarity 1 and negatives 0: a finite number.
        gamma: Factor of the exponents, a finite number > 0.
        normalize: Whether to use unit vectors.
        where: Mask, broadcast to shape (N,). A masked row is neither positive nor negative of others.
        reduction: "mean" (divides by the number of rows that count), "sum", "none" or "sum_and_weight".
        axis_name: Mesh axis that splits the rows inside `jax.shard_map`; see `help(jaxloss)`.

    Returns:
        A scalar, or an array of shape (N,) for "none".

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxloss
        >>> embeddings = jnp.array([[1.0, 0.0], [0.0, 1.0], [3.0, 4.0]])
        >>> jaxloss.circle_loss(embeddings, jnp.array([0, 1, 0]), gamma=2.0)
        Array(0.915, dtype=float32)

    Differences from other libraries:
        * The mean of pytorch-metric-learning's CircleLoss leaves out rows whose loss rounds to 0.

    Source:
        Y. Sun et al. (2020), Circle Loss: A Unified Perspective of Pair Similarity Optimization.
    """
    rows, where = labelled(embeddings, targets, where, normalize=normalize, axis_name=axis_name)
    options = tuple(jnp.asarray(option, rows.wide.dtype) for option in (margin, gamma))
    (positives, negatives), _ = compare(
        _circle_exponents, rows, rows.gathered(axis_name), *options, distinct=True
    )
    counts = (positives.positives > 0) & (negatives.positives > 0)
    losses = jnp.where(counts, softplus(positives.log_sum + negatives.log_sum), 0)
    weight = counts.astype(losses.dtype)
    return reduce_losses(losses, weight, where, reduction, axis_name=axis_name)


def _circle_exponents(
    similarities: jax.Array, allowed: jax.Array, positive: jax.Array, margin: jax.Array, gamma: jax.Array
) -> tuple[tuple[Statistics, Statistics], None]:
    """Returns statistics of the exponents of positives, and of those of negatives."""
    pull = lax.stop_gradient(jnp.maximum(1 + margin - similarities, 0))
    push = lax.stop_gradient(jnp.maximum(similarities + margin, 0))
    of_positives = -gamma * pull * (similarities - (1 - margin))
    of_negatives = gamma * push * (similarities - margin)
    return _of_both(of_positives, of_negatives, allowed, positive)


@compiled(
    static=("normalize", "reduction", "axis_name"),
    domains={"alpha": positive_and_finite, "beta": positive_and_finite, "base": finite},
)
def multi_similarity_loss(
    embeddings: ArrayLike,
    targets: ArrayLike,
    *,
    alpha: ArrayLike = 2.0,
    beta: ArrayLike = 50.0,
    base: ArrayLike = 0.5,
    normalize: bool = True,
    where: ArrayLike | None = None,
    reduction: Reduction = "mean",
    axis_name: str | None = None,
) -> jax.Array:
    """Multi-similarity loss, where embeddings with the same label are positives.

    With x the rows of `embeddings`, divided by max(‖·‖, 1e-12) if `normalize`, s_ij = x_i · x_j, P(i) the
    other rows with the label of row i, and N(i) the rows with other labels,

        loss_i = log(1 + Σ_{p∈P(i)} exp(-alpha (s_ip - base))) / alpha
               + log(1 + Σ_{n∈N(i)} exp(beta (s_in - base))) / beta

    The N x N matrix s is never held.

    Args:
        embeddings: Embeddings, shape (N, D). A zero vector stays zero, and all its derivatives are 0. An
            infinite embedding gives NaN.
        targets: Any integers as labels, shape (N,).
        alpha: Factor of the exponents of positives, a finite number > 0.
        beta: Factor of the exponents of negatives, a finite number > 0.
        base: Similarity from which exponents are counted, a finite number.
        normalize: Whether to use unit vectors.
        where: Mask, broadcast to shape (N,). A masked row is neither positive nor negative of others.
        reduction: "mean" (divides by the number of rows), "sum", "none" or "sum_and_weight".
        axis_name: Mesh axis that splits the rows inside `jax.shard_map`; see `help(jaxloss)`.

    Returns:
        A scalar, or an array of shape (N,) for "none".

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxloss
        >>> embeddings = jnp.array([[1.0, 0.0], [0.0, 1.0], [3.0, 4.0]])
        >>> jaxloss.multi_similarity_loss(embeddings, jnp.array([0, 1, 0]))
        Array(0.3994, dtype=float32)

    Source:
        X. Wang et al. (2019), Multi-Similarity Loss with General Pair Weighting for Deep Metric Learning,
        without its choice of pairs.
    """
    rows, where = labelled(embeddings, targets, where, normalize=normalize, axis_name=axis_name)
    options = tuple(jnp.asarray(option, rows.wide.dtype) for option in (alpha, beta, base))
    (positives, negatives), _ = compare(
        _multi_similarity_exponents, rows, rows.gathered(axis_name), *options, distinct=True
    )
    alpha, beta, _ = options
    losses = softplus(positives.log_sum) / alpha + softplus(negatives.log_sum) / beta
    return reduce_losses(losses, None, where, reduction, axis_name=axis_name)


def _multi_similarity_exponents(
    similarities: jax.Array,
    allowed: jax.Array,
    positive: jax.Array,
    alpha: jax.Array,
    beta: jax.Array,
    base: jax.Array,
) -> tuple[tuple[Statistics, Statistics], None]:
    """Returns statistics of the exponents of positives, and of those of negatives."""
    above = similarities - base
    return _of_both(-alpha * above, beta * above, allowed, positive)


def _of_both(
    of_positives: jax.Array, of_negatives: jax.Array, allowed: jax.Array, positive: jax.Array
) -> tuple[tuple[Statistics, Statistics], None]:
    negative = allowed & ~positive
    of_both = statistics(of_positives, positive, positive), statistics(of_negatives, negative, negative)
    return of_both, None
