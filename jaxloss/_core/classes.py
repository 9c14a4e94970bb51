"""Log-sum-exp, labels and weights of classes, over a class axis that may be split over devices.

In every derivative classes are compared with an index array, not scattered to; and they are gathered from
only where the class axis is whole.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.typing import ArrayLike

from jaxloss._core.arguments import (
    as_array,
    have_sizes,
    hide,
    integer,
    labels_of,
    stretchable,
    widened_integers,
)
from jaxloss._core.checks import checked
from jaxloss._core.derivatives import derivatives, product, tangents_of
from jaxloss._core.elementwise import are_widened_ahead_of_a_loop, in_one_loop


class ClassAxis(NamedTuple):
    """The axis that holds the classes, and the mesh axis over which `shard_map` has split it, if any."""

    position: int
    mesh_axis: str | None

    def sum(self, array: jax.Array) -> jax.Array:
        """Returns the sum over all classes."""
        return self.joined(jnp.sum(array, self.position))

    def joined(self, total: jax.Array) -> jax.Array:
        """Returns the sum of the totals of all slices of the classes."""
        return total if self.mesh_axis is None else lax.psum(total, self.mesh_axis)

    def max(self, logits: jax.Array) -> jax.Array:
        """Returns the largest logit, of derivative zero: a shift that cancels in what it is used for."""
        largest = jnp.max(lax.stop_gradient(logits), self.position)
        return largest if self.mesh_axis is None else lax.pmax(largest, self.mesh_axis)

    def count(self, array: jax.Array) -> int:
        """Returns the number of all classes."""
        return array.shape[self.position] * (1 if self.mesh_axis is None else lax.axis_size(self.mesh_axis))

    def expand(self, array: jax.Array) -> jax.Array:
        """Returns what has one value a position with an axis of size 1 for the classes."""
        return jnp.expand_dims(array, self.position)

    def hide(self, where: jax.Array | None, scores: jax.Array) -> jax.Array:
        """Returns the scores with 0 at every class of a position where the mask is False."""
        return scores if where is None else hide(self.expand(where), scores)

    def numbers(self, scores: jax.Array, dtype: Any) -> jax.Array:
        """Returns the number of each class of the scores, with size 1 along all other axes."""
        count = scores.shape[self.position]
        shape = [count if axis == self.position else 1 for axis in range(scores.ndim)]
        numbers = lax.broadcasted_iota(dtype, shape, self.position)
        if self.mesh_axis is None:
            return numbers
        return numbers + (lax.axis_index(self.mesh_axis) * count).astype(dtype)

    def equals(self, labels: jax.Array, scores: jax.Array) -> jax.Array:
        """Returns which class of each position is its label, as many as the scores have classes."""
        return self.numbers(scores, labels.dtype) == self.expand(labels)

    def is_split(self, array: jax.Array) -> bool:
        """Whether a gather along the axis would have to cross devices.

        Under automatic mesh axes that is not known while tracing, and the compiler splits the gather.
        """
        spec = jax.typeof(array).sharding.spec
        return self.mesh_axis is not None or (self.position < len(spec) and spec[self.position] is not None)


def capped(logits: jax.Array, soft_cap: ArrayLike | None) -> jax.Array:
    """Returns soft_cap · tanh(logits / soft_cap): within the cap, and unchanged where they are small."""
    if soft_cap is None:
        return logits
    return _capped(logits, jnp.asarray(soft_cap, logits.dtype))


def _slope_in_cap(logits: jax.Array, cap: jax.Array) -> jax.Array:
    # The slope of tanh has vanished long before the bound, beyond which it would meet infinity.
    ratio = jnp.clip(logits / cap, -100, 100)
    return jnp.tanh(ratio) - ratio * (1 - jnp.tanh(ratio) ** 2)


@derivatives(lambda logits, cap: 1 - jnp.tanh(logits / cap) ** 2, _slope_in_cap)
def _capped(logits: jax.Array, cap: jax.Array) -> jax.Array:
    return cap * jnp.tanh(logits / cap)


def smoothed(losses: jax.Array, surprises: jax.Array, label_smoothing: float, count: int) -> jax.Array:
    """Returns the losses, mixed with the surprises of all classes; the part of 0 of an infinite one is 0."""
    hard = product(jnp.full_like(losses, 1 - label_smoothing), losses)
    return hard + label_smoothing / count * surprises


def with_z_loss(losses: jax.Array, z_loss: ArrayLike, log_sum_exp: jax.Array) -> jax.Array:
    """Returns the losses and the penalty z_loss · logsumexp² of each position."""
    if isinstance(z_loss, float) and z_loss == 0.0:
        return losses
    factor = stretchable("z_loss", jnp.asarray(z_loss, losses.dtype), losses.shape)
    return losses + product(factor, log_sum_exp * log_sum_exp)


@functools.partial(jax.custom_jvp, nondiff_argnums=(3, 4))
def log_sum_exp(
    logits: jax.Array,
    shift: jax.Array,
    kept: jax.Array | None,
    classes: ClassAxis,
    are_stored: bool = False,
) -> jax.Array:
    """Returns log Σ exp(logits - shift) over the classes, to be differentiated in the logits only.

    The exponentials are computed once for value and gradient, and the gradient takes over their memory. A
    position that is not `kept` has the derivatives of equal logits, even where its own are NaN. Logits that
    `are_stored`, and not computed while they are summed, are worth a loop sooner.
    """
    are_rows = classes.position == logits.ndim - 1
    if are_rows and logits.shape[-1] <= _WIDEST and jax.__version_info__ >= (0, 12):
        sums = _sum_at_once  # XLA's library has become as fast
    else:
        sums = functools.partial(sum_of, loop=SIMPLE if are_stored else COMPUTED)
    return jnp.log(sums(_exponentials, (logits, classes.expand(shift)), classes))


def _exponentials(logits: jax.Array, shift: jax.Array) -> jax.Array:
    return jnp.exp(logits - shift)


@log_sum_exp.defjvp
def _log_sum_exp_jvp(
    classes: ClassAxis, are_stored: bool, primals: tuple[Any, ...], tangents: tuple[Any, ...]
) -> tuple[jax.Array, jax.Array]:
    logits, shift, kept = primals
    exponentials = _exponentials(classes.hide(kept, logits), classes.expand(hide(kept, shift)))
    total = classes.sum(exponentials)
    probs = exponentials * classes.expand(1 / total)
    return jnp.log(total), classes.sum(probs * tangents[0])


class Loop(NamedTuple):
    """When a loop over classes is worth it, where steps are not written out one after the other."""

    size: int  # from how many numbers
    stretch: int  # and from how many of them between a position's first class and its last


SIMPLE = Loop(2**18, 2**11)  # for terms of a few operations on what lies in memory
COMPLEX = Loop(2**18, 2**12)  # for terms of many operations
COMPUTED = Loop(2**23, 2**15)  # for what is computed as it is summed, or summed by the library as fast


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 2, 3))
def sum_of(terms: Callable[..., Any], arrays: tuple[jax.Array, ...], classes: ClassAxis, loop: Loop) -> Any:
    """Returns the sum over the classes of elementwise terms of logits and of arrays that stretch to them.

    Of a list of terms it is the list of their sums.
    """
    size = _step(arrays[0], classes, loop)
    if size is None:
        return _sum_at_once(terms, arrays, classes)
    return lax.platform_dependent(
        arrays,
        cpu=lambda arrays: _sum_in_steps(terms, arrays, classes, size),
        default=lambda arrays: _sum_at_once(terms, arrays, classes),
    )


@functools.partial(sum_of.defjvp, symbolic_zeros=True)
def _sum_of_jvp(
    terms: Callable[..., Any], classes: ClassAxis, loop: Loop, primals: Any, tangents: Any
) -> tuple[Any, Any]:
    value = sum_of(terms, *primals, classes, loop)
    return value, tangents_of(lambda *arrays: _sum_at_once(terms, arrays, classes), *primals, *tangents)


def _sum_at_once(terms: Callable[..., Any], arrays: tuple[jax.Array, ...], classes: ClassAxis) -> Any:
    return jax.tree.map(classes.sum, terms(*arrays))


_UNROLLED = 32  # steps: of more that are written out the compiler vectorises none
_WIDEST = 64 * _UNROLLED  # classes: nor of wider steps, unless some but few numbers follow each class


def _step(logits: jax.Array, classes: ClassAxis, loop: Loop) -> int | None:
    """Returns how many classes XLA:CPU should add to as many others at a time, or None for all at once.

    Steps that are written out one after the other are compiled to a single loop, which takes down to half the
    time that the library for sums does. Where they would be too wide a loop over them takes half the
    library's time, or a quarter where that would write the terms out.
    """
    count = logits.shape[classes.position]
    inner = math.prod(logits.shape[classes.position + 1 :])
    # Devices would have to gather the logits.
    if jax.device_count() > 1 or are_widened_ahead_of_a_loop(logits) or not have_sizes(logits):
        return None
    is_vectorised = count <= _WIDEST or 1 < inner < 32
    if is_vectorised and max(count, inner) >= 16 and count * inner >= 64 and logits.size >= 2**16:
        aligned = -(-16 // inner)
        return -(-count // (_UNROLLED * aligned)) * aligned
    if logits.size >= loop.size and count * inner >= loop.stretch and logits.shape[-1] >= 64:
        return min(count, max(1, 64 // inner, 2**12 * count // logits.size))
    return None


def _sum_in_steps(
    terms: Callable[..., Any], arrays: tuple[jax.Array, ...], classes: ClassAxis, size: int
) -> Any:
    """Adds some classes to as many others at a time, until these few are left to be summed."""
    axis, count = classes.position, arrays[0].shape[classes.position]

    def of_some(first: int | jax.Array, size: int) -> Any:
        slices = (
            array if array.shape[axis] == 1 else lax.dynamic_slice_in_dim(array, first, size, axis)
            for array in arrays
        )
        return terms(*slices)

    def step(i: int | jax.Array, total: Any) -> Any:
        return jax.tree.map(jnp.add, total, of_some(i * size, size))

    number, total = count // size, of_some(0, size)
    if number <= _UNROLLED:
        for i in range(1, number):
            total = step(i, total)
        total = jax.tree.map(in_one_loop, total)
    else:
        total = lax.fori_loop(1, number, step, total)
    rest = of_some(count - count % size, count % size)
    return jax.tree.map(lambda total, rest: classes.sum(total) + classes.sum(in_one_loop(rest)), total, rest)


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def pick(scores: jax.Array, labels: jax.Array, classes: ClassAxis) -> jax.Array:
    """Returns the score of each position's class; every label must be a class that exists.

    Scores that are the same at many positions may have size 1 there: their derivative is then added up where
    the labels lie.
    """
    if classes.is_split(scores):
        return classes.sum(jnp.where(classes.equals(labels, scores), scores, 0))
    index = classes.expand(labels)
    stretched = jnp.broadcast_to(scores, jnp.broadcast_shapes(scores.shape, index.shape))
    picked = jnp.take_along_axis(stretched, index, classes.position, mode="promise_in_bounds")
    return jnp.squeeze(picked, classes.position)


@pick.defjvp
def _pick_jvp(
    classes: ClassAxis, primals: tuple[Any, ...], tangents: tuple[Any, ...]
) -> tuple[jax.Array, jax.Array]:
    scores, labels = primals
    chosen = jnp.where(classes.equals(labels, scores), tangents[0], 0)
    return pick(scores, labels, classes), classes.sum(chosen)


class Labels(NamedTuple):
    """Class labels, and what they say of their positions."""

    classes: jax.Array  # a class that exists, whatever the label was
    kept: jax.Array  # False where the label is ignored or masked
    weight: jax.Array  # of the label's class; NaN where a label that is kept is no class


def class_labels(
    targets: jax.Array,
    name: str,
    scores: jax.Array,
    classes: ClassAxis,
    weight: ArrayLike | None,
    ignore_index: int | None,
    where: jax.Array | None,
) -> Labels:
    """Returns the labels, or refuses those that do not fit the scores, which `name` names."""
    labels = labels_of(targets, name, scores.shape, classes.position)
    existing, kept, valid = existing_labels(labels, classes.count(scores), ignore_index, where)
    if weight is None:
        own = jnp.ones(labels.shape, scores.dtype)
    else:
        of_classes = weight_of_classes(weight, scores, classes).astype(scores.dtype)
        own = pick(of_classes, existing, classes)
    return Labels(existing, kept, jnp.where(valid, own, jnp.nan))


def existing_labels(
    labels: jax.Array, count: int, ignore_index: int | None, where: jax.Array | None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns labels that are classes, which of them are neither ignored nor masked, and which are right.

    The labels are widened. What is not kept is right, whatever it was.
    """
    wide = widened_integers(labels)
    exists = (wide >= 0) & (wide < count)
    expected = f"targets: expected class indices in [0, {count})"
    kept = jnp.ones(labels.shape, bool)
    if ignore_index is not None:
        expected += f" or ignore_index={ignore_index}"
        limits = jnp.iinfo(labels.dtype)
        if limits.min <= integer("ignore_index", ignore_index) <= limits.max:
            kept = labels != np.asarray(ignore_index, labels.dtype)
    if where is not None:
        kept = kept & where
    valid = exists | ~kept
    wide = widened_integers(checked(labels, valid, expected))
    return jnp.where(exists, wide, 0), kept, valid


def hidden_labels(
    targets: jax.Array, hidden: jax.Array, count: int, ignore_index: int | None, where: jax.Array | None
) -> Labels:
    """Returns the labels of positions that have hidden features and `count` classes; each weighs 1 or NaN."""
    labels = labels_of(targets, "hidden", hidden.shape, None)
    existing, kept, valid = existing_labels(labels, count, ignore_index, where)
    return Labels(existing, kept, jnp.where(valid, jnp.ones((), hidden.dtype), jnp.nan))


def refuse_ignored_probabilities(ignore_index: int, targets: jax.Array) -> None:
    """Refuses a label to ignore that could be meant, where targets are no labels."""
    if integer("ignore_index", ignore_index) >= 0:
        raise ValueError(f"ignore_index={ignore_index} needs integer targets, got dtype {targets.dtype}")


def per_class(name: str, array: ArrayLike, scores: jax.Array, axis: int = -1) -> jax.Array:
    """Returns real numbers, one for each class along an axis of the scores."""
    converted, size = as_array(name, array), scores.shape[axis]
    if converted.shape != (size,):
        raise ValueError(f"{name} must have one value for each class, shape ({size},), got {converted.shape}")
    return converted


def weight_of_classes(weight: ArrayLike | None, scores: jax.Array, classes: ClassAxis) -> jax.Array:
    """Returns one weight for each class, or 1 for all, with size 1 along all other axes of the scores."""
    if weight is None:
        return jnp.ones([1] * scores.ndim)
    converted = per_class("weight", weight, scores, classes.position)
    return jnp.expand_dims(converted, [axis for axis in range(scores.ndim) if axis != classes.position])
