"""Statistics of hidden · kernel + bias over many classes, whose logits are never all held.

A loop computes the logits in blocks: some classes of all positions, or all classes of some positions. All
blocks share an operand, the features or the kernel, and its gradient is read and written once per block; the
loop runs over the longer axis, so that this operand is the smaller one. The gradient recomputes the logits.
"""

import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from jaxloss._core.arguments import (
    arithmetic_dtype,
    broadcastable,
    fill_masked,
    have_sizes,
    on_automatic_axes,
)
from jaxloss._core.classes import ClassAxis, soft_capped
from jaxloss._core.derivatives import derivatives, weighted

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
#   label_gap   largest - logit of the label's class
#   weight      of the label's class
#   share       Σ shares
#   share_gap   Σ shares · (largest - logits)
#   spread      Σ exp(logits - largest) · (largest - logits)
# A part of the classes has `label` besides, 1 if the label's class is one of them, else 0.
Statistics = dict[str, jax.Array]

# Arrays by name. The axes of positions are the first ones of an array, and that of classes is the last.
_Arrays = dict[str, jax.Array]
_OF_POSITIONS = ("hidden", "wide_hidden", "probs", "labels", "valid", "largest")
_OF_CLASSES = ("kernel", "wide_kernel", "probs", "bias", "weight")
_CLASSES = -1  # the axis of blocks that are some of the classes


class _Wanted(NamedTuple):
    dtype: jnp.dtype  # of arithmetic
    shares: bool
    smoothing: float  # share of the uniform distribution in the probabilities
    classes: int  # how many there are, on all devices
    entropy: bool


def statistics(
    hidden: jax.Array,
    output: Output,
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
    """Returns statistics of the logits of every position, in blocks.

    Args:
        hidden: Features of shape (..., H), of any floating dtype, taken for 0 where `valid` is False.
        output: The layer that makes logits of them.
        dtype: The dtype of arithmetic.
        axis_name: Inside `jax.shard_map`, the mesh axis that splits the classes.
        labels: An existing class for each position, counted over all devices, for `label_gap` and `weight`.
        probs: Probabilities of shape (..., classes), instead of labels, and 0 where `valid` is False.
            `share` and `share_gap` take the smoothed ones, times the weights, as their shares.
        valid: Which positions count. Default: all.
        weight: Weights of the classes.
        label_smoothing: Share of the uniform distribution. With labels, `share` and `share_gap` are of the
            weights alone, and there are none without smoothing.
        entropy: Whether to return `spread`.
    """
    classes = ClassAxis(1, axis_name).count(output.kernel)
    wanted = _Wanted(dtype, probs is not None or label_smoothing > 0, label_smoothing, classes, entropy)
    if labels is not None and axis_name is not None:
        labels = labels - lax.axis_index(axis_name).astype(labels.dtype) * output.kernel.shape[-1]
    if not (hidden.dtype == output.kernel.dtype == jnp.bfloat16 and dtype == jnp.float32):
        # Only bfloat16 products stay narrow: in float16 the gradient of a mean would underflow.
        hidden, output = hidden.astype(dtype), output._replace(kernel=output.kernel.astype(dtype))
    wide = {"bias": output.bias, "weight": weight}
    arrays = {"hidden": hidden, "kernel": output.kernel, "soft_cap": output.soft_cap}
    arrays |= {"labels": labels, "probs": probs, "valid": valid}
    arrays |= {name: None if array is None else array.astype(dtype) for name, array in wide.items()}
    given = {name: array for name, array in arrays.items() if array is not None}
    if "valid" in given:
        given["valid"] = jnp.broadcast_to(given["valid"], hidden.shape[:-1])
    # Under automatic axes the compiler sums a loop's gradients where they lie; under explicit ones (JAX 0.10
    # and 0.12) they are gathered first, or have no type that fits.
    of_device: Callable[..., Any] = functools.partial(_of_device, wanted)
    found = on_automatic_axes(of_device, hidden, *range(hidden.ndim - 1))(given)
    if axis_name is None:
        return found
    return _joined({name: found[name][None] for name in found}, ClassAxis(0, axis_name))


def _of_device(wanted: _Wanted, arrays: _Arrays) -> Statistics:
    """Returns the statistics of the classes that a device holds."""
    hidden, kernel = arrays["hidden"], arrays["kernel"]
    mesh, devices = _devices(hidden, kernel)
    if devices > 1:
        # A kernel whose features are split, too, is gathered once and not once a block: 1.3 times the cycles
        # of all logits on 256 TPU chips, where the compiler's own choice takes 2.3.
        gathered = NamedSharding(mesh, PartitionSpec(None, PartitionSpec.UNCONSTRAINED))
        arrays = {**arrays, "kernel": lax.with_sharding_constraint(kernel, gathered)}
    plans = {name: _Blocks.of(hidden, kernel, devices, name) for name in ("cpu", "tpu", "gpu")}
    if len(set(plans.values())) == 1:
        return _in_blocks(wanted, plans["cpu"], arrays)
    cpu, tpu, gpu = (functools.partial(_in_blocks, wanted, plan) for plan in plans.values())
    return lax.platform_dependent(arrays, cpu=cpu, tpu=tpu, default=gpu)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _in_blocks(wanted: _Wanted, blocks: "_Blocks", arrays: _Arrays) -> Statistics:
    parts = _parts(wanted, blocks, arrays)
    return parts if blocks.over_positions else _joined(parts, ClassAxis(0, None))


@_in_blocks.defjvp
def _in_blocks_jvp(
    wanted: _Wanted, blocks: "_Blocks", primals: tuple[_Arrays], tangents: tuple[_Arrays]
) -> tuple[Statistics, Statistics]:
    """Differentiates the sums whose `largest` is known, which needs no maximum of the logits again."""
    found = _in_blocks(wanted, blocks, *primals)

    def sums(arrays: _Arrays) -> Statistics:
        parts = _parts(wanted, blocks, {**arrays, "largest": found["largest"]})
        return parts if blocks.over_positions else jax.tree.map(lambda part: jnp.sum(part, 0), parts)

    _, moved = jax.jvp(sums, primals, tangents)
    return found, moved | {"largest": jnp.zeros_like(found["largest"])}


def _parts(wanted: _Wanted, blocks: "_Blocks", arrays: _Arrays) -> Statistics:
    """Returns the statistics of all blocks.

    Gradients flow to the arrays named wide. The operand that all blocks share is wide in dtype, so that its
    gradient accumulates in the dtype of arithmetic. The wide features are unmasked, so that each block masks
    its own gradient; to mask that of 65,536 x 4096 features at once took 3 % of the time on a TPU.
    """
    wide = {"wide_hidden": arrays["hidden"], "wide_kernel": arrays["kernel"]}
    if blocks.number > 1:
        shared = "wide_kernel" if blocks.over_positions else "wide_hidden"
        wide[shared] = wide[shared].astype(wanted.dtype)
    arrays = {**arrays, **wide, "hidden": _masked(arrays, "hidden")}
    return blocks.map(functools.partial(_of_block, wanted), arrays)


def _of_block(
    wanted: _Wanted, arrays: _Arrays, start: jax.Array | int = 0, first: jax.Array | None = None
) -> Statistics:
    """Returns the statistics of one block, whose classes begin at `start`, and count from `first` on."""
    logits = _logits(arrays)
    classes = ClassAxis(logits.ndim - 1, None)
    if "largest" in arrays:
        largest = arrays["largest"]
    else:
        # All logits of a block may be -inf, while another block has finite ones.
        largest = jnp.maximum(classes.max(logits), jnp.finfo(logits.dtype).min)
    gaps = classes.expand(largest) - logits
    row = (*[1] * (gaps.ndim - 1), gaps.shape[-1])
    place = start + lax.broadcasted_iota(jnp.int32, row, gaps.ndim - 1)
    new = None if first is None else place >= first
    found = {"largest": largest, "norm": classes.sum(fill_masked(new, jnp.exp(-gaps)))}
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


def _masked(arrays: _Arrays, name: str) -> jax.Array:
    """Returns features or probabilities, 0 at positions that do not count."""
    valid = jnp.expand_dims(arrays["valid"], -1) if "valid" in arrays else None
    return fill_masked(valid, arrays[name])


def _logits(arrays: _Arrays) -> jax.Array:
    wide = _masked(arrays, "wide_hidden"), arrays["wide_kernel"]
    logits = product(arrays["hidden"], arrays["kernel"], *wide)
    if "bias" in arrays:
        logits = logits + broadcastable("bias", arrays["bias"], logits)
    return soft_capped(logits, arrays.get("soft_cap"))


@jax.custom_jvp
def product(
    hidden: jax.Array, kernel: jax.Array, wide_hidden: jax.Array, wide_kernel: jax.Array
) -> jax.Array:
    """Returns hidden · kernel, in float32 or wider; gradients flow to the wide arguments.

    The gradient of the logits is rounded once, to the dtype of the operands. JAX's own rule would multiply
    float32 with bfloat16, in float32, which takes 1.5 times as long on an H100.
    """
    return jnp.dot(hidden, kernel, preferred_element_type=arithmetic_dtype(hidden))


@product.defjvp
def _product_jvp(primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[jax.Array, jax.Array]:
    hidden, kernel, *_ = primals
    logits = product(*primals)
    hidden_dot, kernel_dot = (tangent.astype(hidden.dtype) for tangent in tangents[2:])
    of_hidden, of_kernel = jnp.dot(hidden_dot, kernel), jnp.dot(hidden, kernel_dot)
    return logits, of_hidden.astype(logits.dtype) + of_kernel.astype(logits.dtype)


def _shares(wanted: _Wanted, arrays: _Arrays, like: jax.Array) -> jax.Array:
    """Returns the weights of the classes, times their smoothed probabilities if there are any."""
    shares = jnp.ones((), like.dtype)
    if "probs" in arrays:
        shares = _masked(arrays, "probs").astype(like.dtype)
        if wanted.smoothing:
            shares = (1 - wanted.smoothing) * shares + wanted.smoothing / wanted.classes
    if "weight" in arrays:
        shares = broadcastable("shares", shares, like) * broadcastable("weight", arrays["weight"], like)
    return broadcastable("shares", shares, like)


def _joined(parts: Statistics, over: ClassAxis) -> Statistics:
    """Returns the statistics of all classes from those of parts, which an axis and devices count."""
    largest = over.max(parts["largest"])
    gaps = over.expand(largest) - parts["largest"]
    scale = jnp.exp(-gaps)
    joined = {"largest": largest, "norm": over.sum(scale * parts["norm"])}
    joined |= {name: over.sum(parts[name]) for name in ("label", "weight", "share") if name in parts}
    for name in ("label", "share"):
        if name in parts:
            joined[f"{name}_gap"] = over.sum(parts[f"{name}_gap"] + weighted(parts[name], gaps))
    if "spread" in parts:
        joined["spread"] = over.sum(scale * parts["spread"] + parts["norm"] * _moment(gaps))
    return joined


def _moment_slope(gaps: jax.Array) -> jax.Array:
    return jnp.exp(-gaps) - _moment(gaps)


@derivatives(_moment_slope)
def _moment(gaps: jax.Array) -> jax.Array:
    """Returns gaps · exp(-gaps), 0 at infinity as all its derivatives are."""
    return jnp.where(gaps == jnp.inf, 0, gaps) * jnp.exp(-gaps)


class _Blocks(NamedTuple):
    """How positions or classes are cut into blocks of one size.

    A block takes a stretch of each segment. A segment lies on one device, however a mesh shards the
    positions, so no block needs positions of another device. The last block starts early enough to be as
    large as the others, and what it repeats of the previous block does not count.
    """

    axis: int  # of the positions, or _CLASSES
    segments: int
    length: int  # of a segment
    size: int  # of a block's stretch in each segment
    number: int

    @property
    def over_positions(self) -> bool:
        return self.axis != _CLASSES

    @classmethod
    def of(cls, hidden: jax.Array, kernel: jax.Array, devices: int, platform: str) -> "_Blocks":
        features, classes = kernel.shape
        known = have_sizes(hidden)
        positions = math.prod(hidden.shape[:-1]) if known else _UNKNOWN
        logits = positions * classes // devices
        # Under automatic axes the sharding is unknown here; positions are usually sharded.
        over_positions = known and hidden.ndim > 1 and (devices > 1 or positions > classes)
        at_once = _at_once(platform, over_positions, positions, classes, devices)
        if over_positions:
            segments = [math.gcd(size, devices) for size in hidden.shape[:-1]]
            lengths = [size // parts for size, parts in zip(hidden.shape[:-1], segments, strict=True)]
            axis = lengths.index(max(lengths))
            parts, length = segments[axis], lengths[axis]
            size = -(-length * at_once // max(logits, 1))
        else:
            axis, parts, length = _CLASSES, 1, classes
            # With many positions, 2 √classes balances a block's logits with the statistics of all blocks.
            size = max(at_once // max(positions, 1), 2 * math.isqrt(classes))
            if logits <= 2 * features * size:
                size = classes  # all logits take less than a block's copy of the kernel, and of its gradient
        if logits <= at_once or size >= length:
            return cls(0, 1, 1, 1, 1)
        size = -(-length // -(-length // size))  # as even as may be
        step = 128 if size >= 256 else 8 if size >= 64 else 1  # the sides of a TPU's register
        size = -(-size // step) * step
        return cls(axis, parts, length, size, -(-length // size))

    def map(self, function: Callable[..., Statistics], arrays: _Arrays) -> Statistics:
        """Returns what the function makes of each block: of all positions, or on a new first axis."""
        if self.number == 1:
            return function(arrays)
        names = _OF_POSITIONS if self.over_positions else _OF_CLASSES
        whole = {name: self._split(arrays[name]) for name in names if name in arrays}

        def of_block(index: jax.Array) -> Statistics:
            start = jnp.minimum(index * self.size, self.length - self.size)
            block = {
                name: lax.dynamic_slice_in_dim(array, start, self.size, self._stretch)
                for name, array in whole.items()
            }
            if self.over_positions:
                return function({**arrays, **block})
            overlap = self.number * self.size > self.length
            return function({**arrays, **block}, start, index * self.size if overlap else None)

        blocks = jnp.arange(self.number, dtype=jnp.int32)
        parts = lax.map(jax.checkpoint(of_block, prevent_cse=False), blocks)
        return jax.tree.map(self._together, parts) if self.over_positions else parts

    @property
    def _stretch(self) -> int:
        """The axis of places in a segment."""
        return self.axis + (self.segments > 1)

    def _split(self, array: jax.Array) -> jax.Array:
        """Returns an array whose axis is one of segments and one of the places in a segment."""
        if self.segments == 1:
            return array
        before, after = array.shape[: self.axis], array.shape[self.axis + 1 :]
        return array.reshape(*before, self.segments, self.length, *after)

    def _together(self, parts: jax.Array) -> jax.Array:
        """Returns numbers of all positions from those of blocks, which the first axis counts."""
        axis, repeated = self._stretch, self.number * self.size - self.length
        first = parts[:-1] if repeated else parts
        first = jnp.moveaxis(first, 0, axis)
        before, after = first.shape[:axis], first.shape[axis + 2 :]
        whole = first.reshape(*before, first.shape[axis] * self.size, *after)
        if repeated:
            rest = lax.slice_in_dim(parts[-1], repeated, self.size, axis=axis)
            whole = jnp.concatenate([whole, rest], axis)
        return whole.reshape(*before[: self.axis], self.segments * self.length, *after)


def _at_once(platform: str, over_positions: bool, positions: int, classes: int, devices: int) -> int:
    """Returns how many logits a block has on each device.

    Times are relative to all logits at once, for 8192 x 4096 x 128256. On a GPU few large products are fast:
    a sixteenth of the logits takes 0.95 on an H100, and a block of the TPU's size 1.2. On a TPU a block fits
    into on-chip memory: 1.29, and 1.7 with a block of the GPU's size. Blocks of positions are larger there,
    since each reads and writes the kernel's gradient. On a CPU a block fits into the cache.
    """
    if platform == "cpu":
        return 2**20
    if platform == "tpu" and not over_positions:
        return min(7 * 2**21, 3072 * positions)
    if platform == "tpu" and devices == 1:
        return max(2**24, 1024 * classes)
    return min(max(positions * classes // devices // 16, 2**23), 2**27)


def _devices(*arrays: jax.Array) -> tuple[Any, int]:
    """Returns the mesh of the arrays, and over how many of its devices the compiler may spread them."""
    shardings: list[Any] = [jax.typeof(array).sharding for array in arrays]
    mesh = max((sharding.mesh for sharding in shardings), key=lambda mesh: mesh.size)
    axes = zip(mesh.axis_names, mesh.axis_types, strict=True)
    return mesh, math.prod(mesh.shape[name] for name, kind in axes if kind == AxisType.Auto)
