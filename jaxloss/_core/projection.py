"""Statistics of the logits of one or two output layers over many classes."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from jaxloss._core.arguments import as_array, broadcastable, fill_masked
from jaxloss._core.blocks import Arrays, Layer, Statistics, Summary, logits_of, masked, summarized
from jaxloss._core.classes import ClassAxis
from jaxloss._core.derivatives import derivatives, weighted


def features_and_kernel(
    hidden: ArrayLike, kernel: ArrayLike, name: str = "hidden", kernel_name: str = "kernel"
) -> tuple[jax.Array, jax.Array]:
    """Returns features of shape (..., H) and a kernel of shape (H, V) as arrays, or raises an error."""
    hidden, kernel = as_array(name, hidden), as_array(kernel_name, kernel)
    if kernel.ndim != 2 or hidden.shape[-1:] != kernel.shape[:1] or not kernel.shape[1]:
        tied = kernel.ndim == 2 and hidden.shape[-1:] == kernel.shape[1:]
        hint = "; for a tied embedding, pass its transpose" if tied else ""
        raise ValueError(
            f"{kernel_name} must have shape (H, V), V > 0, for {name} of shape (..., H), got {kernel_name} "
            f"{kernel.shape} and {name} {hidden.shape}{hint}"
        )
    return hidden, kernel


# Statistics of each position's logits, by name. All are relative to the largest logit, since differences of
# large logits would be rounded.
#   largest     the largest logit, with derivative 0, since it is a shift that cancels
#   normalizer  Σ exp(logits - largest)
#   label_gap   largest - logit of the label's class
#   weight      of the label's class
#   share       Σ shares
#   share_gap   Σ shares · (largest - logits)
#   spread      Σ exp(logits - largest) · (largest - logits)
# Statistics of a part of the classes also have `label`, 1 if the label's class is one of them, else 0.
#
# `statistics_of_others` excludes the label's class from `largest` and `normalizer`, which is 0 if there is no
# other class: a margin may take the label's logit far below the others, whose exponentials relative to it may
# be 0. It has `label_logit`, the label's logit, instead of `label_gap`.


class _Wanted(NamedTuple):
    shares: bool
    smoothing: float  # share of the uniform distribution in the probabilities
    classes: int  # number of classes on all devices
    entropy: bool


def statistics(
    layer: Layer,
    dtype: jnp.dtype,
    *,
    axis_name: str | None = None,
    labels: jax.Array | None = None,
    probs: jax.Array | None = None,
    valid: jax.Array | None = None,
    weight: jax.Array | None = None,
    label_smoothing: float = 0.0,
    entropy: bool = False,
) -> Statistics:
    """Returns statistics of the logits of every position, computed in blocks.

    Args:
        layer: The layer that computes the logits. Features count as 0 where `valid` is False.
        dtype: The arithmetic dtype.
        axis_name: Inside `jax.shard_map`, the mesh axis that shards the classes.
        labels: A class index in range for each position, over all devices, for `label_gap` and `weight`.
        probs: Probabilities of shape (..., classes), instead of labels, and 0 where `valid` is False. The
            shares are then the smoothed probabilities times the weights.
        valid: Mask of positions. Default: all are valid.
        weight: Weights of the classes.
        label_smoothing: Share of the uniform distribution. With labels, the shares are the weights alone, and
            `share` and `share_gap` exist only with smoothing.
        entropy: Whether to return `spread`.
    """
    classes = ClassAxis(1, axis_name).count(layer.kernel)
    wanted = _Wanted(probs is not None or label_smoothing > 0, label_smoothing, classes, entropy)
    arrays = {
        "labels": None if labels is None else _on_device(labels, layer, axis_name),
        "probs": probs,
        "valid": valid,
        "weight": None if weight is None else weight.astype(dtype),
    }
    summary = Summary(functools.partial(_of_block, wanted), _joined)
    return summarized(summary, [layer], arrays, dtype, axis_name)


def statistics_of_others(
    layer: Layer, dtype: jnp.dtype, labels: jax.Array, valid: jax.Array, axis_name: str | None
) -> Statistics:
    """Returns the statistics of the classes other than the label, and the label's logit."""
    arrays: Arrays = {"labels": _on_device(labels, layer, axis_name), "valid": valid}
    return summarized(Summary(_of_others, _joined), [layer], arrays, dtype, axis_name)


def divergence(
    student: Layer, teacher: Layer, dtype: jnp.dtype, valid: jax.Array | None, axis_name: str | None
) -> jax.Array:
    """Returns Σ p (log p - log q) for the softmax p of the teacher's logits and q of the student's."""
    summary = Summary(_of_both, _joined_both)
    found = summarized(summary, [student, teacher], {"valid": valid}, dtype, axis_name)
    normalizer, teacher_normalizer = found["normalizer"]
    return found["excess"] / teacher_normalizer + (jnp.log(normalizer) - jnp.log(teacher_normalizer))


def _on_device(labels: jax.Array, layer: Layer, axis_name: str | None) -> jax.Array:
    """Returns labels relative to the first class of this device."""
    if axis_name is None:
        return labels
    return labels - lax.axis_index(axis_name).astype(labels.dtype) * layer.kernel.shape[-1]


def _of_block(
    wanted: _Wanted, arrays: Arrays, start: jax.Array | int = 0, first: jax.Array | None = None
) -> Statistics:
    """Returns the statistics of a block whose classes begin at `start`; those before `first` do not count."""
    logits = logits_of(arrays)
    classes = ClassAxis(logits.ndim - 1, None)
    largest = arrays["largest"] if "largest" in arrays else _largest(logits)
    gaps = classes.expand(largest) - logits
    place = _places(logits, start)
    new = None if first is None else place >= first
    found = {"largest": largest, "normalizer": classes.sum(fill_masked(new, jnp.exp(-gaps)))}
    if "labels" in arrays:
        labels = arrays["labels"]
        is_label = place.astype(labels.dtype) == classes.expand(labels)
        is_label = is_label if new is None else is_label & new
        found["label_gap"] = classes.sum(fill_masked(is_label, gaps))
        begin = jnp.asarray(start if first is None else first, labels.dtype)
        end = jnp.asarray(start + gaps.shape[-1], labels.dtype)
        found["label"] = ((labels >= begin) & (labels < end)).astype(gaps.dtype)
        if "weight" in arrays:
            of_class = jnp.broadcast_to(broadcastable("weight", arrays["weight"], gaps), gaps.shape)
            found["weight"] = classes.sum(fill_masked(is_label, of_class))
    if wanted.shares:
        shares = fill_masked(new, jnp.broadcast_to(_shares(wanted, arrays, gaps), gaps.shape))
        found["share"] = classes.sum(shares)
        found["share_gap"] = classes.sum(weighted(shares, gaps))
    if wanted.entropy:
        found["spread"] = classes.sum(fill_masked(new, _moment(gaps)))
    return found


def _largest(logits: jax.Array) -> jax.Array:
    """Returns the largest logit, or a finite number where all are -inf, as other blocks have finite ones."""
    return jnp.maximum(ClassAxis(logits.ndim - 1, None).max(logits), jnp.finfo(logits.dtype).min)


def _places(logits: jax.Array, start: jax.Array | int) -> jax.Array:
    """Returns the index of each class; the first one is `start`."""
    row = (*[1] * (logits.ndim - 1), logits.shape[-1])
    return start + lax.broadcasted_iota(jnp.int32, row, logits.ndim - 1)


def _shares(wanted: _Wanted, arrays: Arrays, like: jax.Array) -> jax.Array:
    """Returns the class weights, times the smoothed probabilities if there are any."""
    shares = jnp.ones((), like.dtype)
    if "probs" in arrays:
        shares = masked(arrays, arrays["probs"]).astype(like.dtype)
        if wanted.smoothing:
            shares = (1 - wanted.smoothing) * shares + wanted.smoothing / wanted.classes
    if "weight" in arrays:
        shares = broadcastable("shares", shares, like) * broadcastable("weight", arrays["weight"], like)
    return broadcastable("shares", shares, like)


_SUMS = ("label", "label_logit", "weight", "share")


def _joined(parts: Statistics, over: ClassAxis) -> Statistics:
    """Combines the statistics of parts of the classes, which lie along an axis and over devices."""
    largest = over.max(parts["largest"])
    gaps = over.expand(largest) - parts["largest"]
    scale = jnp.exp(-gaps)
    joined = {"largest": largest, "normalizer": over.sum(scale * parts["normalizer"])}
    joined |= {name: over.sum(parts[name]) for name in _SUMS if name in parts}
    for name in ("label", "share"):
        if name in parts:
            joined[f"{name}_gap"] = over.sum(parts[f"{name}_gap"] + weighted(parts[name], gaps))
    if "spread" in parts:
        joined["spread"] = over.sum(scale * parts["spread"] + parts["normalizer"] * _moment(gaps))
    return joined


def _moment_slope(gaps: jax.Array) -> jax.Array:
    return jnp.exp(-gaps) - _moment(gaps)


@derivatives(_moment_slope)
def _moment(gaps: jax.Array) -> jax.Array:
    """Returns gaps · exp(-gaps), 0 with every derivative 0 at infinity."""
    return jnp.where(gaps == jnp.inf, 0, gaps) * jnp.exp(-gaps)


def _of_others(arrays: Arrays, start: jax.Array | int = 0, first: jax.Array | None = None) -> Statistics:
    """Does the same as `_of_block`, for the classes other than the label."""
    logits = logits_of(arrays)
    classes = ClassAxis(logits.ndim - 1, None)
    place = _places(logits, start)
    is_label = place.astype(arrays["labels"].dtype) == classes.expand(arrays["labels"])
    others = jnp.where(is_label, -jnp.inf, logits)
    largest = arrays["largest"] if "largest" in arrays else _largest(others)
    new = None if first is None else place >= first
    return {
        "largest": largest,
        "normalizer": classes.sum(fill_masked(new, jnp.exp(others - classes.expand(largest)))),
        "label_logit": classes.sum(fill_masked(is_label if new is None else is_label & new, logits)),
    }


# For two layers, `largest` and `normalizer` are pairs (student, teacher). With the gaps of each layer,
# largest - logits, there is
#   excess      Σ exp(-gaps of the teacher) · (gaps of the student - gaps of the teacher)


def _of_both(arrays: Arrays, start: jax.Array | int = 0, first: jax.Array | None = None) -> Statistics:
    """Does the same as `_of_block`, for two layers."""
    logits = [logits_of(arrays, index) for index in range(2)]
    classes = ClassAxis(logits[0].ndim - 1, None)
    largest = arrays["largest"] if "largest" in arrays else tuple(map(_largest, logits))
    gaps = [classes.expand(peak) - each for peak, each in zip(largest, logits, strict=True)]
    new = None if first is None else _places(logits[0], start) >= first
    return {
        "largest": largest,
        "normalizer": tuple(classes.sum(fill_masked(new, jnp.exp(-each))) for each in gaps),
        "excess": classes.sum(fill_masked(new, _excess(gaps[1], gaps[0]))),
    }


def _joined_both(parts: Statistics, over: ClassAxis) -> Statistics:
    """Does the same as `_joined`, for two layers."""
    largest = tuple(map(over.max, parts["largest"]))
    shifts = [over.expand(peak) - each for peak, each in zip(largest, parts["largest"], strict=True)]
    scales = [jnp.exp(-shift) for shift in shifts]
    excess = parts["excess"] + parts["normalizer"][1] * (shifts[0] - shifts[1])
    return {
        "largest": largest,
        "normalizer": tuple(
            over.sum(scale * norm) for scale, norm in zip(scales, parts["normalizer"], strict=True)
        ),
        "excess": over.sum(weighted(scales[1], excess)),
    }


def _excess_slope(teacher_gaps: jax.Array, gaps: jax.Array) -> jax.Array:
    return -_excess(teacher_gaps, gaps) - jnp.exp(-teacher_gaps)


@derivatives(_excess_slope, lambda teacher_gaps, gaps: jnp.exp(-teacher_gaps))
def _excess(teacher_gaps: jax.Array, gaps: jax.Array) -> jax.Array:
    """Returns exp(-teacher_gaps) · (gaps - teacher_gaps), 0 where that probability is 0."""
    prob = jnp.exp(-teacher_gaps)
    return prob * (fill_masked(prob != 0, gaps) - fill_masked(prob != 0, teacher_gaps))
