"""Margin losses: hinge losses on classes, distances and pairs of scores."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_batching import custom_vmap
from jax.typing import ArrayLike

from jaxloss._core.arguments import agree, as_array, fill_masked, index_array, mask, widened
from jaxloss._core.checks import checked, one_or_nan
from jaxloss._core.classes import ClassAxis, class_labels, take_class
from jaxloss._core.decorator import compiled, finite, positive
from jaxloss._core.derivatives import checked_signs, derivatives, positive_part, sign_or_nan, square, weighted
from jaxloss._core.reduction import Reduction, reduce_elementwise, reduce_losses


@compiled(static=("axis", "p", "reduction", "axis_name"), domains={"margin": finite})
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
    """Multi-class margin loss (hinge loss over classes).

        loss = weight[y] / C · Σ_{c ≠ y} max(0, margin - scores[y] + scores[c])^p

    at a position with label y among C classes. With p = 1 the gradient at the kink is 0.

    Args:
        scores: Raw scores, any shape with a class axis.
        targets: Integer class labels in [0, C), of the shape of `scores` without the class axis.
        axis: Class axis of `scores`.
        p: Exponent, static, 1 or 2.
        margin: Required lead of the true class, a finite number in the unit of `scores`.
        weight: Weight of each class, shape (C,). Default: 1.
        where: Mask, broadcast to the shape of `targets`; see `help(jaxloss)`.
        reduction: "mean" (divides by the number of positions, not by Σ weight[y], as in PyTorch), "sum",
            "none" or "sum_and_weight".
        axis_name: Mesh axis that shards the classes inside `jax.shard_map`; see `help(jaxloss)`.

    Returns:
        A scalar, or an array of the shape of `targets` for "none"; in the unit of `scores`, to the power p.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxloss
        >>> scores = jnp.array([[2.0, 1.5, 0.0], [0.0, 1.0, 2.0]])
        >>> jaxloss.multi_margin_loss(scores, jnp.array([0, 1]))
        Array(0.4167, dtype=float32)

    Differences from PyTorch:
        * `scores` may have any number of axes besides the class axis.
        * A score of NaN gives NaN; PyTorch ignores its class. A class of weight 0 contributes 0, even if
          its margin is infinite.
        * The mean over an empty batch is NaN; PyTorch's is undefined. Second derivatives exist.

    Source:
        K. Crammer and Y. Singer (2001), On the Algorithmic Implementation of Multiclass Kernel-based Vector
        Machines. PyTorch documentation: torch.nn.MultiMarginLoss, torch.nn.functional.multi_margin_loss.
    """
    if p not in (1, 2):
        raise ValueError(f"p must be 1 or 2, got {p}")
    scores, targets = as_array("scores", scores), as_array("targets", targets)
    classes = ClassAxis.of(axis, axis_name, "scores", scores)
    where = classes.mask(where, scores)
    labels = class_labels(targets, "scores", scores, classes, weight, None, where)
    scores = classes.fill_masked(where, scores)
    (wide,) = widened(scores)
    lead = take_class(wide, labels.classes, classes, scores) - jnp.asarray(margin, wide.dtype)
    others = ~classes.one_hot(labels.classes, wide)
    missing = positive_part(jnp.where(others, wide - classes.expand(lead), 0))
    share = labels.weight / classes.count(wide)
    terms = weighted(classes.expand(share), missing if p == 1 else missing * missing)
    return reduce_losses(classes.sum(terms), None, where, reduction)


@compiled(static=("reduction",))
def multilabel_margin_loss(
    scores: ArrayLike,
    targets: ArrayLike,
    *,
    where: ArrayLike | None = None,
    reduction: Reduction = "mean",
) -> jax.Array:
    """Multi-label margin loss: hinge loss between every true class and every other class.

        loss = 1 / C · Σ_{j in T} Σ_{i not in T} max(0, 1 - scores[j] + scores[i])

    at a position with C classes, of which those in the list T are true. The gradient at the kink is 0.

    Args:
        scores: Raw scores, shape (..., C). A mesh with `Explicit` axes must not shard the classes.
        targets: Integers of the shape of `scores`: for each position the list of true classes in [0, C), in
            any order, terminated by -1 if there are fewer than C. Entries after the first -1 are not read. A
            class that is listed twice counts twice.
        where: Mask, broadcast to the shape of `scores` without its last axis; see `help(jaxloss)`.
        reduction: "mean" (divides by the number of positions), "sum", "none" or "sum_and_weight".

    Returns:
        A scalar, or an array of the shape of `scores` without its last axis for "none"; in the unit of
        `scores`.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxloss
        >>> scores = jnp.array([[0.1, 0.2, 0.4, 0.8]])
        >>> targets = jnp.array([[3, 0, -1, 1]])  # classes 3 and 0 are true
        >>> jaxloss.multilabel_margin_loss(scores, targets)
        Array(0.85, dtype=float32)

    Differences from PyTorch:
        * `scores` may have any number of axes before the class axis.
        * Entries after the first -1 may hold anything; PyTorch raises if they are out of range.
        * A score of NaN gives NaN if it is compared with another class; PyTorch ignores it.
        * The mean over an empty batch is NaN; PyTorch's is undefined. Second derivatives exist and are 0.

    Source:
        PyTorch documentation: torch.nn.MultiLabelMarginLoss, torch.nn.functional.multilabel_margin_loss.
    """
    scores, targets = agree(scores=scores, targets=targets)
    if not jnp.issubdtype(targets.dtype, jnp.integer):
        raise TypeError(f"targets must be integer class indices, got dtype {targets.dtype}")
    if not scores.ndim or not scores.shape[-1]:
        raise ValueError(f"scores must have a last axis with at least one class, got scores {scores.shape}")
    classes = ClassAxis(scores.ndim - 1, None)
    where = classes.mask(where, scores)
    (scores,) = widened(classes.fill_masked(where, scores))
    labels, length, valid = _label_lists(targets, classes, where)
    total, slope = _over_pairs(lax.stop_gradient(scores), labels, length)
    losses = _linear(total, slope, scores) * one_or_nan(valid, scores.dtype)
    return reduce_losses(losses / scores.shape[-1], None, where, reduction)


@compiled(static=("reduction",), domains={"margin": finite})
def hinge_embedding_loss(
    distances: ArrayLike,
    targets: ArrayLike,
    *,
    margin: ArrayLike = 1.0,
    where: ArrayLike | None = None,
    reduction: Reduction = "mean",
) -> jax.Array:
    """Hinge embedding loss on distances between similar and dissimilar pairs.

        loss = distances                    where targets = 1 (similar)
        loss = max(0, margin - distances)   where targets = -1 (dissimilar), with slope -1 at the margin

    Args:
        distances: Distance of each pair, any shape, as from `pairwise_distance`.
        targets: 1 for similar and -1 for dissimilar pairs, of the shape of `distances`.
        margin: Distance at and beyond which dissimilar pairs have loss 0, a finite number.
        where: Mask, broadcast to the shape of `distances`; see `help(jaxloss)`.
        reduction: "mean" (divides by the number of elements), "sum", "none" or "sum_and_weight".

    Returns:
        A scalar, or an array of the shape of `distances` for "none"; in the unit of `distances`.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxloss
        >>> distances = jnp.array([0.5, 0.25, 3.0])
        >>> jaxloss.hinge_embedding_loss(distances, jnp.array([1, -1, -1]), reduction="none")
        Array([0.5 , 0.75, 0.  ], dtype=float32)

    Differences from PyTorch:
        * Targets other than -1 and 1 give NaN; PyTorch adds both terms.

    Source:
        PyTorch documentation: torch.nn.HingeEmbeddingLoss, torch.nn.functional.hinge_embedding_loss.
    """
    distances, targets = agree(distances=distances, targets=targets)
    targets = checked_signs(targets, mask(where, targets))
    return reduce_elementwise(
        _hinge_embedding, [distances, targets], [margin], where=where, reduction=reduction
    )


@compiled(static=("reduction",), domains={"margin": finite})
def margin_ranking_loss(
    scores1: ArrayLike,
    scores2: ArrayLike,
    targets: ArrayLike,
    *,
    margin: ArrayLike = 0.0,
    where: ArrayLike | None = None,
    reduction: Reduction = "mean",
) -> jax.Array:
    """Margin ranking loss on pairs of scores.

        loss = max(0, margin - targets · (scores1 - scores2))

    with full slope at the kink.

    Args:
        scores1: Scores of the first item of each pair, any shape.
        scores2: Scores of the second item, of the shape of `scores1`.
        targets: 1 if the first item should score higher, -1 if the second should, of the shape of
            `scores1`.
        margin: Required difference between the two scores, a finite number in their unit.
        where: Mask, broadcast to the shape of `scores1`; see `help(jaxloss)`.
        reduction: "mean" (divides by the number of elements), "sum", "none" or "sum_and_weight".

    Returns:
        A scalar, or an array of the shape of `scores1` for "none"; in the unit of the scores.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxloss
        >>> scores1, scores2 = jnp.array([2.0, 1.0, 0.0]), jnp.array([1.0, 3.0, 0.5])
        >>> jaxloss.margin_ranking_loss(scores1, scores2, jnp.array([1, 1, -1]), margin=0.5, reduction="none")
        Array([0. , 2.5, 0. ], dtype=float32)

    Differences from PyTorch:
        * Targets other than -1 and 1 give NaN; PyTorch multiplies by them.

    Source:
        PyTorch documentation: torch.nn.MarginRankingLoss, torch.nn.functional.margin_ranking_loss.
    """
    scores1, scores2, targets = agree(scores1=scores1, scores2=scores2, targets=targets)
    return reduce_elementwise(
        lambda scores1, scores2, targets, margin: _margin_ranking(scores1 - scores2, targets, margin),
        [scores1, scores2, checked_signs(targets, mask(where, targets))],
        [margin],
        where=where,
        reduction=reduction,
    )


@compiled(static=("squared", "reduction"), domains={"margin": positive})
def hinge_loss(
    scores: ArrayLike,
    targets: ArrayLike,
    *,
    margin: ArrayLike = 1.0,
    squared: bool = False,
    where: ArrayLike | None = None,
    reduction: Reduction = "mean",
) -> jax.Array:
    """Hinge loss for binary classification, as in support vector machines.

        loss = max(0, margin - targets · scores)

    with slope 0 at the kink, and squared if `squared`.

    Args:
        scores: Raw scores, any shape; positive if class 1 is more likely.
        targets: 1 or -1, of the shape of `scores`.
        margin: Score beyond which a correct prediction has loss 0, a number > 0.
        squared: Whether to square the hinge, static.
        where: Mask, broadcast to the shape of `scores`; see `help(jaxloss)`.
        reduction: "mean" (divides by the number of elements), "sum", "none" or "sum_and_weight".

    Returns:
        A scalar, or an array of the shape of `scores` for "none"; in the unit of `scores`, or its square.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxloss
        >>> jaxloss.hinge_loss(jnp.array([0.5, -2.0, 3.0]), jnp.array([1, 1, -1]), reduction="none")
        Array([0.5, 3. , 4. ], dtype=float32)

    Differences from other libraries:
        * Targets other than -1 and 1 give NaN; Keras takes 0 for -1, and Optax multiplies by any number.
        * Optax's slope at the kink is half the slope of the linear part.

    Source:
        C. Cortes and V. Vapnik (1995), Support-Vector Networks. scikit-learn documentation:
        sklearn.metrics.hinge_loss.
    """
    scores, targets = agree(scores=scores, targets=targets)
    arrays = [scores, checked_signs(targets, mask(where, targets))]
    hinge = _squared_hinge if squared else _hinge
    return reduce_elementwise(hinge, arrays, [margin], where=where, reduction=reduction)


def _active(gap: jax.Array, slope: jax.Array) -> jax.Array:
    """Returns `slope` where gap >= 0, including 0 as in PyTorch, and 0 elsewhere. NaN stays NaN."""
    return jnp.where(gap < 0, 0, slope) * one_or_nan(~jnp.isnan(gap), gap.dtype)


def _embedding_gap(distances: jax.Array, targets: jax.Array, margin: jax.Array) -> jax.Array:
    # Similar pairs have slope 1 at any distance.
    sign = sign_or_nan(targets)
    return jnp.where(sign > 0, sign, sign * (distances - margin))


@derivatives(
    lambda d, t, margin: _active(_embedding_gap(d, t, margin), t),
    lambda d, t, margin: _active(_embedding_gap(d, t, margin), jnp.zeros_like(t)),
    lambda d, t, margin: _active(_embedding_gap(d, t, margin), jnp.maximum(-t, 0)),
)
def _hinge_embedding(distances: jax.Array, targets: jax.Array, margin: jax.Array) -> jax.Array:
    sign = sign_or_nan(targets)
    return jnp.where(sign > 0, distances, jnp.maximum(margin - distances, 0) * jnp.abs(sign))


def _ranking_gap(difference: jax.Array, targets: jax.Array, margin: jax.Array) -> jax.Array:
    return margin - sign_or_nan(targets) * difference


@derivatives(
    lambda d, t, margin: _active(_ranking_gap(d, t, margin), -t),
    lambda d, t, margin: _active(_ranking_gap(d, t, margin), -d),
    lambda d, t, margin: _active(_ranking_gap(d, t, margin), jnp.ones_like(t)),
)
def _margin_ranking(difference: jax.Array, targets: jax.Array, margin: jax.Array) -> jax.Array:
    return jnp.maximum(_ranking_gap(difference, targets, margin), 0)


def _hinge_gap(scores: jax.Array, targets: jax.Array, margin: jax.Array) -> jax.Array:
    return margin - sign_or_nan(targets) * scores


def _missing(gap: jax.Array, slope: jax.Array) -> jax.Array:
    """Returns `slope` where gap > 0, and 0 elsewhere. NaN stays NaN."""
    return jnp.where(gap > 0, slope, 0) * one_or_nan(~jnp.isnan(gap), gap.dtype)


@derivatives(
    lambda s, t, margin: _missing(_hinge_gap(s, t, margin), -t),
    lambda s, t, margin: _missing(_hinge_gap(s, t, margin), -s),
    lambda s, t, margin: _missing(_hinge_gap(s, t, margin), jnp.ones_like(t)),
)
def _hinge(scores: jax.Array, targets: jax.Array, margin: jax.Array) -> jax.Array:
    return jnp.maximum(_hinge_gap(scores, targets, margin), 0)


def _squared_hinge(scores: jax.Array, targets: jax.Array, margin: jax.Array) -> jax.Array:
    return square(_hinge(scores, targets, margin))


def _label_lists(
    targets: jax.Array, classes: ClassAxis, where: jax.Array | None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns labels in range, the length of each list, and whether all listed labels were in range."""
    count = targets.shape[-1]
    targets = index_array("targets", targets)
    slots = lax.broadcasted_iota(jnp.int32, targets.shape, classes.position)
    length = jnp.min(jnp.where(targets == -1, slots, count), -1)
    length = fill_masked(where, length)
    exists = (targets >= 0) & (targets < count)
    read = slots < classes.expand(length)
    expected = f"targets: expected class indices in [0, {count}), and -1 to end the list"
    labels = jnp.where(exists, checked(targets, exists | ~read, expected), 0)
    return labels, length, jnp.all(exists | ~read, -1)


@custom_vmap
def _over_pairs(scores: jax.Array, labels: jax.Array, length: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the sum of the hinges over all pairs of a true and another class, and its slope in the scores.

    It loops over the entries of the longest list. For a batch of 512 with 100 classes, all pairs at once
    would take a hundred times the memory of the scores.
    """
    classes = ClassAxis(scores.ndim - 1, None)
    longest = jnp.max(length, initial=0)

    def true_class(slot: int | jax.Array) -> tuple[jax.Array, jax.Array]:
        return lax.dynamic_index_in_dim(labels, slot, -1, keepdims=False), slot < length

    def marked(slot: int | jax.Array) -> jax.Array:
        label, listed = true_class(slot)
        return classes.one_hot(label, scores) & classes.expand(listed)

    is_true = lax.fori_loop(1, longest, lambda slot, found: found | marked(slot), marked(0))

    def hinges(slot: int | jax.Array) -> tuple[jax.Array, jax.Array]:
        label, listed = true_class(slot)
        excess = 1 - classes.expand(take_class(scores, label, classes, scores)) + scores
        missing = jnp.where(~is_true & classes.expand(listed), jnp.maximum(excess, 0), 0)
        slope = jnp.where(missing > 0, 1, missing)  # NaN stays NaN
        pull = jnp.where(classes.one_hot(label, scores), classes.expand(classes.sum(slope)), 0)
        return classes.sum(missing), slope - pull

    return lax.fori_loop(1, longest, lambda slot, sums: jax.tree.map(jnp.add, sums, hinges(slot)), hinges(0))


@_over_pairs.def_vmap
def _over_pairs_of_a_batch(
    size: int, are_batched: list[bool], *arrays: jax.Array
) -> tuple[tuple[jax.Array, jax.Array], tuple[bool, bool]]:
    # One loop for the whole batch: a batched loop would run as long, and checkify has no rule for it.
    whole = (
        array if is_batched else jnp.broadcast_to(array, (size, *array.shape))
        for array, is_batched in zip(arrays, are_batched, strict=True)
    )
    return _over_pairs(*whole), (True, True)


@jax.custom_jvp
def _linear(value: jax.Array, slope: jax.Array, scores: jax.Array) -> jax.Array:
    """Returns `value` with the constant derivative `slope` in the scores."""
    return value


@_linear.defjvp
def _linear_jvp(
    primals: tuple[jax.Array, jax.Array, jax.Array], tangents: tuple[jax.Array, jax.Array, jax.Array]
) -> tuple[jax.Array, jax.Array]:
    _, slope, _ = primals
    return _linear(*primals), jnp.sum(slope * tangents[2], -1)
