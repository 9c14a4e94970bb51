"""Checks class-sharded losses in two processes; `sharded_training` calls it when it runs in two.

The batch, the classes or the sums of the losses are sharded over the processes, and must give the values and
gradients of one device.
"""

import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental.multihost_utils import process_allgather
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxloss import cross_entropy, linear_cross_entropy
from jaxloss._core import blocks

Arrays = dict[str, Any]

BATCH, CLASSES = "batch", "classes"
SPECS = {
    "hidden": P(BATCH, None),
    "kernel": P(None, CLASSES),
    "bias": P(CLASSES),
    "weight": P(CLASSES),
    "z_loss": P(),
    "logits": P(BATCH, CLASSES),
    "targets": P(BATCH),
}


def draw() -> Arrays:
    """Returns logits, and features with a last layer, of 16 positions; most of the first 8 are ignored."""
    random = np.random.default_rng(0)
    shapes = {"hidden": (16, 6), "kernel": (6, 40), "bias": (40,), "logits": (16, 40)}
    arrays = {name: random.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    arrays["weight"] = random.uniform(0.5, 2.0, 40).astype(np.float32)
    arrays["z_loss"] = np.array(1e-3, np.float32)
    positions = np.arange(16)
    ignored = (positions < 8) & (positions % 4 > 0)
    return {**arrays, "targets": np.where(ignored, -100, random.integers(40, size=16)).astype(np.int32)}


def losses(arrays: Arrays, **options: Any) -> dict[str, Any]:
    """Returns both losses, by name."""
    linear = {name: array for name, array in arrays.items() if name != "logits"}
    return {
        "cross_entropy": cross_entropy(
            arrays["logits"], arrays["targets"], weight=arrays["weight"], z_loss=arrays["z_loss"], **options
        ),
        "linear_cross_entropy": linear_cross_entropy(**linear, **options),
    }


def per_shard(arrays: Arrays) -> dict[str, jax.Array]:
    """Returns the means inside `shard_map`, from (sum, weight) pairs added up over the batch."""
    pairs = jax.lax.psum(losses(arrays, axis_name=CLASSES, reduction="sum_and_weight"), BATCH)
    return {name: total / weight for name, (total, weight) in pairs.items()}


@functools.partial(jax.jit, static_argnums=0)
def means(compute: Any, arrays: Arrays) -> tuple[Any, Any]:
    """Returns the means and the gradient of their sum; the two losses share no logits."""

    def objective(moved: Arrays) -> tuple[jax.Array, Any]:
        found = compute({**arrays, **moved})
        return sum(found.values()), found

    moved = {name: array for name, array in arrays.items() if name != "targets"}
    gradients, found = jax.grad(objective, has_aux=True)(moved)
    return found, gradients


@jax.jit
def sums(arrays: Arrays) -> tuple[Any, Any]:
    """Returns the (sum, weight) pairs, and the gradient of the sum in the last layer."""

    def objective(layer: Arrays) -> tuple[jax.Array, Any]:
        pairs = losses({**arrays, **layer}, reduction="sum_and_weight")
        return pairs["linear_cross_entropy"][0], pairs

    gradients, pairs = jax.grad(objective, has_aux=True)({name: arrays[name] for name in ("kernel", "bias")})
    return pairs, gradients


def check_losses() -> Iterator[str]:
    """Yields a message where two processes give other losses or gradients than one device."""
    blocks._at_once = lambda *_: 8  # small blocks, so that few classes span several of them
    arrays = draw()
    expected = jax.device_get(means(losses, arrays))
    # Devices 0 to 3 belong to the first process, so that both mesh axes span both processes.
    crossed = np.array(jax.devices())[[[0, 4], [1, 5], [6, 2], [7, 3]]]
    for kind in (AxisType.Auto, AxisType.Explicit):
        mesh = Mesh(crossed, (BATCH, CLASSES), axis_types=(kind, kind))
        placed = {name: place(array, NamedSharding(mesh, SPECS[name])) for name, array in arrays.items()}
        yield from check_program(f"{kind.name} axes", losses, placed, expected)
    # In `shard_map` the type of the axes does not matter.
    mapped = jax.shard_map(per_shard, mesh=mesh, in_specs=(SPECS,), out_specs=P())
    yield from check_program("shard_map", mapped, placed, expected)

    # Each process computes the losses of its own positions; the first has more than the second.
    rows = [slice(0, 11), slice(11, 16)][jax.process_index()]
    mine = {name: array[rows] if BATCH in SPECS[name] else array for name, array in arrays.items()}
    pairs, gradients = jax.tree.map(lambda array: array.sum(0), process_allgather(sums(mine)))
    found = {name: total / weight for name, (total, weight) in pairs.items()}
    weight = pairs["linear_cross_entropy"][1]
    gradients = {name: gradient / weight for name, gradient in gradients.items()}
    whole = expected[0], {name: expected[1][name] for name in gradients}
    yield from compare("pairs of both processes", (found, gradients), whole)


def check_program(label: str, compute: Any, placed: Arrays, expected: Any) -> Iterator[str]:
    """Yields a message where a program of both processes differs from one device or has an all-gather."""
    program = means.lower(compute, placed).compile()
    if "all-gather" in program.as_text():
        yield f"{label}: gathers the batch or the classes"
    yield from compare(label, program(placed), expected)


def place(array: np.ndarray, sharding: NamedSharding) -> jax.Array:
    """Shards an array that every process holds over the devices of all processes."""
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


def compare(label: str, found: Any, expected: Any) -> Iterator[str]:
    """Yields a message for each difference in this process's shards."""
    for (path, array), whole in zip(
        jax.tree_util.tree_leaves_with_path(found), jax.tree.leaves(expected), strict=True
    ):
        # Sums may cancel, and sharding changes their order.
        rounding = max(1e-7, 8 * float(jnp.finfo(jnp.float32).eps) * np.max(np.abs(whole)))
        for shard in jnp.asarray(array).addressable_shards:
            part = whole[shard.index]
            if not np.allclose(shard.data, part, rtol=1e-5, atol=rounding):
                yield f"{label}: {jax.tree_util.keystr(path)} is {shard.data}, on one device {part}"
