"""Losses over classes, with a class label or a distribution over the classes at each position."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxloss._core.arguments import agree, as_array, fill_masked, mask, widened
from jaxloss._core.checks import checked, one_or_nan
from jaxloss._core.classes import (
    ClassAxis,
    Labels,
    class_labels,
    log_normalizer,
    nll_over_classes,
    refuse_misfit_of_probabilities,
    smoothed,
    soft_capped,
    take_class_in_pass,
    weight_of_classes,
    with_z_loss,
)
from jaxloss._core.decorator import compiled, fraction, not_negative, positive_and_finite
from jaxloss._core.derivatives import derivatives, weighted, weighted_twice
from jaxloss._core.reduction import BatchReduction, Reduction, reduce_elementwise, reduce_losses


@compiled(
    static=("axis", "ignore_index", "label_smoothing", "reduction", "axis_name"),
    domains={"label_smoothing": fraction, "z_loss": not_negative, "soft_cap": positive_and_finite},
)
def cross_entropy(
    logits: ArrayLike,
    targets: ArrayLike,
    *,
    axis: int = -1,
    weight: ArrayLike | None = None,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    z_loss: ArrayLike = 0.0,
    soft_cap: ArrayLike | None = None,
    where: ArrayLike | None = None,
    reduction: Reduction = "mean",
    axis_name: str | None = None,
) -> jax.Array:
    """Softmax cross-entropy between logits and class labels or probabilities.

    With p = softmax(logits) over C classes and label smoothing s,

        loss = (1 - s) · weight[y] · -log p[y] + s / C · Σ_c weight[c] · -log p[c]    for a label y
        loss = Σ_c weight[c] · ((1 - s) · t[c] + s / C) · -log p[c]                   for probabilities t

    Args:
        logits: Raw scores, any shape with a class axis.
        targets: Integer class labels in [0, C), of the shape of `logits` without the class axis; or
            floating-point class probabilities, of the shape of `logits`.
        axis: Class axis of `logits`, and of probabilities.
        weight: Weight of each class, shape (C,). Default: 1.
        ignore_index: Label of positions to ignore, any integer; negative if targets are probabilities.
        label_smoothing: Share s of the uniform distribution, a static number in [0, 1].
        z_loss: Number >= 0. Adds z_loss · logsumexp(logits)², which keeps logits small. Not in PyTorch.
        soft_cap: Finite c > 0. Replaces logits by c · tanh(logits / c). Default: none. Not in PyTorch.
        where: Mask, broadcast to the shape of `logits` without the class axis; see `help(jaxloss)`.
        reduction: "mean", "sum", "none" or "sum_and_weight". The mean divides by Σ weight[y] over the
            labels that are not ignored; for probabilities, by the number of positions.
        axis_name: Mesh axis that shards the classes inside `jax.shard_map`; see `help(jaxloss)`.

    Returns:
        A scalar, or an array of the shape of `logits` without the class axis for "none"; in nats.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxloss
        >>> logits = jnp.array([[2.0, 1.0, 0.0], [0.0, 1.0, 2.0], [5.0, 5.0, 5.0]])
        >>> labels = jnp.array([0, 2, -100])  # the last position is ignored
        >>> jaxloss.cross_entropy(logits, labels)
        Array(0.4076, dtype=float32)

    Differences from PyTorch:
        * A class of weight or probability 0 contributes 0 even if its logit is -inf, and ignored positions
          have gradient 0 even if their logits are NaN; PyTorch gives NaN.

    Source:
        Label smoothing: C. Szegedy et al. (2016). z-loss: PaLM (2022). Soft cap: Gemma 2 (2024). PyTorch
        documentation: torch.nn.CrossEntropyLoss, torch.nn.functional.cross_entropy.
    """
    logits, targets = as_array("logits", logits), as_array("targets", targets)
    classes = ClassAxis.of(axis, axis_name, "logits", logits)
    where = classes.mask(where, logits)
    if weight is not None:
        (weight,) = widened(as_array("weight", weight))  # converted once, so its gradient is rounded once
    options = (weight, label_smoothing, z_loss, soft_cap)
    if jnp.issubdtype(targets.dtype, jnp.floating):
        refuse_misfit_of_probabilities(targets, logits, ignore_index)
        losses = _soft_losses(logits, targets, classes, where, *options)
        return reduce_losses(losses, None, where, reduction)
    labels = class_labels(targets, "logits", logits, classes, weight, ignore_index, where)
    losses = _hard_losses(logits, labels, classes, *options)
    return reduce_losses(losses, labels.weight, labels.valid, reduction)


@compiled(static=("axis", "ignore_index", "reduction", "axis_name"))
def nll_loss(
    log_probs: ArrayLike,
    targets: ArrayLike,
    *,
    axis: int = -1,
    weight: ArrayLike | None = None,
    ignore_index: int = -100,
    where: ArrayLike | None = None,
    reduction: Reduction = "mean",
    axis_name: str | None = None,
) -> jax.Array:
    """Negative log-likelihood of class labels, from log-probabilities.

        loss = weight[y] · -log_probs[y]    at a position with label y

    For logits, use `cross_entropy`.

    Args:
        log_probs: Log-probabilities, as from `jax.nn.log_softmax`, any shape with a class axis.
        targets: Integer class labels in [0, C), of the shape of `log_probs` without the class axis.
        axis: Class axis of `log_probs`.
        weight: Weight of each class, shape (C,). Default: 1.
        ignore_index: Label of positions to ignore, any integer.
        where: Mask, broadcast to the shape of `targets`; see `help(jaxloss)`.
        reduction: "mean" (divides by Σ weight[y] over the labels that are not ignored), "sum", "none" or
            "sum_and_weight".
        axis_name: Mesh axis that shards the classes inside `jax.shard_map`; see `help(jaxloss)`.

    Returns:
        A scalar, or an array of the shape of `targets` for "none"; in nats.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxloss
        >>> log_probs = jnp.log(jnp.array([[0.5, 0.25, 0.25], [0.1, 0.1, 0.8]]))
        >>> jaxloss.nll_loss(log_probs, jnp.array([0, 2]))
        Array(0.4581, dtype=float32)

    Differences from PyTorch:
        * A log-probability of -inf whose class has weight 0 contributes 0; PyTorch gives NaN.

    Source:
        PyTorch documentation: torch.nn.NLLLoss, torch.nn.functional.nll_loss.
    """
    log_probs, targets = as_array("log_probs", log_probs), as_array("targets", targets)
    classes = ClassAxis.of(axis, axis_name, "log_probs", log_probs)
    labels = class_labels(
        targets, "log_probs", log_probs, classes, weight, ignore_index, classes.mask(where, log_probs)
    )
    log_probs = classes.fill_masked(labels.valid, log_probs)
    (wide,) = widened(log_probs)
    losses = weighted(labels.weight, -take_class_in_pass(wide, labels.classes, classes, log_probs))
    return reduce_losses(losses, labels.weight, labels.valid, reduction)


@compiled(static=("log_target", "reduction"))
def kl_div(
    log_probs: ArrayLike,
    targets: ArrayLike,
    *,
    log_target: bool = False,
    where: ArrayLike | None = None,
    reduction: BatchReduction = "mean",
) -> jax.Array:
    """Kullback-Leibler divergence between target and predicted distributions.

        loss = targets · (log(targets) - log_probs)   for each class
        loss = exp(targets) · (targets - log_probs)   with log_target=True

    The divergence of a distribution is the sum over its classes, so the mean over a batch of shape (N, C)
    is `reduction="batchmean"`; "mean" also divides by C.

    Args:
        log_probs: Log-probabilities, as from `jax.nn.log_softmax`, any shape. They are not normalized here.
        targets: Probabilities >= 0, or log-probabilities with `log_target=True`, of the shape of
            `log_probs`. Negative probabilities give NaN.
        log_target: Whether `targets` are log-probabilities.
        where: Mask, broadcast to the shape of `log_probs`; see `help(jaxloss)`.
        reduction: "mean" (divides by the number of elements), "batchmean" (by the number of rows along the
            first axis that are not fully masked), "sum", "none" or "sum_and_weight".

    Returns:
        A scalar, or an array of the shape of `log_probs` for "none"; in nats.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxloss
        >>> log_probs = jnp.log(jnp.array([[0.5, 0.25, 0.25], [0.1, 0.1, 0.8]]))
        >>> targets = jnp.array([[0.5, 0.5, 0.0], [0.2, 0.2, 0.6]])
        >>> jaxloss.kl_div(log_probs, targets, reduction="batchmean")
        Array(0.2256, dtype=float32)

    Differences from PyTorch:
        * A target of probability 0 has loss 0, even if `log_probs` is -inf; PyTorch gives NaN.
        * The gradient with respect to a target of probability 0 is its limit; PyTorch gives NaN. With
          `log_target` it is 0; else it is -∞, or ∞ if `log_probs` is -inf.
        * A negative target probability also has gradient NaN. "mean" does not warn.

    Source:
        S. Kullback and R. A. Leibler (1951), On Information and Sufficiency. PyTorch documentation:
        torch.nn.KLDivLoss, torch.nn.functional.kl_div.
    """
    log_probs, targets = agree(log_probs=log_probs, targets=targets)
    if not log_target:
        (wide,) = widened(targets)
        valid = fill_masked(mask(where, targets), wide >= 0, True)
        targets = checked(targets, valid, "targets: expected probabilities >= 0")
    return reduce_elementwise(
        _divergence_of_logs if log_target else _divergence,
        [log_probs, targets],
        where=where,
        reduction=reduction,
        words=BatchReduction,
    )


def _hard_losses(
    logits: jax.Array,
    labels: Labels,
    classes: ClassAxis,
    weight: ArrayLike | None,
    label_smoothing: float,
    z_loss: ArrayLike,
    soft_cap: ArrayLike | None,
) -> jax.Array:
    """Returns weight[y] · -log p[y], smoothed with Σ weight · -log p, plus the z-loss."""
    logits = classes.fill_masked(labels.valid, logits)
    (wide,) = widened(logits)
    wide = soft_capped(wide, soft_cap)
    shift = classes.max(wide)
    log_norm = log_normalizer(wide, shift, classes)
    own = take_class_in_pass(wide, labels.classes, classes, logits if soft_cap is None else wide)
    losses = weighted(labels.weight, log_norm - (own - shift))
    if label_smoothing:
        uniform = nll_over_classes(wide, shift, log_norm, weight, classes)
        losses = smoothed(losses, uniform, label_smoothing, classes.count(wide))
    return with_z_loss(losses, z_loss, log_norm + shift)


def _soft_losses(
    logits: jax.Array,
    probs: jax.Array,
    classes: ClassAxis,
    where: jax.Array | None,
    weight: ArrayLike | None,
    label_smoothing: float,
    z_loss: ArrayLike,
    soft_cap: ArrayLike | None,
) -> jax.Array:
    """Returns Σ weight · probs · -log p with smoothed probs, plus the z-loss."""
    logits, probs = (classes.fill_masked(where, array) for array in agree(logits=logits, targets=probs))
    wide, probs = widened(logits, probs)
    wide = soft_capped(wide, soft_cap)
    if label_smoothing:
        probs = (1 - label_smoothing) * probs + label_smoothing / classes.count(wide)
    shift = classes.max(wide)
    log_norm = log_normalizer(wide, shift, classes)
    nll = classes.expand(log_norm) - (wide - classes.expand(shift))
    of_classes = weight_of_classes(weight, wide, classes).astype(wide.dtype)
    losses = classes.sum(weighted_twice(of_classes, probs, nll))
    return with_z_loss(losses, z_loss, log_norm + shift)


def _excess(probs: jax.Array, true_log: jax.Array, log_probs: jax.Array) -> jax.Array:
    """Returns probs · (true_log - log_probs) for true_log = log(probs), with 0 · ∞ = 0."""
    return jnp.where((probs == 0) & ~jnp.isnan(log_probs), 0, probs * (true_log - log_probs))


def _divergence_slope(log_probs: jax.Array, targets: jax.Array) -> jax.Array:
    slope = 1 + jnp.log(targets) - log_probs
    slope = jnp.where((targets == 0) & (log_probs == -jnp.inf), jnp.inf, slope)
    return slope * _validity(targets)


def _validity(targets: jax.Array) -> jax.Array:
    return one_or_nan(~(targets < 0), targets.dtype)


@derivatives(lambda log_probs, targets: -targets * _validity(targets), _divergence_slope)
def _divergence(log_probs: jax.Array, targets: jax.Array) -> jax.Array:
    return _excess(targets, jnp.log(targets), log_probs)


def _divergence_of_logs_slope(log_probs: jax.Array, targets: jax.Array) -> jax.Array:
    return _divergence_of_logs(log_probs, targets) + jnp.exp(targets)


@derivatives(lambda log_probs, targets: -jnp.exp(targets), _divergence_of_logs_slope)
def _divergence_of_logs(log_probs: jax.Array, targets: jax.Array) -> jax.Array:
    return _excess(jnp.exp(targets), targets, log_probs)
