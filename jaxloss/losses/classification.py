"""Losses over classes: one right class, or one distribution over the classes, at each position."""

import functools

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxloss._core.arguments import agree, as_array, class_axis, hide, mask, values, widened, without
from jaxloss._core.checks import checked
from jaxloss._core.classes import (
    SIMPLE,
    ClassAxis,
    Labels,
    capped,
    class_labels,
    log_sum_exp,
    pick,
    refuse_ignored_probabilities,
    smoothed,
    sum_of,
    weight_of_classes,
    with_z_loss,
)
from jaxloss._core.decorator import compiled, fraction, not_negative, positive_and_finite
from jaxloss._core.derivatives import derivatives, product
from jaxloss._core.logarithms import log
from jaxloss._core.reduction import BatchReduction, Reduction, reduce_each, reduce_weighted


@compiled(
    static=("axis", "ignore_index", "label_smoothing", "reduction", "axis_name"),
    domains={"label_smoothing": fraction, "z_loss": not_negative, "soft_cap": positive_and_finite},
    indices=("targets",),
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
    """Measures how surprised the model is by the right class: softmax cross-entropy of raw scores.

    With p = softmax(logits) over the C classes, a position has

        loss = weight[y] · -log p[y]              for the class label y
        loss = Σ_c weight[c] · t[c] · -log p[c]   for the class probabilities t

    Label smoothing s mixes in the uniform distribution. The two become

        loss = (1 - s) · weight[y] · -log p[y] + s / C · Σ_c weight[c] · -log p[c]
        loss = Σ_c weight[c] · ((1 - s) · t[c] + s / C) · -log p[c]

    `z_loss` adds z_loss · logsumexp(logits)² to that, unweighted. With `soft_cap` every logit x is
    soft_cap · tanh(x / soft_cap) first.

    Args:
        logits: Raw scores, real numbers of any shape that has a class axis.
        targets: Integer class labels in [0, C), of the shape of `logits` without the class axis; or floating
            class probabilities, of the shape of `logits`.
        axis: The class axis of `logits`, and of probabilities.
        weight: How much each class counts, shape (C,). Default: 1 each.
        ignore_index: The label of positions to leave out, as with a mask. It need not be a class.
        label_smoothing: The share s of the uniform distribution, a Python number in [0, 1].
        z_loss: How much the squared logarithm of the softmax's denominator counts, a number >= 0. It keeps
            logits from drifting away from 0. Traced: it can be scheduled without compiling again.
        soft_cap: The bound on the size of logits, a finite number > 0, traced. Default: none.
        where: Boolean mask, broadcast to the shape of `logits` without the class axis. What lies behind False
            has no influence on value or gradient, NaN included, and does not count in the mean.
        reduction: "mean", "sum", "none" for the loss of each position, or "sum_and_weight" for a pair with
            mean = sum / weight, which adds up over micro-batches and devices to the exact mean. For labels,
            weight is Σ weight[y] over the positions that are neither ignored nor masked. For probabilities it
            is the number of positions that are not masked.
        axis_name: Inside `jax.shard_map`, the name of the mesh axis over which the class axis is split. Then
            `logits`, `weight` and probabilities are this device's slices; labels still count over all C
            classes.

    Returns:
        A scalar for "mean" and "sum", an array of the shape of `logits` without the class axis for "none",
        two scalars for "sum_and_weight". The dtype is float32, or float64 where logits or probabilities are;
        the unit is nats. A label that is neither a class nor `ignore_index` gives NaN in the value and in the
        gradient, and an error under `jax.experimental.checkify`. Where the weight is 0, as when every
        position is ignored, the mean is NaN with gradient 0. An empty sum is 0.

    Raises:
        TypeError: An argument is not an array of real numbers, `where` is not boolean, `targets` are boolean,
            or an option that Python must know while tracing (`axis`, `ignore_index`, `label_smoothing`,
            `reduction`, `axis_name`) is an array.
        ValueError: The shapes do not fit, `label_smoothing` is outside [0, 1], `z_loss` is a negative number,
            `soft_cap` is a number <= 0, `ignore_index` is not negative and targets are probabilities, or the
            reduction is unknown.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxloss
        >>> logits = jnp.array([[2.0, 1.0, 0.0], [0.0, 1.0, 2.0], [5.0, 5.0, 5.0]])
        >>> labels = jnp.array([0, 2, -100])  # the last position is ignored
        >>> jaxloss.cross_entropy(logits, labels)
        Array(0.4076, dtype=float32)

    Differences from PyTorch:
        * The class axis is the last; PyTorch's (N, C, d1, ...) is `axis=1`.
        * A label out of range is NaN, or an error under checkify, where PyTorch raises.
        * Logits of -inf with target probability or class weight 0 add 0, where PyTorch gives NaN.
        * At ignored positions the gradient is 0 whatever the logits are, where PyTorch hands NaN on. Where
          the weight of the labels is 0, PyTorch's gradient of the mean is NaN unless every label is ignored.
        * bfloat16 and float16 inputs are computed in float32, and the loss stays float32.
        * Labels may have any integer dtype. The loss of labels has a derivative in `weight`, too.
        * `z_loss` and `soft_cap` are new.

    Source:
        C. Szegedy et al. (2016), Rethinking the Inception Architecture for Computer Vision, for label
        smoothing. A. Chowdhery et al. (2022), PaLM, for the z-loss. Gemma Team (2024), Gemma 2, for the cap.
        PyTorch documentation: torch.nn.CrossEntropyLoss, torch.nn.functional.cross_entropy.
    """
    given, targets = as_array("logits", logits), as_array("targets", targets)
    are_soft = jnp.issubdtype(targets.dtype, jnp.floating)
    (wide, *_) = widened(given, targets) if are_soft else widened(given)
    classes = ClassAxis(class_axis(axis, "logits", wide.shape), axis_name)
    where = mask(where, without(wide.shape, classes.position))
    if weight is not None:
        weight = as_array("weight", weight).astype(wide.dtype)  # once, and the gradient is rounded once
    labels = None if are_soft else class_labels(targets, "logits", wide, classes, weight, ignore_index, where)
    # What is ignored must not reach a derivative of the cap either.
    kept = where if labels is None or soft_cap is None else labels.kept
    logits = capped(classes.hide(kept, wide), soft_cap)
    are_stored = soft_cap is None and given.dtype.itemsize >= 4
    norm_of = functools.partial(log_sum_exp, classes=classes, are_stored=are_stored and kept is None)
    shift, count = classes.max(logits), classes.count(logits)
    if labels is None:
        _refuse_no_probabilities(targets, logits, ignore_index)
        log_norm = norm_of(logits, shift, where)

        def loss(*arrays: jax.Array) -> jax.Array:  # of some of the classes
            logits, probs, weight, shift, log_norm, penalty = widened(*arrays)
            if label_smoothing:
                probs = (1 - label_smoothing) * probs + label_smoothing / count
            return _weighted(weight, probs, log_norm - (logits - shift)) + penalty

        penalty = with_z_loss(jnp.zeros_like(shift), z_loss, log_norm + shift) / count
        of_classes = weight_of_classes(weight, logits, classes).astype(logits.dtype)
        of_positions = [classes.expand(array) for array in (shift, log_norm, penalty)]
        return reduce_each(
            loss,
            [wide if soft_cap is None else logits, targets, of_classes, *of_positions],
            where=where,
            reduction=reduction,
            classes=classes,
            are_stored=are_stored,
        )
    # Nor one of second order, or of another option.
    shift = hide(labels.kept, shift)
    log_norm = hide(labels.kept, norm_of(logits, shift, labels.kept))
    losses = _hard_losses(logits, labels, classes, weight, label_smoothing, shift, log_norm)
    losses = with_z_loss(losses, z_loss, log_norm + shift)
    return reduce_weighted(losses, labels.weight, labels.kept, reduction)


@compiled(static=("axis", "ignore_index", "reduction", "axis_name"), indices=("targets",))
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
    """Measures how surprised the model is by the right class: negative log-likelihood.

    loss = weight[y] · -log_probs[y] at a position with class label y. `cross_entropy` does the same from raw
    scores; prefer it where they are at hand.

    Args:
        log_probs: Log-probabilities such as `jax.nn.log_softmax` gives, of any shape that has a class axis.
            They are taken as they are, and not normalised.
        targets: Integer class labels in [0, C), of the shape of `log_probs` without the class axis.
        axis: The class axis of `log_probs`.
        weight: How much each of the C classes counts, shape (C,). Default: 1 each.
        ignore_index: The label of positions to leave out, as with a mask. It need not be a class.
        where: Boolean mask, broadcast to the shape of `targets`. What lies behind False has no influence on
            value or gradient, NaN included, and does not count in the mean.
        reduction: "mean" for Σ loss / Σ weight[y] over the positions that are neither ignored nor masked,
            "sum", "none" for the loss of each position, or "sum_and_weight" for the pair (Σ loss,
            Σ weight[y]), which adds up over micro-batches and devices to the exact mean.
        axis_name: Inside `jax.shard_map`, the name of the mesh axis over which the class axis is split. Then
            `log_probs` and `weight` are this device's slices; labels still count over all C classes.

    Returns:
        A scalar for "mean" and "sum", an array of the shape of `targets` for "none", two scalars for
        "sum_and_weight". The dtype is float32, or float64 where `log_probs` are; the unit is nats. A label
        that is neither a class nor `ignore_index` gives NaN in the value and in the gradient, and an error
        under `jax.experimental.checkify`. Where Σ weight[y] is 0, as when every position is ignored, the mean
        is NaN with gradient 0. An empty sum is 0.

    Raises:
        TypeError: An argument is not an array of real numbers, `targets` are not integers, `where` is not
            boolean, or an option that Python must know while tracing (`axis`, `ignore_index`, `reduction`,
            `axis_name`) is an array.
        ValueError: The shapes do not fit, or the reduction is unknown.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxloss
        >>> log_probs = jnp.log(jnp.array([[0.5, 0.25, 0.25], [0.1, 0.1, 0.8]]))
        >>> jaxloss.nll_loss(log_probs, jnp.array([0, 2]))
        Array(0.4581, dtype=float32)

    Differences from PyTorch:
        * The class axis is the last; PyTorch's (N, C, d1, ...) is `axis=1`.
        * A label out of range is NaN, or an error under checkify, where PyTorch raises.
        * A log-probability of -inf whose class has weight 0 adds 0, where PyTorch gives NaN.
        * Where Σ weight[y] is 0, PyTorch's gradient of the mean is NaN unless every label is ignored.
        * bfloat16 and float16 inputs are computed in float32, and the loss stays float32.
        * Labels may have any integer dtype. The loss has a derivative in `weight`, too.

    Source:
        PyTorch documentation: torch.nn.NLLLoss, torch.nn.functional.nll_loss.
    """
    (log_probs,) = values(log_probs=log_probs)
    classes = ClassAxis(class_axis(axis, "log_probs", log_probs.shape), axis_name)
    where = mask(where, without(log_probs.shape, classes.position))
    log_probs = classes.hide(where, log_probs)
    labels = class_labels(
        as_array("targets", targets),
        "log_probs",
        log_probs,
        classes,
        weight,
        ignore_index,
        where,
    )
    losses = product(labels.weight, -hide(labels.kept, pick(log_probs, labels.classes, classes)))
    return reduce_weighted(losses, labels.weight, labels.kept, reduction)


@compiled(static=("log_target", "reduction"))
def kl_div(
    log_probs: ArrayLike,
    targets: ArrayLike,
    *,
    log_target: bool = False,
    where: ArrayLike | None = None,
    reduction: BatchReduction = "mean",
) -> jax.Array:
    """Measures how far predicted distributions are from the target ones: Kullback-Leibler divergence.

        loss = targets · (log(targets) - log_probs)
        loss = exp(targets) · (targets - log_probs)   with log_target=True

    for each class. The divergence is the sum over the classes, so that its mean over a batch of rows is
    `reduction="batchmean"`; "mean" also divides by the number of classes.

    Args:
        log_probs: Log-probabilities such as `jax.nn.log_softmax` gives, of any shape. They are taken as they
            are, and not normalised.
        targets: The target probabilities >= 0, or their logarithms with `log_target=True`; of the shape of
            `log_probs`.
        log_target: Whether `targets` are logarithms of the probabilities.
        where: Boolean mask, broadcast to the shape of `log_probs`. What lies behind False has no influence on
            value or gradient, NaN included, and does not count in the means.
        reduction: "mean" for Σ loss / number of elements, "batchmean" for Σ loss / size of the first axis,
            which counts the rows that the mask does not empty, "sum", "none" for the loss of each element, or
            "sum_and_weight" for the pair (Σ loss, number of elements), which adds up over micro-batches and
            devices to the exact mean.

    Returns:
        A scalar for "mean", "batchmean" and "sum", an array of the shape of `log_probs` for "none", two
        scalars for "sum_and_weight". The dtype is float32, or float64 where log_probs or targets are; the
        unit is nats. A negative target probability gives NaN in the value and in the gradient, and an error
        under `jax.experimental.checkify`. The mean over no element is NaN with gradient 0. An empty sum is 0.

    Raises:
        TypeError: An argument is not an array of real numbers, or `where` is not boolean.
        ValueError: `log_probs` and `targets` differ in shape, `where` does not broadcast to that shape, or
            the reduction is unknown.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxloss
        >>> log_probs = jnp.log(jnp.array([[0.5, 0.25, 0.25], [0.1, 0.1, 0.8]]))
        >>> targets = jnp.array([[0.5, 0.5, 0.0], [0.2, 0.2, 0.6]])
        >>> jaxloss.kl_div(log_probs, targets, reduction="batchmean")
        Array(0.2256, dtype=float32)

    Differences from PyTorch:
        * A target probability of 0 costs 0 even where the log-probability is -inf, also as a logarithm of
          -inf, where PyTorch gives NaN.
        * The gradient in a target probability of 0 is its limit, -∞, or ∞ where the log-probability is -inf,
          and in a target logarithm of -inf it is 0, where PyTorch gives NaN.
        * A negative target probability has gradient NaN and not only value NaN.
        * Log-probabilities and targets never broadcast against each other: (3, 1) with (3,) is an error.
        * bfloat16 and float16 inputs are computed in float32, and the loss stays float32.
        * "mean" does not warn.

    Source:
        S. Kullback and R. A. Leibler (1951), On Information and Sufficiency. PyTorch documentation:
        torch.nn.KLDivLoss, torch.nn.functional.kl_div.
    """
    log_probs, targets = agree(log_probs=log_probs, targets=targets)
    if not log_target:
        (wide,) = widened(targets)
        valid = hide(mask(where, targets.shape), wide >= 0, True)
        targets = checked(targets, valid, "targets: expected probabilities >= 0")
    loss = _divergence_of_logs if log_target else _divergence
    return reduce_each(loss, [log_probs, targets], where=where, reduction=reduction, words=BatchReduction)


def _hard_losses(
    logits: jax.Array,
    labels: Labels,
    classes: ClassAxis,
    weight: ArrayLike | None,
    label_smoothing: float,
    shift: jax.Array,
    log_norm: jax.Array,
) -> jax.Array:
    """Returns weight[y] · -log p[y] at each position, mixed with Σ weight · -log p where it is smoothed."""
    picked = hide(labels.kept, pick(logits, labels.classes, classes))
    losses = product(labels.weight, log_norm - (picked - shift))
    if not label_smoothing:
        return losses
    surprises = _sum_of_surprise(logits, labels.kept, classes, weight, shift, log_norm)
    return smoothed(losses, surprises, label_smoothing, classes.count(logits))


@derivatives(
    lambda weight, probs, surprise: product(probs, surprise),
    lambda weight, probs, surprise: product(weight, surprise),
    lambda weight, probs, surprise: weight * probs,
)
def _weighted(weight: jax.Array, probs: jax.Array, surprise: jax.Array) -> jax.Array:
    """Returns weight · probs · surprise, to which an impossible class without either adds nothing."""
    return product(weight * probs, surprise)


def _sum_of_surprise(
    logits: jax.Array,
    kept: jax.Array,
    classes: ClassAxis,
    weight: ArrayLike | None,
    shift: jax.Array,
    log_norm: jax.Array,
) -> jax.Array:
    """Returns Σ weight · -log p over the classes, to which the norm adds the same for each."""
    scores = logits, classes.expand(shift)
    if weight is None:
        below = sum_of(lambda logits, shift: shift - logits, scores, classes, SIMPLE)
        return below + classes.count(logits) * log_norm
    weight = weight_of_classes(weight, logits, classes).astype(logits.dtype)
    below = sum_of(_weighted_difference, (*scores, weight, classes.expand(kept)), classes, SIMPLE)
    return below + product(classes.sum(weight), log_norm)


def _weighted_difference(
    logits: jax.Array, shift: jax.Array, weight: jax.Array, kept: jax.Array
) -> jax.Array:
    return product(weight, hide(kept, shift - logits))


def _refuse_no_probabilities(targets: jax.Array, logits: jax.Array, ignore_index: int) -> None:
    """Refuses floating targets that are no distribution at each position."""
    refuse_ignored_probabilities(ignore_index, targets)
    if targets.shape != logits.shape:
        raise ValueError(
            "floating targets are class probabilities and must have the shape of logits, got "
            f"targets {targets.shape} and logits {logits.shape}; class indices must be integers"
        )


def _excess(probs: jax.Array, true_log: jax.Array, log_probs: jax.Array) -> jax.Array:
    """Returns probs · (true_log - log_probs), where `true_log` is that of `probs`, with 0 · ∞ = 0."""
    return jnp.where((probs == 0) & ~jnp.isnan(log_probs), 0, probs * (true_log - log_probs))


def _divergence_slope(log_probs: jax.Array, targets: jax.Array) -> jax.Array:
    slope = 1 + log(targets) - log_probs
    slope = jnp.where((targets == 0) & (log_probs == -jnp.inf), jnp.inf, slope)
    return slope * _validity(targets)


def _validity(targets: jax.Array) -> jax.Array:
    return jnp.where(targets < 0, jnp.nan, 1)


@derivatives(
    lambda log_probs, targets: -targets * _validity(targets),
    _divergence_slope,
)
def _divergence(log_probs: jax.Array, targets: jax.Array) -> jax.Array:
    return _excess(targets, log(targets), log_probs)


def _divergence_of_logs_slope(log_probs: jax.Array, targets: jax.Array) -> jax.Array:
    return _divergence_of_logs(log_probs, targets) + jnp.exp(targets)


@derivatives(lambda log_probs, targets: -jnp.exp(targets), _divergence_of_logs_slope)
def _divergence_of_logs(log_probs: jax.Array, targets: jax.Array) -> jax.Array:
    return _excess(jnp.exp(targets), targets, log_probs)
