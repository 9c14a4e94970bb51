"""Every entry of the catalogue on eight devices: a program that `test_sharding` runs in a process of its own.

It prints a line for each answer that differs from that of one device, and for each gather of split classes,
then "checked N layouts".
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from tests.catalogue import CASES, Case

BATCH, CLASSES = "batch", "classes"


def main() -> None:
    """Compares every entry, in every layout that fits it, with its answer on one device."""
    checked = 0
    for kind in (AxisType.Auto, AxisType.Explicit):
        mesh = jax.make_mesh((4, 2), (BATCH, CLASSES), axis_types=(kind, kind))
        probe = jax.device_put(jnp.zeros((4, 6)), NamedSharding(mesh, P(BATCH, CLASSES)))
        if not gathers(jax.jit(lambda x: x + 1, out_shardings=NamedSharding(mesh, P())), probe):
            print("the reader of compiled programs does not see an all-gather")
        for case in CASES:
            for split in (False, True) if splits(case) else (False,):
                compare(
                    case, mesh, split, f"{case.name}, {kind.name}, {'classes' if split else 'batch'} split"
                )
                checked += 1
    print("checked", checked, "layouts")


def compare(case: Case, mesh: Mesh, split: bool, label: str) -> None:
    """Prints what differs between one device and the mesh."""
    arrays = {
        name: jnp.concatenate([array] * 4, case.batch_axis(name)) if name in case.batched else array
        for name, array in case.inputs(jnp.float32).items()
    }
    specs = {name: spec(case, name, array.ndim, split) for name, array in arrays.items()}
    placed = {name: jax.device_put(array, NamedSharding(mesh, specs[name])) for name, array in arrays.items()}
    expected = case.answer(arrays)
    answers = {"jit": case.answer}
    if split:
        answers["shard_map"] = per_shard(case, mesh, specs)
    for way, answer in answers.items():
        for name, value in answer(placed).items():
            if not np.allclose(value, expected[name], rtol=1e-5, atol=1e-7, equal_nan=True):
                print(f"{label}, {way}: {name} is {value}, on one device {expected[name]}")
        if split and gathers(jax.jit(answer), placed):
            print(f"{label}, {way}: gathers the classes")


def per_shard(case: Case, mesh: Mesh, specs: dict[str, P]) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Returns the mean and its gradients, computed shard by shard and added up."""

    def mean_of_shards(arrays: dict[str, Any]) -> jax.Array:
        pair = case(arrays, reduction="sum_and_weight", axis_name=CLASSES)
        total, weight = jax.lax.psum(pair, BATCH)
        return total / weight

    mean = jax.shard_map(mean_of_shards, mesh=mesh, in_specs=(specs,), out_specs=P())

    def answer(arrays: dict[str, Any]) -> dict[str, Any]:
        moved = {name: arrays[name] for name in case.gradients}
        value, gradients = jax.value_and_grad(lambda moved: mean({**arrays, **moved}))(moved)
        return {"value": value, **gradients}

    return jax.jit(answer)


def splits(case: Case) -> bool:
    """Whether the class axis divides by the mesh."""
    return case.axis is not None and next(iter(case.arrays.values())).shape[case.axis] % 2 == 0


def spec(case: Case, name: str, ndim: int, split: bool) -> P:
    """Returns how an argument lies on the mesh."""
    axes: list[str | None] = [None] * ndim
    if name in case.batched:
        axes[case.batch_axis(name)] = BATCH
    if split and case.is_per_class(name):
        axes[0] = CLASSES
    elif split and ndim == next(iter(case.arrays.values())).ndim:
        axes[case.axis] = CLASSES
    return P(*axes)


def gathers(compiled: Any, argument: Any) -> bool:
    """Whether a jitted function collects what is split."""
    return "all-gather" in compiled.lower(argument).compile().as_text()


if __name__ == "__main__":
    main()
