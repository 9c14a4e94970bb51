"""Losses over large vocabularies, which never hold the logits of all classes."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.tree_util import Partial
from jax.typing import ArrayLike

from jaxloss._core.arguments import arithmetic_dtype, as_array, broadcast, hide, mask
from jaxloss._core.classes import (
    ClassAxis,
    Labels,
    hidden_labels,
    per_class,
    refuse_ignored_probabilities,
    smoothed,
    with_z_loss,
)
from jaxloss._core.decorator import compiled, fraction, not_negative, positive_and_finite
from jaxloss._core.derivatives import product
from jaxloss._core.projection import Cut, Output, Statistics, statistics
from jaxloss._core.reduction import Reduction, reduce_weighted


@compiled(
    static=("ignore_index", "label_smoothing", "reduction", "axis_name"),
    domains={"label_smoothing": fraction, "z_loss": not_negative, "soft_cap": positive_and_finite},
    indices=("targets",),
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
    """Measures how surprised a model is by the right class, without holding the logits of its last layer.

    loss = cross_entropy(hidden · kernel + bias, targets), with the options of `cross_entropy`. The logits are
    computed for some thousand classes at a time, and again for the gradient.

    Beside arguments and gradients it needs the memory of `hidden`, of a million logits, or of 2 √V for each
    position where that is more, and of a few numbers for each position and each such block. For 4096
    positions of 512 features in float32 that is 19 MB with 32,000 classes and 30 MB with 128,256, and 26 and
    36 MB with the gradient, where all logits are 524 MB and 2.1 GB. `bias`, `soft_cap`, `z_loss` and class
    probabilities cost up to a block of logits more; `label_smoothing` and `weight` up to two, and some time.
    Of so few positions that their logits take less than a block's copy of the kernel, logits are held.

    Args:
        hidden: The last hidden features of the model, real numbers of shape (..., H).
        kernel: The last layer's weights, shape (H, V) for V classes as in Flax's `Linear`; a tied embedding
            passes its transpose.
        targets: Integer class labels in [0, V), of the shape of `hidden` without its last axis; or floating
            class probabilities of shape (..., V).
        bias: The last layer's bias, shape (V,). Default: none.
        weight: How much each class counts, shape (V,). Default: 1 each. For a weight of each position, give
            the losses of `reduction="none"` to `jaxloss.reduce`.
        ignore_index: The label of positions to leave out, as with a mask. It need not be a class.
        label_smoothing: The share of the uniform distribution, a Python number in [0, 1].
        z_loss: How much the squared logarithm of the softmax's denominator counts, a number >= 0. Traced: it
            can be scheduled without compiling again.
        soft_cap: The bound c on the size of logits, which become c · tanh(logits / c); finite and > 0,
            traced. Default: none.
        where: Boolean mask, broadcast to the shape of `hidden` without its last axis. What lies behind False
            has no influence on value or gradient, NaN included, and does not count in the mean.
        reduction: "mean", "sum", "none" for the loss of each position, or "sum_and_weight" for a pair with
            mean = sum / weight, which adds up over micro-batches and devices to the exact mean. For labels,
            weight is Σ weight[y] over the positions that are neither ignored nor masked. For probabilities it
            is the number of positions that are not masked.
        axis_name: Inside `jax.shard_map`, the name of the mesh axis over which the classes are split. Then
            `kernel`, `bias`, `weight` and probabilities are this device's slices; labels still count over all
            classes. Outside, arrays that are split over a mesh need no word: no device gets more of a kernel
            than its own part.

    Returns:
        A scalar for "mean" and "sum", an array of the shape of `hidden` without its last axis for "none", two
        scalars for "sum_and_weight". The dtype is float32, or float64 where `hidden`, `kernel`, `bias` or
        probabilities are; the unit is nats. A label that is neither a class nor `ignore_index` gives NaN in
        the value and in the gradient, and an error under `jax.experimental.checkify`. Where the weight is 0,
        as when every position is ignored, the mean is NaN with gradient 0. An empty sum is 0. Matrix products
        are as precise as `jax.default_matmul_precision` says.

    Raises:
        TypeError: An argument is not an array of real numbers, `targets` are boolean, `where` is not boolean,
            or an option that Python must know while tracing (`ignore_index`, `label_smoothing`, `reduction`,
            `axis_name`) is an array.
        ValueError: The shapes do not fit, `label_smoothing` is outside [0, 1], `z_loss` is a negative number,
            `soft_cap` is a number <= 0, `ignore_index` is not negative and targets are probabilities, or the
            reduction is unknown.

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
        * `kernel` is (H, V), the transpose of PyTorch's `linear_weight`; `bias` is its `linear_bias`.
        * `z_loss`, `soft_cap` and class probabilities without the logits are new. There are any number of
          leading axes, and one axis of classes.
        * `ignore_index` is -100 unless said otherwise, for labels, as in `cross_entropy`.
        * There are no `options`: the loss and every derivative are exact, and block sizes are chosen.
        * A label out of range is NaN, or an error under checkify, where PyTorch raises.
        * bfloat16 and float16 inputs are computed in float32 block by block, and the loss stays float32.

    Source:
        E. Wijmans et al. (2024), Cut Your Losses in Large-Vocabulary Language Models, for the loss without
        logits. PyTorch documentation: torch.nn.LinearCrossEntropyLoss,
        torch.nn.functional.linear_cross_entropy.
    """
    problem = _problem(hidden, kernel, targets, bias, soft_cap, ignore_index, where, axis_name)
    if weight is not None:
        weight = per_class("weight", weight, problem.output.kernel).astype(problem.hidden.dtype)
    labels = problem.labels

    shares = None
    if labels is None or label_smoothing:
        mixed = functools.partial(_shares, label_smoothing=label_smoothing, count=problem.classes)
        shares = Partial(mixed, problem.probs, weight, problem.kept)
    found = problem.statistics(weight=weight, shares=shares)
    log_norm = jnp.log(found["norm"])
    if labels is None:
        losses = with_z_loss(_share_of_surprise(found), z_loss, log_norm + found["largest"])
        return reduce_weighted(losses, None, problem.kept, reduction)
    counts = labels.weight if weight is None else labels.weight * found["weight"]
    losses = product(counts, _surprise(found))
    if label_smoothing:
        losses = smoothed(losses, _share_of_surprise(found), label_smoothing, problem.classes)
    losses = with_z_loss(losses, z_loss, log_norm + found["largest"])
    return reduce_weighted(losses, counts, labels.kept, reduction)


class LinearLogProbs(NamedTuple):
    """What `linear_log_probs` returns: three arrays of one number a position, in nats."""

    log_prob: jax.Array
    logsumexp: jax.Array
    entropy: jax.Array


@compiled(
    static=("ignore_index", "axis_name"), domains={"soft_cap": positive_and_finite}, indices=("targets",)
)
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
    """Returns the targets' log-probability, logsumexp and entropy, without holding the logits.

    With logits = hidden · kernel + bias and p = softmax(logits) at each position,

        log_prob = log p[y]               for the class label y
        log_prob = Σ_c t[c] · log p[c]    for the class probabilities t
        logsumexp = log Σ_c exp(logits[c])
        entropy = -Σ_c p[c] · log p[c]

    which losses of preferences, of reinforcement learning and of distillation are made of. All three have
    derivatives. Memory and time are those of `linear_cross_entropy`; the entropy costs a block's worth of
    memory and some time, unless it is not used inside the same `jit`.

    Args:
        hidden: The last hidden features of the model, real numbers of shape (..., H).
        kernel: The last layer's weights, shape (H, V) for V classes as in Flax's `Linear`; a tied embedding
            passes its transpose.
        targets: Integer class labels in [0, V), of the shape of `hidden` without its last axis; or floating
            class probabilities of shape (..., V).
        bias: The last layer's bias, shape (V,). Default: none.
        ignore_index: The label of positions to leave out, as with a mask. It need not be a class.
        soft_cap: The bound c on the size of logits, which become c · tanh(logits / c); finite and > 0,
            traced. Default: none.
        where: Boolean mask, broadcast to the shape of `hidden` without its last axis. What lies behind False
            has no influence on values or gradients, NaN included.
        axis_name: Inside `jax.shard_map`, the name of the mesh axis over which the classes are split. Then
            `kernel`, `bias` and probabilities are this device's slices; labels still count over all classes.

    Returns:
        `LinearLogProbs(log_prob, logsumexp, entropy)`, each of the shape of `hidden` without its last axis, 0
        at positions that are ignored or masked. The dtype is float32, or float64 where `hidden`, `kernel`,
        `bias` or probabilities are; the unit is nats. A label that is neither a class nor `ignore_index`
        gives a log_prob of NaN with gradient NaN, and an error under `jax.experimental.checkify`.

    Raises:
        TypeError: An argument is not an array of real numbers, `targets` are boolean, `where` is not boolean,
            or an option that Python must know while tracing (`ignore_index`, `axis_name`) is an array.
        ValueError: The shapes do not fit, `soft_cap` is a number <= 0, or `ignore_index` is not negative and
            targets are probabilities.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxloss
        >>> hidden, kernel = jnp.ones((1, 2)), jnp.zeros((2, 4))  # all four classes are equally likely
        >>> found = jaxloss.linear_log_probs(hidden, kernel, jnp.array([3]))
        >>> found.log_prob
        Array([-1.3863], dtype=float32)
        >>> found.entropy
        Array([1.3863], dtype=float32)

    Differences from PyTorch:
        * PyTorch has no such function.

    Source:
        C. E. Shannon (1948), A Mathematical Theory of Communication, for the entropy.
    """
    problem = _problem(hidden, kernel, targets, bias, soft_cap, ignore_index, where, axis_name)
    labels = problem.labels
    shares = None if labels is not None else Partial(_shares, problem.probs, None, problem.kept)
    found = problem.statistics(shares=shares, entropy=True)
    log_norm = jnp.log(found["norm"])
    surprise = _share_of_surprise(found) if labels is None else product(labels.weight, _surprise(found))
    entropy = log_norm + found["spread"] / found["norm"]
    results = (-surprise, log_norm + found["largest"], entropy)
    return LinearLogProbs(*(hide(problem.kept, result) for result in results))


class _Problem(NamedTuple):
    """Arguments that agree."""

    hidden: jax.Array  # in the dtype of arithmetic, and 0 at positions that do not count
    output: Output
    labels: Labels | None  # the targets, or
    probs: jax.Array | None
    kept: jax.Array | None  # which positions count
    classes: int  # how many there are, on all devices
    axis_name: str | None

    def statistics(
        self,
        *,
        weight: jax.Array | None = None,
        shares: Callable[[Cut], jax.Array] | None = None,
        entropy: bool = False,
    ) -> Statistics:
        """Returns what the losses are made of."""
        return statistics(
            self.hidden,
            self.output,
            axis_name=self.axis_name,
            labels=None if self.labels is None else self.labels.classes,
            weight=weight,
            shares=shares,
            entropy=entropy,
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
    """Returns the arguments as arrays, or refuses what does not fit together."""
    hidden, kernel = as_array("hidden", hidden), as_array("kernel", kernel)
    targets = as_array("targets", targets)
    if kernel.ndim != 2 or hidden.shape[-1:] != kernel.shape[:1] or not kernel.shape[1]:
        tied = kernel.ndim == 2 and hidden.shape[-1:] == kernel.shape[1:]
        hint = "; a tied embedding passes its transpose" if tied else ""
        raise ValueError(
            "kernel must have shape (H, V), V > 0, for hidden of shape (..., H), got kernel "
            f"{kernel.shape} and hidden {hidden.shape}{hint}"
        )
    bias = None if bias is None else per_class("bias", bias, kernel)
    soft = jnp.issubdtype(targets.dtype, jnp.floating)
    arrays = [hidden, kernel, *([] if bias is None else [bias]), *([targets] if soft else [])]
    hidden = hidden.astype(arithmetic_dtype(*arrays))
    count = ClassAxis(1, axis_name).count(kernel)
    where = mask(where, hidden.shape[:-1])
    if soft:
        labels, kept = None, where
        _refuse_other_shape(targets, (*hidden.shape[:-1], kernel.shape[1]))
        refuse_ignored_probabilities(ignore_index, targets)
    else:
        labels = hidden_labels(targets, hidden, count, ignore_index, where)
        kept = labels.kept
    hidden = ClassAxis(hidden.ndim - 1, None).hide(kept, hidden)
    output = Output(kernel, bias, None if soft_cap is None else jnp.asarray(soft_cap, hidden.dtype))
    return _Problem(hidden, output, labels, targets if soft else None, kept, count, axis_name)


def _refuse_other_shape(targets: jax.Array, expected: tuple[int, ...]) -> None:
    if targets.shape != expected:
        raise ValueError(
            f"floating targets are class probabilities and must have shape {expected}, got "
            f"{targets.shape}; class indices must be integers"
        )


def _shares(
    probs: jax.Array | None,
    weight: jax.Array | None,
    kept: jax.Array | None,
    cut: Cut,
    *,
    label_smoothing: float = 0.0,
    count: int = 1,
) -> jax.Array:
    """Returns the weights of a block's classes, times their smoothed probabilities if there are any."""
    factor = None if weight is None else cut(weight)
    if probs is None:
        return jnp.ones(()) if factor is None else factor
    block = cut(probs)
    block = block if kept is None else hide(jnp.expand_dims(kept, -1), block)
    if label_smoothing:
        block = (1 - label_smoothing) * block + label_smoothing / count
    return block if factor is None else block * broadcast("weight", factor, block.shape)


def _surprise(found: Statistics) -> jax.Array:
    """Returns -log p of the label's class."""
    return jnp.log(found["norm"]) + (found["largest"] - found["logit"])


def _share_of_surprise(found: Statistics) -> jax.Array:
    """Returns Σ shares · -log p."""
    return product(found["share"], jnp.log(found["norm"])) + found["share_gap"]
