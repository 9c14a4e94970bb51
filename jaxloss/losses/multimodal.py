"""Losses of pairs from two encoders, such as images and texts."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxloss._core.decorator import compiled, finite
from jaxloss._core.pairs import cross_entropies, views
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

        loss_i = ½ (log Σ_j exp(z_ij) - z_ii) + ½ (log Σ_j exp(z_ji) - z_ii)

    The N x N matrix z is never held.

    Args:
        embeddings: Embeddings, usually unit vectors, shape (N, D). With `normalize` a zero vector
            stays zero, and all its derivatives are 0. An infinite embedding gives NaN.
        targets: Embeddings of the other modality, of the shape of `embeddings`.
        logit_scale: Factor of the logits, a finite number: the exponential of the parameter that CLIP learns.
        logit_bias: Finite number that is added to the logits, where it cancels. Default: 0.
        normalize: Whether to divide vectors by max(‖·‖, 1e-12).
        where: Mask, broadcast to shape (N,). A masked pair is no negative of others, either.
        reduction: "mean" (divides by the number of pairs), "sum", "none" or "sum_and_weight".
        axis_name: Mesh axis that splits the rows inside `jax.shard_map`; see `help(jaxloss)`.

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
    losses = cross_entropies(
        rows, others, jnp.asarray(logit_scale, dtype), symmetric=True, axis_name=axis_name
    )
    if logit_bias is not None:
        losses = losses + 0 * jnp.asarray(logit_bias, dtype).reshape(1)  # NaN outside its domain
    return reduce_losses(losses, None, where, reduction, axis_name=axis_name)
