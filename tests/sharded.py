"""Runs the catalogue on eight devices; `test_sharding` starts this program in a subprocess.

`python -m tests.sharded Auto` (or `Explicit`) chooses the type of the mesh axes.

It prints a line for each answer that differs from one device and for each all-gather of sharded classes,
then "checked N shardings".
"""

import inspect
import re
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

import jaxloss
from jaxloss import adaptive_log_probs, cosine_similarity, init_adaptive_log_softmax
from jaxloss._core import blocks, pairs
from tests.catalogue import KINDS, Case

BATCH, CLASSES = "batch", "classes"
# Small blocks, so that few classes and rows span several of them.
blocks._at_once = lambda *_: 1
pairs._at_once = lambda *_: 4


def main() -> None:
    """Compares every kind of entry, in every sharding that applies, with its answer on one device."""
    kind, checked = AxisType[sys.argv[1]], 0
    mesh = jax.make_mesh((4, 2), (BATCH, CLASSES), axis_types=(kind, kind))
    probe = jax.device_put(jnp.zeros((4, 6)), NamedSharding(mesh, P(BATCH, CLASSES)))
    collect = jax.jit(lambda x: x + 1, out_shardings=NamedSharding(mesh, P()))
    if not gathers(collect.lower(probe).compile()):
        print("`gathers` does not detect an all-gather")
    # With Auto axes the compiler does the work, so one entry per loss is enough.
    first = {case.loss: case.name for case in reversed(KINDS)}
    for case in KINDS:
        for split in (False, True) if has_divisible_classes(case) else (False,):
            if split or kind == AxisType.Explicit or case.name == first[case.loss]:
                compare(case, mesh, split, f"{case.name}, {'classes' if split else 'batch'} split")
                checked += 1
        may_split_rows = case.relates_rows and case.loss != "cox_loss"
        if may_split_rows:
            compare_rows(case, mesh)
            checked += 1
        if may_split_rows and case.name == first[case.loss] and kind == AxisType.Auto:
            compare_unchecked(case, mesh)
            checked += 1
        if case.name == first[case.loss] and case.batched:
            for alone in case.batched[:1], case.batched[-1:]:
                compare(case, mesh, False, f"{case.name}, {alone[0]} alone split", alone)
                checked += 1
    compare_with_replicated(mesh)
    check_bias(mesh)
    print("checked", checked, "shardings")


def compare(case: Case, mesh: Mesh, split: bool, label: str, alone: tuple[str, ...] | None = None) -> None:
    """Prints differences between one device and the mesh; `alone` names the only sharded arguments."""
    arrays = case.repeated(case.inputs(jnp.float32), 4)
    specs = {
        name: spec(case, name, array.ndim, split) if alone is None or name in alone else P()
        for name, array in arrays.items()
    }
    placed = {name: jax.device_put(array, NamedSharding(mesh, specs[name])) for name, array in arrays.items()}
    expected = case.answer(arrays)
    answers = {"jit": case.answer}
    if split and "axis_name" in inspect.signature(getattr(jaxloss, case.loss)).parameters:
        answers["shard_map"] = per_shard(case, mesh, specs)
    for way, answer in answers.items():
        compiled = jax.jit(answer).lower(placed).compile()
        for name, value in compiled(placed).items():
            if not np.allclose(value, expected[name], rtol=1e-5, atol=1e-7, equal_nan=True):
                print(f"{label}, {way}: {name} is {value}, on one device {expected[name]}")
        # The transducer gathers its per-device sums over classes, but never its logits.
        size = case.arrays["logits"].shape[-1] if case.loss == "rnnt_loss" else None
        if split and gathers(compiled, size):
            print(f"{label}, {way}: gathers the classes")


def per_shard(case: Case, mesh: Mesh, specs: dict[str, P]) -> Callable[[dict[str, Any]], dict[str, Any]]:
    """Returns a function for the mean and its gradients, which sums `shard_map` results over the batch."""

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


def compare_rows(case: Case, mesh: Mesh) -> None:
    """Prints differences where rows are sharded in `shard_map`: mean of all rows, gradients of local ones."""
    arrays = case.repeated(case.inputs(jnp.float32), 4)
    specs = {name: spec(case, name, array.ndim, False) for name, array in arrays.items()}
    where = np.arange(case.shape(arrays)[0]) % 3 > 0

    def answer(arrays: dict[str, Any], where: jax.Array) -> dict[str, Any]:
        moved = {name: arrays[name] for name in case.gradients}

        def mean(moved: dict[str, Any]) -> jax.Array:
            return case({**arrays, **moved}, where=where, axis_name=BATCH)

        value, gradients = jax.value_and_grad(mean)(moved)
        if case.is_batch_loss:
            return {"value": value, **gradients}
        pair = case(arrays, where=where, reduction="sum_and_weight", axis_name=BATCH)
        return {"value": value, **gradients, "pair": jax.lax.psum(pair, BATCH)}

    out = {"value": P(), **{name: specs[name] for name in case.gradients}}
    out |= {} if case.is_batch_loss else {"pair": P()}
    sharded = jax.shard_map(answer, mesh=mesh, in_specs=(specs, P(BATCH)), out_specs=out)
    split = jax.tree.map(lambda spec: NamedSharding(mesh, spec), (specs, P(BATCH)))
    found = jax.jit(sharded)(*jax.device_put((arrays, where), split))
    expected = case.answer(arrays, where=where)
    expected["pair"] = case(arrays, where=where, reduction="sum_and_weight")
    for name, value in found.items():
        if not np.allclose(value, expected[name], rtol=1e-5, atol=1e-7):
            print(f"{case.name}, rows in shard_map: {name} is {value}, on one device {expected[name]}")


def compare_unchecked(case: Case, mesh: Mesh) -> None:
    """Prints differences in `shard_map` with `check_vma=False`.

    Gradients are taken outside: inside, JAX multiplies the gradient of a psum by the number of devices.
    """
    arrays = case.repeated(case.inputs(jnp.float32), 4)
    specs = {name: spec(case, name, array.ndim, False) for name, array in arrays.items()}
    mean = jax.shard_map(
        lambda arrays: case(arrays, axis_name=BATCH),
        mesh=mesh,
        in_specs=(specs,),
        out_specs=P(),
        check_vma=False,
    )
    moved = {name: arrays[name] for name in case.gradients}
    value, gradients = jax.jit(jax.value_and_grad(lambda moved: mean({**arrays, **moved})))(moved)
    expected = case.answer(arrays)
    for name, found in {"value": value, **gradients}.items():
        if not np.allclose(found, expected[name], rtol=1e-5, atol=1e-7):
            print(f"{case.name}, unchecked: {name} is {found}, on one device {expected[name]}")


def compare_with_replicated(mesh: Mesh) -> None:
    """Prints differences where each shard compares its vectors with the same replicated ones."""
    few, many = jnp.cos(jnp.arange(6.0)).reshape(2, 3), jnp.sin(jnp.arange(24.0)).reshape(8, 3)

    def total(few: jax.Array, many: jax.Array) -> jax.Array:
        return jnp.sum(cosine_similarity(few, many))

    specs = P(), P(BATCH)
    sharded = jax.shard_map(
        lambda few, many: jax.lax.psum(total(few, many), BATCH), mesh=mesh, in_specs=specs, out_specs=P()
    )
    placed = [
        jax.device_put(array, NamedSharding(mesh, spec))
        for array, spec in zip((few, many), specs, strict=True)
    ]
    found = jax.jit(jax.value_and_grad(sharded, (0, 1)))(*placed)
    expected = jax.value_and_grad(lambda few, many: total(jnp.tile(few, (4, 1)), many), (0, 1))(few, many)
    if not all(jax.tree.leaves(jax.tree.map(lambda a, b: np.allclose(a, b, atol=1e-6), found, expected))):
        print(f"vectors compared with replicated ones: {found}, on one device {expected}")


def check_bias(mesh: Mesh) -> None:
    """Prints a line if the gradient of a replicated bias gathers the positions."""
    params = init_adaptive_log_softmax(jax.random.key(0), 8, 8, (4,), head_bias=True)
    params = jax.device_put(params, NamedSharding(mesh, P()))
    hidden = jax.device_put(jnp.ones((8, 8)), NamedSharding(mesh, P(BATCH)))
    gradient = jax.jit(
        jax.grad(lambda params: jnp.sum(adaptive_log_probs(hidden, params, cutoffs=(4,)) ** 2))
    )
    if gathers(gradient.lower(params).compile()):
        print("adaptive_log_probs: gathers the positions")


def has_divisible_classes(case: Case) -> bool:
    """Whether the loss has a class axis whose size the mesh divides."""
    if case.has_layer:
        return case.arrays["kernel"].shape[1] % 2 == 0
    axis = class_axis(case)
    return axis is not None and next(iter(case.arrays.values())).shape[axis] % 2 == 0


def class_axis(case: Case) -> int | None:
    """Returns the class axis; rnnt_loss has one without an `axis` option."""
    return 3 if case.loss == "rnnt_loss" else case.axis


def spec(case: Case, name: str, ndim: int, split: bool) -> P:
    """Returns the PartitionSpec of an argument."""
    axes: list[str | None] = [None] * ndim
    first = next(iter(case.arrays.values()))
    if name in case.batched:
        axes[case.batch_axis(name)] = BATCH
    if split and case.is_per_class(name):
        axes[-1] = CLASSES
    elif split and (axis := class_axis(case)) is not None and ndim == first.ndim:
        axes[axis] = CLASSES
    elif split and name == "targets" and case.arrays[name].dtype.kind == "f":  # probabilities
        axes[-1] = CLASSES
    return P(*axes)


def gathers(compiled: Any, size: int | None = None) -> bool:
    """Whether a compiled function has an all-gather (of an array with an axis of that size)."""
    results = re.findall(r"= (.*?) all-gather[\w-]*\(", compiled.as_text())
    shapes = (",".join(re.findall(r"\[([\d,]*)\]", result)) for result in results)
    return any(size is None or str(size) in shape.split(",") for shape in shapes)


if __name__ == "__main__":
    main()
