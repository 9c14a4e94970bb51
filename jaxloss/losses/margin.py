"""Losses over classes that want the right classes to score a margin above the wrong ones."""

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_batching import custom_vmap
from jax.typing import ArrayLike

from jaxloss._core.arguments import (
    agree,
    as_array,
    class_axis,
    hide,
    mask,
    values,
    widened,
    widened_integers,
    without,
)
from jaxloss._core.checks import checked
from jaxloss._core.classes import ClassAxis, class_labels, pick
from jaxloss._core.decorator import compiled, finite
from jaxloss._core.derivatives import product
from jaxloss._core.reduction import Reduction, reduce_each, reduce_weighted


@compiled(static=("axis", "p", "reduction", "axis_name"), domains={"margin": finite}, indices=("targets",))
def multi_margin_loss(
    scores: ArrayLike,
    targets: ArrayLike,
    *,
    axis: int = -1,
    p: int = 1,
    margin: ArrayLike = 1.0,
    weight: ArrayLike | None = None,
    where: ArrayLike | None = None,
    reduction: Reduction = "mean",
    axis_name: str | None = None,
) -> jax.Array:
    """Measures by how much the right class fails to score a margin above each of the others.

    loss = weight[y] / C · Σ_{c ≠ y} max(0, margin - scores[y] + scores[c])^p

    at a position with class label y among C classes. With p = 1 the gradient of a class that keeps the margin
    to the letter is 0.

    Args:
        scores: Raw scores, real numbers of any shape that has a class axis.
        targets: Integer class labels in [0, C), of the shape of `scores` without the class axis.
        axis: The class axis of `scores`.
        p: The power, 1 or 2.
        margin: How far the right class should be above the others, in the unit of `scores`. Traced: it can be
            scheduled, learned or swept without compiling again.
        weight: How much each class counts where it is the right one, shape (C,). Default: 1 each.
        where: Boolean mask, broadcast to the shape of `targets`. What lies behind False has no influence on
            value or gradient, NaN included, and does not count in the mean.
        reduction: "mean" for Σ loss / number of positions, "sum", "none" for the loss of each position, or
            "sum_and_weight" for the pair (Σ loss, number of positions), which adds up over micro-batches and
            devices to the exact mean. As in PyTorch the weights are not in the denominator.
        axis_name: Inside `jax.shard_map`, the name of the mesh axis over which the class axis is split. Then
            `scores` and `weight` are this device's slices; labels still count over all C classes.

    Returns:
        A scalar for "mean" and "sum", an array of the shape of `targets` for "none", two scalars for
        "sum_and_weight". The dtype is float32, or float64 where `scores` are; the unit is that of `scores`,
        to the power p. A label that is no class gives NaN in the value and in the gradient, and an error
        under `jax.experimental.checkify`; so does a `margin` that is an array and not finite. The mean over
        no position is NaN with gradient 0. An empty sum is 0.

    Raises:
        TypeError: An argument is not an array of real numbers, `targets` are not integers, `where` is not
            boolean, or an option that Python must know while tracing (`axis`, `p`, `reduction`, `axis_name`)
            is an array.
        ValueError: The shapes do not fit, `p` is neither 1 nor 2, `margin` is a Python number that is not
            finite, or the reduction is unknown.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxloss
        >>> scores = jnp.array([[2.0, 1.5, 0.0], [0.0, 1.0, 2.0]])
        >>> jaxloss.multi_margin_loss(scores, jnp.array([0, 1]))
        Array(0.4167, dtype=float32)

    Differences from PyTorch:
        * There may be more axes than one beside the class axis, which is the last.
        * A label out of range is NaN, or an error under checkify, where PyTorch raises.
        * A score of NaN gives NaN, where PyTorch leaves its class out.
        * A class of weight 0 adds 0, infinite as its margin may be.
        * The mean over an empty batch is NaN, where PyTorch's is undefined.
        * bfloat16 and float16 inputs are computed in float32, and the loss stays float32.
        * Labels may have any integer dtype. The loss has derivatives in `weight` and `margin`, and second
          ones, too.

    Source:
        K. Crammer and Y. Singer (2001), On the Algorithmic Implementation of Multiclass Kernel-based Vector
        Machines, for the margin between classes. PyTorch documentation: torch.nn.MultiMarginLoss,
        torch.nn.functional.multi_margin_loss.
    """
    if p not in (1, 2):
        raise ValueError(f"p must be 1 or 2, got {p}")
    given = as_array("scores", scores)
    (wide,) = widened(given)
    classes = ClassAxis(class_axis(axis, "scores", wide.shape), axis_name)
    where = mask(where, without(wide.shape, classes.position))
    scores = classes.hide(where, wide)
    labels = class_labels(as_array("targets", targets), "scores", scores, classes, weight, None, where)
    lead = pick(scores, labels.classes, classes) - jnp.asarray(margin, scores.dtype)
    # Every label is a class. In the gradient the select stands between a sum over the classes and its use at
    # each of them, where XLA:CPU would write the sum out in full size.
    lead = jnp.where(labels.classes >= 0, lead, 0)

    def loss(*arrays: jax.Array) -> jax.Array:
        scores, numbers, labels, lead, weight = arrays
        missing = _hinge(scores - lead, numbers != labels)
        return product(weight, missing if p == 1 else missing * missing)

    share = labels.weight / classes.count(wide)
    of_positions = [classes.expand(array) for array in (labels.classes, lead, share)]
    return reduce_each(
        loss,
        [wide, classes.numbers(wide, labels.classes.dtype), *of_positions],
        where=where,
        reduction=reduction,
        classes=classes,
        are_stored=given.dtype.itemsize >= 4,
    )


@compiled(static=("reduction",), indices=("targets",))
def multilabel_margin_loss(
    scores: ArrayLike,
    targets: ArrayLike,
    *,
    where: ArrayLike | None = None,
    reduction: Reduction = "mean",
) -> jax.Array:
    """Measures by how much each right class fails to score 1 above each of the wrong ones.

    loss = 1 / C · Σ_{j in T} Σ_{i not in T} max(0, 1 - scores[j] + scores[i])

    at a position with C classes, of which the list T is right. The gradient of a pair that keeps the margin
    to the letter is 0.

    Args:
        scores: Raw scores, real numbers of shape (..., C). A mesh with `Explicit` axes must not split the
            classes.
        targets: Integers of the shape of `scores`: at each position the list of its right classes in any
            order, each in [0, C), ended by the first -1 if there are fewer than C. What follows it is not
            read. A class that is listed twice counts twice.
        where: Boolean mask, broadcast to the shape of `scores` without its last axis. What lies behind False
            has no influence on value or gradient, NaN included, and does not count in the mean.
        reduction: "mean" for Σ loss / number of positions, "sum", "none" for the loss of each position, or
            "sum_and_weight" for the pair (Σ loss, number of positions), which adds up over micro-batches and
            devices to the exact mean.

    Returns:
        A scalar for "mean" and "sum", an array of the shape of `scores` without its last axis for "none", two
        scalars for "sum_and_weight". The dtype is float32, or float64 where `scores` are; the unit is that of
        `scores`. A label that is no class gives NaN in the value and in the gradient, and an error under
        `jax.experimental.checkify`. The mean over no position is NaN with gradient 0. An empty sum is 0.

    Raises:
        TypeError: An argument is not an array of real numbers, `targets` are not integers, or `where` is not
            boolean.
        ValueError: `scores` and `targets` differ in shape or have no class, `where` does not broadcast to
            the positions, or the reduction is unknown.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxloss
        >>> scores = jnp.array([[0.1, 0.2, 0.4, 0.8]])
        >>> targets = jnp.array([[3, 0, -1, 1]])  # classes 3 and 0 are right
        >>> jaxloss.multilabel_margin_loss(scores, targets)
        Array(0.85, dtype=float32)

    Differences from PyTorch:
        * There may be more axes than one before the class axis.
        * A label out of range before the end of the list is NaN, or an error under checkify, where PyTorch
          raises; PyTorch also refuses what follows the end.
        * A score of NaN gives NaN where it meets another class, where PyTorch leaves it out.
        * The mean over an empty batch is NaN, where PyTorch's is undefined.
        * bfloat16 and float16 inputs are computed in float32, and the loss stays float32.
        * Labels may have any integer dtype. The loss has second derivatives, which are 0.

    Source:
        PyTorch documentation: torch.nn.MultiLabelMarginLoss, torch.nn.functional.multilabel_margin_loss.
    """
    scores, targets = agree(scores=scores, targets=targets)
    if not jnp.issubdtype(targets.dtype, jnp.integer):
        raise TypeError(f"targets must be integer class indices, got dtype {targets.dtype}")
    if not scores.ndim or not scores.shape[-1]:
        raise ValueError(f"scores must have a last axis with at least one class, got scores {scores.shape}")
    (scores,) = values(scores=scores)
    where = mask(where, scores.shape[:-1])
    classes = ClassAxis(scores.ndim - 1, None)
    scores = classes.hide(where, scores)
    labels, length, valid = _label_lists(targets, classes, where)
    total, slope = _over_pairs(lax.stop_gradient(scores), labels, length)
    losses = _linear(total, slope, scores) * jnp.where(valid, 1, jnp.nan).astype(scores.dtype)
    return reduce_weighted(losses / scores.shape[-1], None, where, reduction)


@jax.custom_jvp
def _hinge(excess: jax.Array, others: jax.Array) -> jax.Array:
    """max(0, excess), of slope 0 at 0 (`jnp.maximum` has slope 1/2 there), and 0 for the right class."""
    return jnp.where(others, jnp.maximum(excess, 0), 0)


def _hinge_slope(missing: jax.Array) -> jax.Array:
    """The slope of max(0, excess) where that is `missing`: 0 or 1, and NaN where it is NaN; its own is 0."""
    return jnp.where(missing > 0, 1, lax.stop_gradient(missing))


_hinge.defjvps(lambda tangent, value, excess, others: _hinge_slope(value) * tangent, None)


def _label_lists(
    targets: jax.Array, classes: ClassAxis, where: jax.Array | None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns labels that are classes, how many come before the end, and whether these were classes."""
    count = targets.shape[-1]
    targets = widened_integers(targets)
    slots = lax.broadcasted_iota(jnp.int32, targets.shape, classes.position)
    length = jnp.min(jnp.where(targets == -1, slots, count), -1)
    length = hide(where, length)
    exists = (targets >= 0) & (targets < count)
    read = slots < classes.expand(length)
    expected = f"targets: expected class indices in [0, {count}), and -1 to end the list"
    labels = jnp.where(exists, checked(targets, exists | ~read, expected), 0)
    return labels, length, jnp.all(exists | ~read, -1)


@custom_vmap
def _over_pairs(scores: jax.Array, labels: jax.Array, length: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the sum of the hinges over all pairs of a right and a wrong class, and its slope in the scores.

    It takes one right class at a time, as many as the longest list has: in memory for all pairs, a batch of
    512 with 100 classes would be a hundred times as large.
    """
    classes = ClassAxis(scores.ndim - 1, None)
    longest = jnp.max(length, initial=0)

    def right(slot: int | jax.Array) -> tuple[jax.Array, jax.Array]:
        return lax.dynamic_index_in_dim(labels, slot, -1, keepdims=False), slot < length

    def marked(slot: int | jax.Array) -> jax.Array:
        label, listed = right(slot)
        return classes.equals(label, scores) & classes.expand(listed)

    is_right = lax.fori_loop(1, longest, lambda slot, found: found | marked(slot), marked(0))

    def hinges(slot: int | jax.Array) -> tuple[jax.Array, jax.Array]:
        label, listed = right(slot)
        excess = 1 - classes.expand(pick(scores, label, classes)) + scores
        missing = _hinge(excess, ~is_right & classes.expand(listed))
        slope = _hinge_slope(missing)
        pull = jnp.where(classes.equals(label, scores), classes.expand(classes.sum(slope)), 0)
        return classes.sum(missing), slope - pull

    return lax.fori_loop(1, longest, lambda slot, sums: jax.tree.map(jnp.add, sums, hinges(slot)), hinges(0))


@_over_pairs.def_vmap
def _over_pairs_of_a_batch(
    size: int, are_batched: list[bool], *arrays: jax.Array
) -> tuple[tuple[jax.Array, jax.Array], tuple[bool, bool]]:
    # One loop for all: that of each would go on for as long, and has no rule in checkify.
    whole = (
        array if is_batched else jnp.broadcast_to(array, (size, *array.shape))
        for array, is_batched in zip(arrays, are_batched, strict=True)
    )
    return _over_pairs(*whole), (True, True)


@jax.custom_jvp
def _linear(value: jax.Array, slope: jax.Array, scores: jax.Array) -> jax.Array:
    """Returns `value` as a function of the scores that is linear, with this slope, about where they are."""
    return value


@_linear.defjvp
def _linear_jvp(
    primals: tuple[jax.Array, jax.Array, jax.Array], tangents: tuple[jax.Array, jax.Array, jax.Array]
) -> tuple[jax.Array, jax.Array]:
    _, slope, _ = primals
    return _linear(*primals), jnp.sum(slope * tangents[2], -1)
