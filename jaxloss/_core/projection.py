"""Statistics of hidden · kernel + bias over many classes, without holding all logits at once.

A loop takes the classes in blocks; written out, the compiler would compute several blocks at once. The
gradient recomputes each block, and writes the kernel's gradient block by block into one array. The loop is
plain JAX, so every derivative exists under every transform.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jaxloss._core.arguments import broadcastable, have_sizes
from jaxloss._core.classes import ClassAxis, soft_capped, take_class
from jaxloss._core.derivatives import derivatives, weighted

_BLOCK = 2**20  # logits of a block on each device, 4 MB in float32
_UNKNOWN = 2**12  # positions that a program exported for any number of them is sized for


class Output(NamedTuple):
    """The last layer of a model: logits = hidden · kernel + bias, soft-capped if there is a cap."""

    kernel: jax.Array  # (features, classes), of any floating dtype
    bias: jax.Array | None
    soft_cap: jax.Array | None


# Statistics of each position's logits, by name. All are relative to the largest logit, since differences of
# large logits would be rounded.
#   largest     the largest logit, with derivative 0: a shift that cancels
#   norm        Σ exp(logits - largest)
#   logit       of the label's class
#   weight      of the label's class
#   share       Σ shares
#   share_gap   Σ shares · (largest - logits)
#   spread      Σ exp(logits - largest) · (largest - logits)
Statistics = dict[str, jax.Array]

# Takes the block's classes from an array whose last axis counts all of them, in the dtype of arithmetic.
Cut = Callable[[jax.Array], jax.Array]


def statistics(
    hidden: jax.Array,
    output: Output,
    *,
    axis_name: str | None = None,
    labels: jax.Array | None = None,
    weight: jax.Array | None = None,
    shares: Callable[[Cut], jax.Array] | None = None,
    entropy: bool = False,
) -> Statistics:
    """Returns statistics of the logits of every position, in blocks of classes.

    Args:
        hidden: Features of shape (..., H), in the dtype of arithmetic.
        output: The layer that makes logits of them.
        axis_name: Inside `jax.shard_map`, the mesh axis that splits the classes.
        labels: An existing class for each position, counted over all devices, for `logit`.
        weight: Weights of the classes, for the label's `weight`.
        shares: Called with a `Cut`, returns a block's factors, of shape (..., classes) or (classes,) or (),
            for `share` and `share_gap`. A `Partial`, which tells JAX of its arrays.
        entropy: Whether to return `spread`.
    """
    if labels is not None and axis_name is not None:
        labels = labels - lax.axis_index(axis_name).astype(labels.dtype) * output.kernel.shape[-1]
    parts: Callable[..., Any] = functools.partial(_of_blocks, entropy=entropy)
    sharding: Any = jax.typeof(hidden).sharding
    explicit = [n for n, kind in _axes(sharding.mesh) if kind == AxisType.Explicit]
    if explicit:
        # Under automatic axes the compiler sums a loop's gradients where they lie; under explicit ones (JAX
        # 0.10 and 0.12) they are gathered first, or have no type that fits.
        positions = NamedSharding(sharding.mesh, PartitionSpec(None, *sharding.spec[:-1]))
        parts = jax.sharding.auto_axes(parts, axes=tuple(explicit), out_sharding=positions)
    return _joined(parts(hidden, output, labels, weight, shares), ClassAxis(0, axis_name))


def _of_blocks(
    hidden: jax.Array,
    output: Output,
    labels: jax.Array | None,
    weight: jax.Array | None,
    shares: Callable[[Cut], jax.Array] | None,
    *,
    entropy: bool,
) -> Statistics:
    """Returns the statistics of each block, which the first axis counts."""
    blocks = _Blocks.of(hidden, output.kernel)
    classes = ClassAxis(hidden.ndim - 1, None)

    def of_block(first: jax.Array) -> Statistics:
        def cut(array: jax.Array) -> jax.Array:
            return blocks.cut(array, first).astype(hidden.dtype)

        logits = _logits(hidden, output, cut)
        # All logits of a block may be -inf, while another block has finite ones.
        largest = jnp.maximum(classes.max(logits), jnp.finfo(logits.dtype).min)
        gaps = classes.expand(largest) - logits
        is_new = blocks.is_new(first, gaps)

        def once(terms: jax.Array) -> jax.Array:
            return terms if is_new is None else terms * is_new

        found = {"largest": largest, "norm": classes.sum(once(jnp.exp(-gaps)))}
        if labels is not None:
            found["logit"] = blocks.pick(logits, labels, first)
        if labels is not None and weight is not None:
            of_class = broadcastable("weight", cut(weight), logits)
            found["weight"] = blocks.compare(of_class, labels, first)
        if shares is not None:
            factor = broadcastable("shares", shares(cut).astype(logits.dtype), logits)
            factor = once(jnp.broadcast_to(factor, logits.shape))
            found["share"] = classes.sum(factor)
            found["share_gap"] = classes.sum(weighted(factor, gaps))
        if entropy:
            found["spread"] = classes.sum(once(_moment(gaps)))
        return found

    return blocks.map(of_block)


def _logits(hidden: jax.Array, output: Output, cut: Cut) -> jax.Array:
    logits = jnp.dot(hidden, cut(output.kernel))
    if output.bias is not None:
        logits = logits + broadcastable("bias", cut(output.bias), logits)
    return soft_capped(logits, output.soft_cap)


def _joined(parts: Statistics, over: ClassAxis) -> Statistics:
    """Returns the statistics of all classes from those of parts, which an axis and devices count."""
    largest = over.max(parts["largest"])
    gaps = over.expand(largest) - parts["largest"]
    scale = jnp.exp(-gaps)
    joined = {"largest": largest, "norm": over.sum(scale * parts["norm"])}
    joined |= {name: over.sum(parts[name]) for name in ("logit", "weight", "share") if name in parts}
    if "share" in parts:
        joined["share_gap"] = over.sum(parts["share_gap"] + weighted(parts["share"], gaps))
    if "spread" in parts:
        joined["spread"] = over.sum(scale * parts["spread"] + parts["norm"] * _moment(gaps))
    return joined


def _moment_slope(gaps: jax.Array) -> jax.Array:
    return jnp.exp(-gaps) - _moment(gaps)


@derivatives(_moment_slope)
def _moment(gaps: jax.Array) -> jax.Array:
    """Returns gaps · exp(-gaps), 0 at infinity as all its derivatives are."""
    return jnp.where(gaps == jnp.inf, 0, gaps) * jnp.exp(-gaps)


@dataclasses.dataclass(frozen=True)
class _Blocks:
    """How the classes are cut into blocks of one size.

    A block is a stretch of each segment, and segments are what a mesh may have split the classes into, so
    that no block needs more of an array than a device has. The last block begins early enough to be as large
    as the others, and what it repeats of the block before does not count.
    """

    count: int  # of classes
    segments: int
    size: int  # of a block's stretch in each segment
    number: int

    @classmethod
    def of(cls, hidden: jax.Array, kernel: jax.Array) -> "_Blocks":
        count = kernel.shape[-1]
        devices = _devices(kernel)
        segments = math.gcd(count, devices)
        features = hidden.shape[-1]
        positions = math.prod(hidden.shape[:-1]) if have_sizes(hidden) else _UNKNOWN
        # With many positions, 2 √count balances a block's logits with the statistics of all blocks.
        at_once = max(_BLOCK * devices // max(positions, 1), 2 * math.isqrt(count))
        if positions * count <= 2 * features * at_once:
            at_once = count  # all logits take less than a block's copy of the kernel, and of its gradient
        number = -(-count // at_once)
        length = count // segments
        size = -(-length // number)
        return cls(count, segments, size, -(-length // size))

    def map(self, function: Callable[[jax.Array], Statistics]) -> Statistics:
        """Returns what the function makes of the first class of each block, on a new first axis."""
        if self.number == 1:
            found = function(jnp.zeros((), jnp.int32))
            return jax.tree.map(lambda array: jnp.expand_dims(array, 0), found)
        first = self.size * jnp.arange(self.number, dtype=jnp.int32)
        return lax.map(jax.checkpoint(function, prevent_cse=False), first)

    def cut(self, array: jax.Array, first: jax.Array) -> jax.Array:
        """Returns a block of an array whose last axis counts the classes."""
        if self.number == 1:
            return array
        if self.segments == 1:
            return lax.dynamic_slice_in_dim(array, self._start(first), self.size, -1)
        leading, length = array.shape[:-1], self.count // self.segments
        segments = array.reshape(*leading, self.segments, length)
        block = lax.dynamic_slice_in_dim(segments, self._start(first), self.size, -1)
        return block.reshape(*leading, self.segments * self.size)

    def is_new(self, first: jax.Array, like: jax.Array) -> jax.Array | None:
        """Returns 1 for classes that no earlier block holds, else 0; None if there are no others."""
        if self.number * self.size * self.segments == self.count:
            return None
        return broadcastable("is_new", (self._classes(first) >= 0).astype(like.dtype), like)

    def pick(self, logits: jax.Array, labels: jax.Array, first: jax.Array) -> jax.Array:
        """Returns the label's logit where the block holds it, else 0."""
        if self.segments > 1:
            return self.compare(logits, labels, first)
        place = labels - self._start(first).astype(labels.dtype)
        inside = (labels >= first.astype(labels.dtype)) & (place < logits.shape[-1])
        picked = take_class(logits, jnp.where(inside, place, 0), ClassAxis(logits.ndim - 1, None), logits)
        return jnp.where(inside, picked, 0)

    def compare(self, array: jax.Array, labels: jax.Array, first: jax.Array) -> jax.Array:
        """Returns what `pick` does without a gather, for what may be split or is the same everywhere."""
        classes = broadcastable("classes", self._classes(first).astype(labels.dtype), array)
        chosen = classes == jnp.expand_dims(labels, -1)
        return jnp.sum(jnp.where(chosen, array, 0), -1)

    def _start(self, first: jax.Array) -> jax.Array:
        return jnp.minimum(first, self.count // self.segments - self.size)

    def _classes(self, first: jax.Array) -> jax.Array:
        """Returns the block's classes, -1 for those that an earlier block holds."""
        length = self.count // self.segments
        place = self._start(first) + jnp.arange(self.size, dtype=jnp.int32)
        segment = length * jnp.arange(self.segments, dtype=jnp.int32)
        return jnp.where(place >= first, segment[:, None] + place[None], -1).ravel()


def _axes(mesh: Any) -> list[tuple[str, AxisType]]:
    """Returns name and type of each axis of a mesh."""
    return list(zip(mesh.axis_names, mesh.axis_types, strict=True))


def _devices(array: jax.Array) -> int:
    """Returns over how many devices the compiler may spread an array. Nothing tells which of its axes."""
    sharding: Any = jax.typeof(array).sharding
    return math.prod(
        sharding.mesh.shape[name] for name, kind in _axes(sharding.mesh) if kind == AxisType.Auto
    )
