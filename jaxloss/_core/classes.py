"""The class axis, sharded or not: labels, class weights, log-sum-exp, selection of classes.

Derivatives compare class indices with labels instead of scattering.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from jaxloss._core.arguments import (
    arithmetic_dtype,
    as_array,
    broadcastable,
    canonical_axis,
    extra_axis_hint,
    fill_masked,
    index_array,
    integer,
    mask,
    sharded_like,
)
from jaxloss._core.checks import checked, one_or_nan
from jaxloss._core.derivatives import derivatives, log_of_total, weighted


class ClassAxis(NamedTuple):
    """The class axis of an array, and the mesh axis over which `shard_map` shards it, if any."""

    position: int
    axis_name: str | None

    @classmethod
    def of(cls, axis: int, axis_name: str | None, name: str, scores: jax.Array) -> "ClassAxis":
        """Returns the class axis of the scores called `name`, which must have at least one class."""
        position = canonical_axis(axis, name, scores.shape)
        if not scores.shape[position]:
            raise ValueError(
                f"{name} must have at least one class, got {name} {scores.shape} with axis={axis}"
            )
        return cls(position, axis_name)

    def sum(self, array: jax.Array) -> jax.Array:
        """Returns the sum over all classes."""
        total = jnp.sum(array, self.position)
        return total if self.axis_name is None else lax.psum(total, self.axis_name)

    def max(self, logits: jax.Array) -> jax.Array:
        """Returns the largest logit, with derivative 0, since it is a shift that cancels."""
        largest = jnp.max(lax.stop_gradient(logits), self.position)
        return largest if self.axis_name is None else lax.pmax(largest, self.axis_name)

    def count(self, scores: jax.Array) -> int:
        """Returns the number of classes on all devices."""
        count = scores.shape[self.position]
        return count if self.axis_name is None else count * lax.axis_size(self.axis_name)

    def drop(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """Returns `shape` without the class axis."""
        return (*shape[: self.position], *shape[self.position + 1 :])

    def expand(self, array: jax.Array) -> jax.Array:
        """Inserts a class axis of size 1 into an array of positions."""
        return jnp.expand_dims(array, self.position)

    def fill_masked(self, where: jax.Array | None, scores: jax.Array, fill: float = 0) -> jax.Array:
        """Returns the scores with `fill` for all classes of masked positions."""
        return scores if where is None else fill_masked(self.expand(where), scores, fill)

    def mask(self, where: ArrayLike | None, scores: jax.Array) -> jax.Array | None:
        """Returns the mask of the positions."""
        return mask(where, scores, [self.position])

    def one_hot(self, labels: jax.Array, scores: jax.Array) -> jax.Array:
        """Returns the one-hot encoding of the labels, as booleans."""
        count = scores.shape[self.position]
        shape = [count if axis == self.position else 1 for axis in range(scores.ndim)]
        classes = lax.broadcasted_iota(labels.dtype, shape, self.position)
        if self.axis_name is not None:
            labels = labels - (lax.axis_index(self.axis_name) * count).astype(labels.dtype)
        return classes == self.expand(labels)

    def is_split(self, scores: jax.Array) -> bool:
        """Whether the axis is known to be sharded, so that a gather would cross devices."""
        sharding: Any = jax.typeof(scores).sharding
        spec = sharding.spec
        return self.axis_name is not None or (self.position < len(spec) and spec[self.position] is not None)


def take_class(scores: jax.Array, labels: jax.Array, classes: ClassAxis, stored: jax.Array) -> jax.Array:
    """Returns the score of each position's label; every label must be in range.

    Args:
        scores: Scores in the arithmetic dtype. They have size 1 along axes that all positions share, over
            which their gradient is summed.
        labels: The labels.
        classes: The class axis.
        stored: The same scores in the dtype in which they are stored, from which the values are taken.
    """
    return _take_class(scores, stored, labels, classes, False)


def take_class_in_pass(
    scores: jax.Array, labels: jax.Array, classes: ClassAxis, stored: jax.Array
) -> jax.Array:
    """Does the same as `take_class`, for losses that read all the scores anyway.

    When differentiated, it compares all classes with the label in that pass. `cross_entropy` of
    8192 x 128256 in bfloat16 moves 8.0 GB in 48 million cycles on a TPU; with a gather, 10.0 GB in 53.
    """
    return _take_class(scores, stored, labels, classes, True)


@functools.partial(jax.custom_jvp, nondiff_argnums=(3, 4))
def _take_class(
    scores: jax.Array, stored: jax.Array, labels: jax.Array, classes: ClassAxis, in_pass: bool
) -> jax.Array:
    if classes.is_split(stored):
        return _sum_over_label(stored, labels, classes).astype(scores.dtype)
    index = classes.expand(labels)
    repeated = jnp.broadcast_to(stored, jnp.broadcast_shapes(stored.shape, index.shape))
    taken = jnp.take_along_axis(repeated, index, classes.position, mode="promise_in_bounds")
    return jnp.squeeze(taken, classes.position).astype(scores.dtype)


@_take_class.defjvp
def _take_class_jvp(
    classes: ClassAxis, in_pass: bool, primals: tuple[Any, ...], tangents: tuple[Any, ...]
) -> tuple[jax.Array, jax.Array]:
    scores, stored, labels = primals
    if in_pass:
        taken = _sum_over_label(stored, labels, classes).astype(scores.dtype)
    else:
        taken = _take_class(*primals, classes, in_pass)
    return taken, _sum_over_label(tangents[0], labels, classes)


def _sum_over_label(scores: jax.Array, labels: jax.Array, classes: ClassAxis) -> jax.Array:
    return classes.sum(jnp.where(classes.one_hot(labels, scores), scores, 0))


def log_normalizer(logits: jax.Array, shift: jax.Array, classes: ClassAxis) -> jax.Array:
    """Returns log Σ exp(logits - shift) over the classes."""
    return jnp.log(classes.sum(jnp.exp(logits - classes.expand(shift))))


def log_odds_against(
    logits: jax.Array, labels: jax.Array, classes: ClassAxis, stored: jax.Array
) -> jax.Array:
    """Returns log((1 - p) / p) for the probability p of each position's label, without computing 1 - p.

    This is the log-sum-exp of the other classes minus the label's logit, -∞ if there is no other class. The
    arguments are those of `take_class`.
    """
    others = jnp.where(classes.one_hot(labels, logits), -jnp.inf, logits)
    shift = classes.max(others)
    shift = jnp.where(shift == -jnp.inf, 0, shift)
    own = take_class_in_pass(logits, labels, classes, stored)
    return log_of_total(classes.sum(jnp.exp(others - classes.expand(shift)))) - (own - shift)


def soft_capped(logits: jax.Array, soft_cap: ArrayLike | None) -> jax.Array:
    """Returns soft_cap · tanh(logits / soft_cap)."""
    return logits if soft_cap is None else _soft_capped(logits, jnp.asarray(soft_cap, logits.dtype))


def _slope_in_cap(logits: jax.Array, cap: jax.Array) -> jax.Array:
    # The slope of tanh vanishes long before the bound; without it, 0 · ∞ would give NaN.
    ratio = jnp.clip(logits / cap, -100, 100)
    return jnp.tanh(ratio) - ratio * (1 - jnp.tanh(ratio) ** 2)


@derivatives(lambda logits, cap: 1 - jnp.tanh(logits / cap) ** 2, _slope_in_cap)
def _soft_capped(logits: jax.Array, cap: jax.Array) -> jax.Array:
    return cap * jnp.tanh(logits / cap)


def nll_over_classes(
    logits: jax.Array,
    shift: jax.Array,
    log_norm: jax.Array,
    weight: ArrayLike | None,
    classes: ClassAxis,
) -> jax.Array:
    """Returns Σ weight · -log p over the classes, from `log_normalizer`."""
    if weight is None:
        return classes.sum(classes.expand(shift) - logits) + classes.count(logits) * log_norm
    of_classes = weight_of_classes(weight, logits, classes).astype(logits.dtype)
    below = classes.sum(weighted(of_classes, classes.expand(shift) - logits))
    return below + weighted(classes.sum(of_classes), log_norm)


def smoothed(losses: jax.Array, uniform: jax.Array, label_smoothing: float, count: int) -> jax.Array:
    """Returns (1 - label_smoothing) · losses + label_smoothing · uniform / count."""
    hard = weighted(jnp.full_like(losses, 1 - label_smoothing), losses)
    return hard + label_smoothing / count * uniform


def with_z_loss(losses: jax.Array, z_loss: ArrayLike, log_sum_exp: jax.Array) -> jax.Array:
    """Returns the losses plus z_loss · logsumexp² of each position."""
    if isinstance(z_loss, float) and z_loss == 0.0:
        return losses
    factor = broadcastable("z_loss", jnp.asarray(z_loss, losses.dtype), losses)
    return losses + weighted(factor, log_sum_exp * log_sum_exp)


def tempered(logits: jax.Array, temperature: ArrayLike) -> jax.Array:
    """Returns logits / temperature; infinite logits have slope 0 in the temperature."""
    inverse = 1 / jnp.asarray(temperature, logits.dtype)
    return _scaled(logits, inverse.reshape([1] * logits.ndim))


@derivatives(
    lambda logits, factor: factor,
    lambda logits, factor: jnp.where(jnp.isinf(logits), 0, logits),
)
def _scaled(logits: jax.Array, factor: jax.Array) -> jax.Array:
    return factor * logits


class Labels(NamedTuple):
    """Class labels in range, with their validity and weight."""

    classes: jax.Array  # 0 in place of an out-of-range label
    valid: jax.Array  # False where the label is ignored or masked
    weight: jax.Array  # of the label's class; NaN if out of range and neither ignored nor masked


def class_labels(
    targets: jax.Array,
    name: str,
    scores: jax.Array,
    classes: ClassAxis,
    weight: ArrayLike | None,
    ignore_index: int | None,
    where: jax.Array | None,
) -> Labels:
    """Returns the labels of the scores called `name`, with the weight of their classes."""
    labels = labels_without_weight(targets, name, scores, classes, classes.count(scores), ignore_index, where)
    if weight is None:
        return labels
    of_classes = weight_of_classes(weight, scores, classes).astype(labels.weight.dtype)
    return labels._replace(weight=take_class(of_classes, labels.classes, classes, of_classes) * labels.weight)


def labels_without_weight(
    targets: jax.Array,
    name: str,
    scores: jax.Array,
    classes: ClassAxis,
    count: int,
    ignore_index: int | None,
    where: jax.Array | None,
) -> Labels:
    """Returns the labels of `count` classes, with weight 1 or NaN.

    Args:
        targets: The labels.
        name: Name of the scores in error messages.
        scores: An array with the shape of the labels and one more axis.
        classes: That axis.
        count: Number of classes.
        ignore_index: The label to ignore, or None.
        where: Mask of the positions.
    """
    _check_shape_of_labels(targets, name, scores, classes)
    targets = sharded_like(scores, targets, [classes.position])
    index = index_array("targets", targets)
    exists = (index >= 0) & (index < count)
    expected = f"targets: expected class indices in [0, {count})"
    valid = jnp.ones(targets.shape, bool) if where is None else jnp.broadcast_to(where, targets.shape)
    if ignore_index is not None:
        expected += f" or ignore_index={ignore_index}"
        valid &= is_not_ignored(targets, ignore_index)
    is_right = exists | ~valid
    index = index_array("targets", checked(targets, is_right, expected))
    return Labels(jnp.where(exists, index, 0), valid, one_or_nan(is_right, arithmetic_dtype(scores)))


def is_not_ignored(targets: jax.Array, ignore_index: int) -> jax.Array:
    """Returns which integer targets differ from `ignore_index`, which may lie outside their dtype."""
    compared = index_array("targets", targets) if targets.dtype.itemsize == 8 else targets
    limits = jnp.iinfo(compared.dtype)
    if limits.min <= integer("ignore_index", ignore_index) <= limits.max:
        return compared != np.asarray(ignore_index, compared.dtype)
    return jnp.ones_like(targets, bool)


def _check_shape_of_labels(targets: jax.Array, name: str, scores: jax.Array, classes: ClassAxis) -> None:
    if not jnp.issubdtype(targets.dtype, jnp.integer):
        hint = _swapped_hint(name, scores)
        raise TypeError(f"targets must be integer class indices, got dtype {targets.dtype}{hint}")
    shape, expected = scores.shape, classes.drop(scores.shape)
    if targets.shape == expected:
        return
    which, chosen, hint = "its last axis", "", extra_axis_hint(expected, ["targets"], [targets])
    if name not in ("hidden", "embeddings"):
        axis = -1 if classes.position == len(shape) - 1 else classes.position
        which, chosen = "the class axis", f" with axis={axis}"
        others = (classes._replace(position=other) for other in range(len(shape)))
        fitting = [other.position for other in others if targets.shape == other.drop(shape)]
        if fitting:
            hint = f"; they would fit axis={fitting[0]}"
        elif targets.shape == shape:
            hint = "; make one-hot targets floating-point, or take their argmax over the class axis"
    raise ValueError(
        f"targets must have the shape of {name} without {which}, {expected}, "
        f"got targets {targets.shape} and {name} {shape}{chosen}{hint}"
    )


def _swapped_hint(name: str, scores: jax.Array) -> str:
    """Returns a question if the scores called `name` are integers, as labels are, or an empty string."""
    if not jnp.issubdtype(scores.dtype, jnp.integer):
        return ""
    return f"; the first argument, {name}, has dtype {scores.dtype}: are the arguments swapped?"


def refuse_misfit_of_probabilities(targets: jax.Array, logits: jax.Array, ignore_index: int) -> None:
    """Raises if probabilities do not have the shape of the logits, or `ignore_index` names a class."""
    refuse_ignored_probabilities(ignore_index, targets)
    if targets.shape != logits.shape:
        raise ValueError(
            "floating targets are class probabilities and must have the shape of logits, got "
            f"targets {targets.shape} and logits {logits.shape}; class indices must be integers"
            f"{_swapped_hint('logits', logits)}"
        )


def refuse_ignored_probabilities(ignore_index: int, targets: jax.Array) -> None:
    """Raises if `ignore_index` names a class but the targets are probabilities."""
    if integer("ignore_index", ignore_index) >= 0:
        raise ValueError(f"ignore_index={ignore_index} needs integer targets, got dtype {targets.dtype}")


def per_class(name: str, array: ArrayLike, scores: jax.Array, axis: int = -1) -> jax.Array:
    """Returns an array of real numbers, one for each class along an axis of the scores."""
    converted, size = as_array(name, array), scores.shape[axis]
    if converted.shape != (size,):
        raise ValueError(f"{name} must have one value for each class, shape ({size},), got {converted.shape}")
    return converted


def weight_of_classes(weight: ArrayLike | None, scores: jax.Array, classes: ClassAxis) -> jax.Array:
    """Returns the class weights, 1 by default, with size 1 along all other axes of the scores."""
    if weight is None:
        return jnp.ones([1] * scores.ndim)
    converted = per_class("weight", weight, scores, classes.position)
    converted = jnp.expand_dims(converted, [axis for axis in range(scores.ndim) if axis != classes.position])
    return sharded_like(scores, converted)
