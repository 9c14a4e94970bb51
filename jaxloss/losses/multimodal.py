"""Losses for pairs of embeddings from two encoders, such as images and texts."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxloss._core.arguments import fill_masked
from jaxloss._core.decorator import compiled, finite
from jaxloss._core.derivatives import softplus
from jaxloss._core.pairs import compare, cross_entropies, views
from jaxloss._core.reduction import Reduction, reduce_losses


@compiled(
    static=("normalize", "reduction", "axis_name"), domains={"logit_scale": finite, "logit_bias": finite}
)
def clip_loss(
    embeddings: ArrayLike,
    targets: ArrayLike,
    *,
    logit_scale: ArrayLike,
    logit_bias: ArrayLike | None = None,
    normalize: bool = False,
    where: ArrayLike | None = None,
    reduction: Reduction = "mean",
    axis_name: str | None = None,
) -> jax.Array:
    """CLIP loss: softmax cross-entropy of each pair among all targets and among all embeddings.

    With x and y the rows of `embeddings` and `targets` and z_ij = logit_scale · x_i · y_j + logit_bias,

        loss_i = ½ · (log Σ_j exp(z_ij) - z_ii) + ½ · (log Σ_j exp(z_ji) - z_ii)

    The N x N matrix z is never formed.

    Args:
        embeddings: Embeddings, usually unit vectors, shape (N, D). With `normalize` a zero vector
            stays zero, and all its derivatives are 0. An infinite embedding gives NaN.
        targets: Embeddings of the other modality, of the shape of `embeddings`.
        logit_scale: Factor of the logits, a finite number: the exponential of the parameter that CLIP learns.
        logit_bias: Finite number that is added to the logits; it cancels in the loss. Default: 0.
        normalize: Whether to divide vectors by max(‖·‖, 1e-12).
        where: Mask, broadcast to shape (N,). A masked pair is not a negative of other pairs, either.
        reduction: "mean" (divides by the number of pairs), "sum", "none" or "sum_and_weight".
        axis_name: Mesh axis that shards the rows inside `jax.shard_map`; see `help(jaxloss)`.

    Returns:
        A scalar, or an array of shape (N,) for "none"; in nats.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxloss
        >>> embeddings, targets = jnp.array([[1.0, 0.0], [0.0, 1.0]]), jnp.array([[0.6, 0.8], [0.8, 0.6]])
        >>> jaxloss.clip_loss(embeddings, targets, logit_scale=2.0)
        Array(0.913, dtype=float32)

    Source:
        A. Radford et al. (2021), Learning Transferable Visual Models From Natural Language Supervision.
        open_clip: open_clip.loss.ClipLoss.
    """
    rows, others, where = views(embeddings, targets, where, normalize=normalize, axis_name=axis_name)
    dtype = rows.wide.dtype
    rows = rows.times(jnp.asarray(logit_scale, dtype))
    losses = cross_entropies(rows, others, symmetric=True, axis_name=axis_name)
    if logit_bias is not None:
        losses = losses + 0 * jnp.asarray(logit_bias, dtype).reshape(1)  # NaN outside its domain
    return reduce_losses(losses, None, where, reduction, axis_name=axis_name)


@compiled(
    static=("normalize", "reduction", "axis_name"), domains={"logit_scale": finite, "logit_bias": finite}
)
def siglip_loss(
    embeddings: ArrayLike,
    targets: ArrayLike,
    *,
    logit_scale: ArrayLike,
    logit_bias: ArrayLike,
    normalize: bool = False,
    where: ArrayLike | None = None,
    reduction: Reduction = "mean",
    axis_name: str | None = None,
) -> jax.Array:
    """SigLIP loss: sigmoid cross-entropy of all pairs of an embedding and a target in the batch.

    With x and y the rows of `embeddings` and `targets` and z_ij = logit_scale · x_i · y_j + logit_bias,

        loss_i = log(1 + exp(-z_ii)) + Σ_{j≠i} log(1 + exp(z_ij))

    The N x N matrix z is never formed.

    Args:
        embeddings: Embeddings, usually unit vectors, shape (N, D). With `normalize` a zero vector
            stays zero, and all its derivatives are 0. An infinite embedding gives NaN.
        targets: Embeddings of the other modality, of the shape of `embeddings`.
        logit_scale: Factor of the logits, a finite number: the exponential of SigLIP's learned parameter.
        logit_bias: Finite number that is added to the logits. SigLIP learns it, starting from -10.
        normalize: Whether to divide vectors by max(‖·‖, 1e-12).
        where: Mask, broadcast to shape (N,). A masked pair is not a negative of other pairs, either.
        reduction: "mean" (divides by the number of pairs), "sum", "none" or "sum_and_weight".
        axis_name: Mesh axis that shards the rows inside `jax.shard_map`; see `help(jaxloss)`. Each device
            gathers all targets.

    Returns:
        A scalar, or an array of shape (N,) for "none"; in nats.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxloss
        >>> embeddings, targets = jnp.array([[1.0, 0.0], [0.0, 1.0]]), jnp.array([[0.6, 0.8], [0.8, 0.6]])
        >>> jaxloss.siglip_loss(embeddings, targets, logit_scale=2.0, logit_bias=-1.0)
        Array(1.6356, dtype=float32)

    Source:
        X. Zhai et al. (2023), Sigmoid Loss for Language Image Pre-Training.
        open_clip: open_clip.loss.SigLipLoss.
    """
    rows, others, where = views(embeddings, targets, where, normalize=normalize, axis_name=axis_name)
    dtype = rows.wide.dtype
    rows = rows.times(jnp.asarray(logit_scale, dtype))
    losses, _ = compare(_sigmoid_losses, rows, others.gathered(axis_name), jnp.asarray(logit_bias, dtype))
    return reduce_losses(losses, None, where, reduction, axis_name=axis_name)


def _sigmoid_losses(
    similarities: jax.Array, allowed: jax.Array, positive: jax.Array, bias: jax.Array
) -> tuple[jax.Array, None]:
    logits = similarities + bias
    losses = softplus(jnp.where(positive, -logits, logits))
    return jnp.sum(fill_masked(allowed, losses), 1), None
