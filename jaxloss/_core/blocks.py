"""Output layers over many classes, computed in blocks so that the logits are never all in memory.

A loop computes the logits in blocks: some classes of all positions, or all classes of some positions. All
blocks share one operand, the features or the kernel, whose gradient is read and written once per block. The
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
from jax.tree_util import tree_map_with_path

from jaxloss._core.arguments import (
    arithmetic_dtype,
    broadcastable,
    fill_masked,
    have_sizes,
    on_automatic_axes,
)
from jaxloss._core.classes import ClassAxis, soft_capped
from jaxloss._core.derivatives import scaled

_UNKNOWN = 2**12  # number of positions assumed in a program exported for any number of them


class Layer(NamedTuple):
    """The last layer of a model, and its input.

    logits = position_scale · (class_scale · hidden · kernel + bias), soft-capped if there is a cap.
    """

    hidden: jax.Array  # (..., features), of any floating dtype
    kernel: jax.Array  # (features, classes), of any floating dtype
    bias: jax.Array | None = None
    soft_cap: jax.Array | None = None
    position_scale: jax.Array | None = None  # or one number for all positions
    class_scale: jax.Array | None = None

    def arrays(self, dtype: Any) -> dict[str, jax.Array]:
        """Returns the arrays by name, for arithmetic in a dtype."""
        given = {name: array for name, array in self._asdict().items() if array is not None}
        operands = {name: given.pop(name) for name in ("hidden", "kernel")}
        if not (self.hidden.dtype == self.kernel.dtype == jnp.bfloat16 and dtype == jnp.float32):
            # Only bfloat16 products stay narrow: in float16 the gradient of a mean would underflow.
            operands = {name: array.astype(dtype) for name, array in operands.items()}
        return operands | {name: array.astype(dtype) for name, array in given.items()}


Statistics = dict[str, Any]  # arrays of positions, or tuples of them, by name

# Arrays by name; "layers" is a list of such dictionaries, one for each layer. In an array, the axes of
# positions come first and the class axis last.
Arrays = dict[str, Any]
_OF_POSITIONS = ("hidden", "wide_hidden", "position_scale", "probs", "labels", "valid", "largest")
_OF_CLASSES = ("kernel", "wide_kernel", "class_scale", "bias", "probs", "weight")
_CLASSES = -1  # the axis that is split into blocks of classes


class Summary(NamedTuple):
    """How logits become statistics.

    `of_block(arrays, start, first)` returns the statistics of one block, whose classes begin at `start`; if
    `first` is not None, classes before it do not count. If the arrays have "largest", these are the largest
    logits. `joined(parts, over)` combines the statistics of parts of the classes, which lie along an axis and
    over devices.
    """

    of_block: Callable[..., Statistics]
    joined: Callable[[Statistics, ClassAxis], Statistics]


def summarized(
    summary: Summary, layers: list[Layer], arrays: Arrays, dtype: Any, axis_name: str | None
) -> Statistics:
    """Returns statistics of the logits of every position, computed in blocks.

    Args:
        summary: The statistics to compute.
        layers: The layers that compute the logits, for the same positions and classes.
        arrays: Further arrays that `summary` takes, or None; "valid" is the mask of positions.
        dtype: The arithmetic dtype.
        axis_name: Inside `jax.shard_map`, the mesh axis that shards the classes.
    """
    given: Arrays = {name: array for name, array in arrays.items() if array is not None}
    hidden = layers[0].hidden
    if "valid" in given:
        given["valid"] = jnp.broadcast_to(given["valid"], hidden.shape[:-1])
    given["layers"] = [layer.arrays(dtype) for layer in layers]
    # With automatic axes, the compiler sums a loop's gradients on the devices that hold them. With explicit
    # axes (JAX 0.10 and 0.12), it gathers them first, or their types do not match.
    of_device: Callable[..., Any] = functools.partial(_of_device, summary)
    found = on_automatic_axes(of_device, hidden, *range(hidden.ndim - 1))(given)
    if axis_name is None:
        return found
    return summary.joined(jax.tree.map(lambda part: part[None], found), ClassAxis(0, axis_name))


def _of_device(summary: Summary, arrays: Arrays) -> Statistics:
    """Returns the statistics of the classes that a device holds."""
    layers = arrays["layers"]
    mesh, devices = _devices([layer[name] for layer in layers for name in ("hidden", "kernel")])
    if devices > 1:
        # A kernel whose features are also sharded is gathered once, not once per block: on 256 TPU chips this
        # takes 1.3 times the cycles of all logits at once; the compiler's own choice takes 2.3 times.
        gathered = NamedSharding(mesh, PartitionSpec(None, PartitionSpec.UNCONSTRAINED))
        kernels = [lax.with_sharding_constraint(layer["kernel"], gathered) for layer in layers]
        pairs = zip(layers, kernels, strict=True)
        arrays = {**arrays, "layers": [{**layer, "kernel": kernel} for layer, kernel in pairs]}
    plans = {name: _Blocks.of(layers, devices, name) for name in ("cpu", "tpu", "gpu")}
    if len(set(plans.values())) == 1:
        return _in_blocks(summary, plans["cpu"], arrays)
    cpu, tpu, gpu = (functools.partial(_in_blocks, summary, plan) for plan in plans.values())
    return lax.platform_dependent(arrays, cpu=cpu, tpu=tpu, default=gpu)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _in_blocks(summary: Summary, blocks: "_Blocks", arrays: Arrays) -> Statistics:
    parts = _parts(summary, blocks, arrays)
    return parts if blocks.over_positions else summary.joined(parts, ClassAxis(0, None))


@_in_blocks.defjvp
def _in_blocks_jvp(
    summary: Summary, blocks: "_Blocks", primals: tuple[Arrays], tangents: tuple[Arrays]
) -> tuple[Statistics, Statistics]:
    """Differentiates the sums with `largest` given, which avoids computing the maximum again."""
    found = _in_blocks(summary, blocks, *primals)

    def sums(arrays: Arrays) -> Statistics:
        parts = _parts(summary, blocks, {**arrays, "largest": found["largest"]})
        return parts if blocks.over_positions else jax.tree.map(lambda part: jnp.sum(part, 0), parts)

    _, tangent = jax.jvp(sums, primals, tangents)
    return found, tangent | {"largest": jax.tree.map(jnp.zeros_like, found["largest"])}


def _parts(summary: Summary, blocks: "_Blocks", arrays: Arrays) -> Statistics:
    """Returns the statistics of all blocks.

    Gradients flow to the arrays named "wide_...". The operand that all blocks share has the arithmetic dtype,
    in which its gradient accumulates. The wide features are unmasked, so that each block masks its own
    gradient; masking the gradient of 65,536 x 4096 features at once took 3 % of the time on a TPU.
    """
    shared = "kernel" if blocks.over_positions else "hidden"

    def with_wide(layer: Arrays) -> Arrays:
        wide = {name: layer[name] for name in ("hidden", "kernel")}
        if blocks.number > 1:
            wide[shared] = wide[shared].astype(arithmetic_dtype(wide[shared]))
        narrow = {"hidden": masked(arrays, layer["hidden"])}
        return {**layer, **narrow, **{f"wide_{name}": array for name, array in wide.items()}}

    return blocks.map(
        summary.of_block, {**arrays, "layers": [with_wide(layer) for layer in arrays["layers"]]}
    )


def masked(arrays: Arrays, array: jax.Array) -> jax.Array:
    """Returns features or probabilities with 0 at masked positions."""
    valid = jnp.expand_dims(arrays["valid"], -1) if "valid" in arrays else None
    return fill_masked(valid, array)


def logits_of(arrays: Arrays, index: int = 0) -> jax.Array:
    """Returns the logits of a layer in a block."""
    layer = arrays["layers"][index]
    wide = masked(arrays, layer["wide_hidden"]), layer["wide_kernel"]
    logits = product(layer["hidden"], layer["kernel"], *wide)
    if "class_scale" in layer:
        logits = logits * broadcastable("class_scale", layer["class_scale"], logits)
    if "bias" in layer:
        logits = logits + broadcastable("bias", layer["bias"], logits)
    if "position_scale" in layer:
        scale = broadcastable("position_scale", layer["position_scale"], logits, [logits.ndim - 1])
        logits = scaled(jnp.expand_dims(scale, -1), logits)
    return soft_capped(logits, layer.get("soft_cap"))


@jax.custom_jvp
def product(
    hidden: jax.Array, kernel: jax.Array, wide_hidden: jax.Array, wide_kernel: jax.Array
) -> jax.Array:
    """Returns hidden · kernel, in float32 or wider; gradients flow to the wide arguments.

    The gradient of the logits is rounded once, to the dtype of the operands. JAX's own rule would multiply
    float32 by bfloat16 in float32, which takes 1.5 times as long on an H100.
    """
    return jnp.dot(hidden, kernel, preferred_element_type=arithmetic_dtype(hidden))


@product.defjvp
def _product_jvp(primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[jax.Array, jax.Array]:
    hidden, kernel, *_ = primals
    logits = product(*primals)
    hidden_dot, kernel_dot = (tangent.astype(hidden.dtype) for tangent in tangents[2:])
    of_hidden, of_kernel = jnp.dot(hidden_dot, kernel), jnp.dot(hidden, kernel_dot)
    return logits, of_hidden.astype(logits.dtype) + of_kernel.astype(logits.dtype)


class _Blocks(NamedTuple):
    """How positions or classes are divided into blocks of equal size.

    A block takes a slice of each segment. Each segment lies on one device, however a mesh shards the
    positions, so no block needs positions of another device. The last block starts early enough to have the
    same size; elements that it shares with the block before do not count.
    """

    axis: int  # of the positions, or _CLASSES
    segments: int
    length: int  # of a segment
    size: int  # of a block's slice of each segment
    number: int

    @property
    def over_positions(self) -> bool:
        return self.axis != _CLASSES

    @classmethod
    def of(cls, layers: list[Arrays], devices: int, platform: str) -> "_Blocks":
        hidden, kernel = (layers[0][name] for name in ("hidden", "kernel"))
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
                size = classes  # all logits take less than a block's copies of the kernel and its gradient
        if logits <= at_once or size >= length:
            return cls(0, 1, 1, 1, 1)
        size = -(-length // -(-length // size))  # as even as possible
        step = 128 if size >= 256 else 8 if size >= 64 else 1  # a TPU register has 8 x 128 numbers
        size = -(-size // step) * step
        return cls(axis, parts, length, size, -(-length // size))

    def map(self, function: Callable[..., Statistics], arrays: Arrays) -> Statistics:
        """Applies a function to every block; results cover all positions, or stack the blocks of classes."""
        if self.number == 1:
            return function(arrays)
        names = _OF_POSITIONS if self.over_positions else _OF_CLASSES

        def cut(function: Callable[[jax.Array], jax.Array], arrays: Arrays) -> Arrays:
            def of_array(path: Any, array: jax.Array) -> jax.Array:
                is_named = any(getattr(key, "key", None) in names for key in path)
                return function(array) if is_named and array.ndim else array

            return tree_map_with_path(of_array, arrays)

        whole = cut(self._split, arrays)

        def of_block(index: jax.Array) -> Statistics:
            start = jnp.minimum(index * self.size, self.length - self.size)

            def sliced(array: jax.Array) -> jax.Array:
                return lax.dynamic_slice_in_dim(array, start, self.size, self._slice_axis)

            block = cut(sliced, whole)
            if self.over_positions:
                return function(block)
            overlap = self.number * self.size > self.length
            return function(block, start, index * self.size if overlap else None)

        blocks = jnp.arange(self.number, dtype=jnp.int32)
        parts = lax.map(jax.checkpoint(of_block, prevent_cse=False), blocks)
        return jax.tree.map(self._together, parts) if self.over_positions else parts

    @property
    def _slice_axis(self) -> int:
        """The axis of the indices within a segment."""
        return self.axis + (self.segments > 1)

    def _split(self, array: jax.Array) -> jax.Array:
        """Splits the axis into one of segments and one of the indices within a segment."""
        if self.segments == 1:
            return array
        before, after = array.shape[: self.axis], array.shape[self.axis + 1 :]
        return array.reshape(*before, self.segments, self.length, *after)

    def _together(self, parts: jax.Array) -> jax.Array:
        """Concatenates the results of blocks, which are stacked along the first axis."""
        axis, repeated = self._slice_axis, self.number * self.size - self.length
        first = parts[:-1] if repeated else parts
        first = jnp.moveaxis(first, 0, axis)
        before, after = first.shape[:axis], first.shape[axis + 2 :]
        whole = first.reshape(*before, first.shape[axis] * self.size, *after)
        if repeated:
            last = lax.slice_in_dim(parts[-1], repeated, self.size, axis=axis)
            whole = jnp.concatenate([whole, last], axis)
        return whole.reshape(*before[: self.axis], self.segments * self.length, *after)


def _at_once(platform: str, over_positions: bool, positions: int, classes: int, devices: int) -> int:
    """Returns the number of logits in a block on each device.

    Times are relative to all logits at once, for 8192 x 4096 x 128256. A GPU is fast with few large products:
    blocks of a sixteenth of the logits take 0.95 on an H100, blocks of the TPU's size 1.2. On a TPU, a block
    fits into on-chip memory: 1.29, compared to 1.7 with blocks of the GPU's size. Blocks of positions are
    larger there, since each one reads and writes the kernel's gradient. On a CPU, it fits into the cache.
    """
    if platform == "cpu":
        return 2**20
    if platform == "tpu" and not over_positions:
        return min(7 * 2**21, 3072 * positions)
    if platform == "tpu" and devices == 1:
        return max(2**24, 1024 * classes)
    return min(max(positions * classes // devices // 16, 2**23), 2**27)


def _devices(arrays: list[jax.Array]) -> tuple[Any, int]:
    """Returns the mesh of the arrays, and the number of devices over which the compiler may shard them."""
    shardings: list[Any] = [jax.typeof(array).sharding for array in arrays]
    mesh = max((sharding.mesh for sharding in shardings), key=lambda mesh: mesh.size)
    axes = zip(mesh.axis_names, mesh.axis_types, strict=True)
    return mesh, math.prod(mesh.shape[name] for name, kind in axes if kind == AxisType.Auto)
