"""Losses over large vocabularies that never materialize the logits of all classes."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxloss._core.arguments import arithmetic_dtype, as_array, fill_masked
from jaxloss._core.blocks import Layer, Statistics
from jaxloss._core.classes import (
    ClassAxis,
    Labels,
    labels_without_weight,
    per_class,
    refuse_ignored_probabilities,
    smoothed,
    with_z_loss,
)
from jaxloss._core.decorator import compiled, fraction, not_negative, positive_and_finite
from jaxloss._core.derivatives import weighted
from jaxloss._core.projection import features_and_kernel, statistics
from jaxloss._core.reduction import Reduction, reduce_losses


@compiled(
    static=("ignore_index", "label_smoothing", "reduction", "axis_name"),
    domains={"label_smoothing": fraction, "z_loss": not_negative, "soft_cap": positive_and_finite},
)
def linear_cross_entropy(
    hidden: ArrayLike,
    kernel: ArrayLike,
    targets: ArrayLike,
    *,
    bias: ArrayLike | None = None,
    weight: ArrayLike | None = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    z_loss: ArrayLike = 0.0,
    soft_cap: ArrayLike | None = None,
    where: ArrayLike | None = None,
    reduction: Reduction = "mean",
    axis_name: str | None = None,
) -> jax.Array:
    """Softmax cross-entropy of a linear layer's output, without materializing its logits.

        loss = cross_entropy(hidden · kernel + bias, targets)

    with the options of `cross_entropy`. Logits are computed in blocks and recomputed for the gradient, so
    they are never all in memory. If `hidden` and `kernel` are bfloat16, matrix products have bfloat16
    operands and float32 sums.

    Args:
        hidden: Input of the last layer, shape (..., H).
        kernel: Weights of the last layer, shape (H, V) for V classes; transpose a tied embedding.
        targets: Integer class labels in [0, V), of the shape of `hidden` without its last axis; or
            floating-point class probabilities, shape (..., V).
        bias: Bias of the last layer, shape (V,). Default: none.
        weight: Weight of each class, shape (V,). Default: 1.
        ignore_index: Label of positions to ignore, any integer; negative if targets are probabilities.
        label_smoothing: Share of the uniform distribution, a static number in [0, 1].
        z_loss: Number >= 0. Adds z_loss · logsumexp(logits)². Not in PyTorch.
        soft_cap: Finite c > 0. Replaces logits by c · tanh(logits / c). Default: none. Not in PyTorch.
        where: Mask, broadcast to the shape of `hidden` without its last axis; see `help(jaxloss)`.
        reduction: "mean" (divides as in `cross_entropy`), "sum", "none" or "sum_and_weight".
        axis_name: Mesh axis that shards the classes inside `jax.shard_map`; see `help(jaxloss)`.

    Returns:
        A scalar, or an array of the shape of `hidden` without its last axis for "none"; in nats.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import jaxloss
        >>> hidden = jnp.ones((2, 8))
        >>> kernel = jax.random.normal(jax.random.key(0), (8, 50_000))
        >>> labels = jnp.array([7, -100])  # the second position is ignored
        >>> loss = jaxloss.linear_cross_entropy(hidden, kernel, labels)
        >>> bool(jnp.isclose(loss, jaxloss.cross_entropy(hidden @ kernel, labels)))
        True

    Differences from PyTorch:
        * `kernel` is PyTorch's `linear_weight`, transposed. No `options`: derivatives are always exact.

    Source:
        E. Wijmans et al. (2024), Cut Your Losses in Large-Vocabulary Language Models. PyTorch
        documentation: torch.nn.LinearCrossEntropyLoss, torch.nn.functional.linear_cross_entropy.
    """
    problem = _problem(hidden, kernel, targets, bias, soft_cap, ignore_index, where, axis_name)
    if weight is not None:
        weight = per_class("weight", weight, problem.layer.kernel)
    labels = problem.labels
    found = problem.statistics(weight=weight, label_smoothing=label_smoothing)
    log_normalizer = jnp.log(found["normalizer"])
    if labels is None:
        losses = with_z_loss(_soft_nll(found), z_loss, log_normalizer + found["largest"])
        return reduce_losses(losses, None, problem.valid, reduction)
    counts = labels.weight if weight is None else labels.weight * found["weight"]
    losses = weighted(counts, _nll(found))
    if label_smoothing:
        losses = smoothed(losses, _soft_nll(found), label_smoothing, problem.classes)
    losses = with_z_loss(losses, z_loss, log_normalizer + found["largest"])
    return reduce_losses(losses, counts, labels.valid, reduction)


class LinearLogProbs(NamedTuple):
    """Result of `linear_log_probs`: log-probability, logsumexp and entropy of each position, in nats."""

    log_prob: jax.Array
    logsumexp: jax.Array
    entropy: jax.Array


@compiled(static=("ignore_index", "axis_name"), domains={"soft_cap": positive_and_finite})
def linear_log_probs(
    hidden: ArrayLike,
    kernel: ArrayLike,
    targets: ArrayLike,
    *,
    bias: ArrayLike | None = None,
    ignore_index: int = -100,
    soft_cap: ArrayLike | None = None,
    where: ArrayLike | None = None,
    axis_name: str | None = None,
) -> LinearLogProbs:
    """Log-probability, logsumexp and entropy of a linear layer's output, without materializing its logits.

    With logits = hidden · kernel + bias and p = softmax(logits) at each position,

        log_prob = log p[y]                 for a label y
        log_prob = Σ_c t[c] · log p[c]      for probabilities t
        logsumexp = log Σ_c exp(logits[c])
        entropy = -Σ_c p[c] · log p[c]

    All three are differentiable; logits are computed in blocks, as in `linear_cross_entropy`.

    Args:
        hidden: Input of the last layer, shape (..., H).
        kernel: Weights of the last layer, shape (H, V) for V classes; transpose a tied embedding.
        targets: Integer class labels in [0, V), of the shape of `hidden` without its last axis; or
            floating-point class probabilities, shape (..., V).
        bias: Bias of the last layer, shape (V,). Default: none.
        ignore_index: Label of positions to ignore, any integer; negative if targets are probabilities.
        soft_cap: Finite c > 0. Replaces logits by c · tanh(logits / c). Default: none.
        where: Mask, broadcast to the shape of `hidden` without its last axis; see `help(jaxloss)`.
        axis_name: Mesh axis that shards the classes inside `jax.shard_map`; see `help(jaxloss)`.

    Returns:
        `LinearLogProbs(log_prob, logsumexp, entropy)`, each of the shape of `hidden` without its last axis,
        in nats, and 0 at ignored and masked positions.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxloss
        >>> hidden, kernel = jnp.ones((1, 2)), jnp.zeros((2, 4))  # all four classes are equally likely
        >>> found = jaxloss.linear_log_probs(hidden, kernel, jnp.array([3]))
        >>> found.log_prob
        Array([-1.3863], dtype=float32)
        >>> found.entropy
        Array([1.3863], dtype=float32)

    Source:
        C. E. Shannon (1948), A Mathematical Theory of Communication (entropy).
    """
    problem = _problem(hidden, kernel, targets, bias, soft_cap, ignore_index, where, axis_name)
    labels = problem.labels
    found = problem.statistics(entropy=True)
    log_normalizer = jnp.log(found["normalizer"])
    nll = _soft_nll(found) if labels is None else weighted(labels.weight, _nll(found))
    entropy = log_normalizer + found["spread"] / found["normalizer"]
    results = (-nll, log_normalizer + found["largest"], entropy)
    return LinearLogProbs(*(fill_masked(problem.valid, result) for result in results))


class _Problem(NamedTuple):
    """The checked arguments."""

    layer: Layer
    dtype: jnp.dtype  # of arithmetic
    labels: Labels | None  # None if the targets are probabilities
    probs: jax.Array | None  # None if the targets are labels
    valid: jax.Array | None  # mask of positions
    classes: int  # number of classes on all devices
    axis_name: str | None

    def statistics(self, **options: Any) -> Statistics:
        """Returns statistics of the logits."""
        return statistics(
            self.layer,
            self.dtype,
            axis_name=self.axis_name,
            labels=None if self.labels is None else self.labels.classes,
            probs=self.probs,
            valid=self.valid,
            **options,
        )


def _problem(
    hidden: ArrayLike,
    kernel: ArrayLike,
    targets: ArrayLike,
    bias: ArrayLike | None,
    soft_cap: ArrayLike | None,
    ignore_index: int,
    where: ArrayLike | None,
    axis_name: str | None,
) -> _Problem:
    """Converts and checks the arguments."""
    hidden, kernel = features_and_kernel(hidden, kernel)
    targets = as_array("targets", targets)
    bias = None if bias is None else per_class("bias", bias, kernel)
    soft = jnp.issubdtype(targets.dtype, jnp.floating)
    arrays = [hidden, kernel, *([] if bias is None else [bias]), *([targets] if soft else [])]
    dtype = arithmetic_dtype(*arrays)
    count = ClassAxis(1, axis_name).count(kernel)
    features = ClassAxis(hidden.ndim - 1, None)
    where = features.mask(where, hidden)
    if soft:
        labels, valid = None, where
        _refuse_other_shape(targets, (*hidden.shape[:-1], kernel.shape[1]))
        refuse_ignored_probabilities(ignore_index, targets)
    else:
        labels = labels_without_weight(targets, "hidden", hidden, features, count, ignore_index, where)
        valid = labels.valid
    layer = Layer(hidden, kernel, bias, None if soft_cap is None else jnp.asarray(soft_cap, dtype))
    return _Problem(layer, dtype, labels, targets if soft else None, valid, count, axis_name)


def _refuse_other_shape(targets: jax.Array, expected: tuple[int, ...]) -> None:
    if targets.shape != expected:
        raise ValueError(
            f"floating targets are class probabilities and must have shape {expected}, got "
            f"{targets.shape}; class indices must be integers"
        )


def _nll(found: Statistics) -> jax.Array:
    """Returns -log p of the label's class."""
    return jnp.log(found["normalizer"]) + found["label_gap"]


def _soft_nll(found: Statistics) -> jax.Array:
    """Returns Σ shares · -log p."""
    return weighted(found["share"], jnp.log(found["normalizer"])) + found["share_gap"]
