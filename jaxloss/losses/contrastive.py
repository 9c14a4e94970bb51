"""Contrastive losses, which compare each embedding with all others in the batch."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxloss._core.arguments import as_array, fill_masked, sharded_like
from jaxloss._core.decorator import compiled, positive
from jaxloss._core.derivatives import softplus
from jaxloss._core.pairs import Rows, compare, cross_entropies, inner_products, labelled, softmax, views
from jaxloss._core.reduction import Reduction, reduce_losses


@compiled(
    static=("symmetric", "normalize", "reduction", "axis_name"),
    domains={"temperature": positive},
)
def info_nce_loss(
    embeddings: ArrayLike,
    targets: ArrayLike,
    *,
    negatives: ArrayLike | None = None,
    temperature: ArrayLike = 0.1,
    symmetric: bool = False,
    normalize: bool = True,
    where: ArrayLike | None = None,
    reduction: Reduction = "mean",
    axis_name: str | None = None,
) -> jax.Array:
    """InfoNCE loss: softmax cross-entropy of each embedding's own target among all targets.

    With x and y the rows of `embeddings` and `targets`, divided by max(‖·‖, 1e-12) if `normalize`, and
    z_ij = x_i · y_j / temperature,

        loss_i = log Σ_j exp(z_ij) - z_ii

    The N x N matrix z is never formed.

    Args:
        embeddings: Embeddings, shape (N, D). A zero vector stays zero, and all its derivatives are 0. An
            infinite embedding gives NaN.
        targets: The positive of each embedding, of the shape of `embeddings`.
        negatives: Embeddings that replace the other targets, shape (M, D), or (N, M, D) for separate
            negatives of each embedding. Default: the other targets.
        temperature: A number > 0.
        symmetric: Whether to average this loss with that of each target's own embedding among all embeddings.
            It needs the default negatives.
        normalize: Whether to normalize the vectors to unit length.
        where: Mask, broadcast to shape (N,). A masked pair is not a negative of other pairs, either.
        reduction: "mean" (divides by the number of pairs), "sum", "none" or "sum_and_weight".
        axis_name: Mesh axis that shards the N rows inside `jax.shard_map`; see `help(jaxloss)`. Negatives of
            shape (M, D) are not gathered.

    Returns:
        A scalar, or an array of shape (N,) for "none"; in nats.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxloss
        >>> embeddings, targets = jnp.array([[1.0, 0.0], [0.0, 1.0]]), jnp.array([[3.0, 4.0], [4.0, 3.0]])
        >>> jaxloss.info_nce_loss(embeddings, targets, temperature=0.5)
        Array(0.9130, dtype=float32)

    Source:
        A. van den Oord et al. (2018), Representation Learning with Contrastive Predictive Coding.
    """
    rows, others, where = views(embeddings, targets, where, normalize=normalize, axis_name=axis_name)
    rows = rows.times(1 / jnp.asarray(temperature, rows.wide.dtype))
    if negatives is None:
        losses = cross_entropies(rows, others, symmetric=symmetric, axis_name=axis_name)
    elif symmetric:
        raise ValueError(
            "symmetric must be False if negatives are given, since these are for embeddings only"
        )
    else:
        given = as_array("negatives", negatives)
        losses = _among_given(rows, others, given, normalize)
    return reduce_losses(losses, None, where, reduction, axis_name=axis_name)


@compiled(static=("normalize", "reduction", "axis_name"), domains={"temperature": positive})
def nt_xent_loss(
    embeddings: ArrayLike,
    targets: ArrayLike,
    *,
    temperature: ArrayLike = 0.5,
    normalize: bool = True,
    where: ArrayLike | None = None,
    reduction: Reduction = "mean",
    axis_name: str | None = None,
) -> jax.Array:
    """NT-Xent loss of two views, as in SimCLR.

    With v the 2N rows of both views, divided by max(‖·‖, 1e-12) if `normalize`, and
    z_ij = v_i · v_j / temperature,

        loss_i = log Σ_{j≠i} exp(z_ij) - z_ip    where v_p is the other view of v_i

    and the loss of a pair is the mean of those of its two views. The 2N x 2N matrix z is never formed.

    Args:
        embeddings: Embeddings of one view, shape (N, D). A zero vector stays zero, and all its
            derivatives are 0. An infinite embedding gives NaN.
        targets: Embeddings of the other view, of the shape of `embeddings`.
        temperature: A number > 0.
        normalize: Whether to normalize the vectors to unit length.
        where: Mask, broadcast to shape (N,). A masked pair is not a negative of other pairs, either.
        reduction: "mean" (divides by the number of pairs), "sum", "none" or "sum_and_weight".
        axis_name: Mesh axis that shards the rows inside `jax.shard_map`; see `help(jaxloss)`.

    Returns:
        A scalar, or an array of shape (N,) for "none"; in nats.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxloss
        >>> embeddings, targets = jnp.array([[1.0, 0.0], [0.0, 1.0]]), jnp.array([[3.0, 4.0], [4.0, 3.0]])
        >>> jaxloss.nt_xent_loss(embeddings, targets)
        Array(1.2707, dtype=float32)

    Source:
        T. Chen et al. (2020), A Simple Framework for Contrastive Learning of Visual Representations.
    """
    first, second, where = views(embeddings, targets, where, normalize=normalize, axis_name=axis_name)
    rows = first.interleaved(second)
    sharp = rows.times(1 / jnp.asarray(temperature, rows.wide.dtype))
    of_rows, _ = compare(softmax, sharp, rows.gathered(axis_name), distinct=True)
    losses = jnp.mean(of_rows.losses.reshape(-1, 2), 1)
    return reduce_losses(losses, None, where, reduction, axis_name=axis_name)


@compiled(static=("normalize", "reduction", "axis_name"), domains={"temperature": positive})
def supervised_contrastive_loss(
    embeddings: ArrayLike,
    targets: ArrayLike,
    *,
    temperature: ArrayLike = 0.1,
    normalize: bool = True,
    where: ArrayLike | None = None,
    reduction: Reduction = "mean",
    axis_name: str | None = None,
) -> jax.Array:
    """Supervised contrastive loss, where embeddings with the same label are positives.

    With x the rows of `embeddings`, divided by max(‖·‖, 1e-12) if `normalize`,
    z_ij = x_i · x_j / temperature, and P(i) the other rows with the label of row i,

        loss_i = log Σ_{j≠i} exp(z_ij) - mean_{p∈P(i)} z_ip

    A row without positives has loss 0 and does not count in the mean. The N x N matrix z is never formed.

    Args:
        embeddings: Embeddings, shape (N, D). A zero vector stays zero, and all its derivatives are 0. An
            infinite embedding gives NaN.
        targets: Integer labels of any value, shape (N,).
        temperature: A number > 0.
        normalize: Whether to normalize the vectors to unit length.
        where: Mask, broadcast to shape (N,). A masked row is neither a positive nor a negative of other rows.
        reduction: "mean" (divides by the number of rows with positives), "sum", "none" or "sum_and_weight".
        axis_name: Mesh axis that shards the rows inside `jax.shard_map`; see `help(jaxloss)`.

    Returns:
        A scalar, or an array of shape (N,) for "none"; in nats.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxloss
        >>> embeddings = jnp.array([[1.0, 0.0], [0.0, 1.0], [3.0, 4.0]])
        >>> jaxloss.supervised_contrastive_loss(embeddings, jnp.array([0, 1, 0]), temperature=1.0)
        Array(0.6178, dtype=float32)

    Differences from other libraries:
        * pytorch-metric-learning's loss is 0 where all labels are equal, and its mean leaves out rows whose
          loss rounds to 0.

    Source:
        P. Khosla et al. (2020), Supervised Contrastive Learning (its loss L_out).
    """
    rows, where = labelled(embeddings, targets, where, normalize=normalize, axis_name=axis_name)
    sharp = rows.times(1 / jnp.asarray(temperature, rows.wide.dtype))
    of_rows, _ = compare(softmax, sharp, rows.gathered(axis_name), distinct=True)
    weight = (of_rows.positives > 0).astype(rows.wide.dtype)
    return reduce_losses(of_rows.losses, weight, where, reduction, axis_name=axis_name)


def _among_given(rows: Rows, positives: Rows, negatives: jax.Array, normalize: bool) -> jax.Array:
    """Returns the cross-entropy of each row's positive among itself and the given negatives."""
    count, size = rows.vectors.shape
    if negatives.shape not in ((*negatives.shape[:1], size), (count, *negatives.shape[1:2], size)):
        raise ValueError(
            f"negatives must have shape (M, {size}) or ({count}, M, {size}), got shape {negatives.shape}"
        )
    dtype = rows.scale.dtype
    positive = inner_products(rows, positives, 1)[:, 0]
    if negatives.ndim == 2:
        others = Rows.of(negatives, dtype, normalize=normalize, labels=())
        found, _ = compare(softmax, rows._replace(labels=()), others)
        return softplus(found.log_sum - positive)
    negatives = sharded_like(rows.vectors[:, None], negatives)
    negatives = fill_masked(rows.valid[:, None, None], negatives)
    others = Rows.of(negatives.reshape(-1, size), dtype, normalize=normalize)
    logits = inner_products(rows, others, negatives.shape[1])
    return softplus(jax.nn.logsumexp(logits, 1) - positive)
