"""Trains on eight devices; `test_placement` runs this program in one process of eight and two of four.

It fails with a line for each configuration that trains differently from one device or has unexpected
collectives.
"""

import functools
import re
import sys
import tempfile
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import AxisType, Mesh
from jax.sharding import PartitionSpec as P

from jaxloss import cross_entropy
from jaxloss.models import Classifier
from jaxloss.training import (
    Checkpoints,
    TrainState,
    create_train_state,
    evaluate,
    gradient_norm,
    shard_batch,
    shard_train_state,
    train_epoch,
    train_step,
)
from tests.sharded_losses import check_losses

SIZES = (16, 64, 8)
STEPS = 3
OPTIMIZER = optax.chain(optax.clip_by_global_norm(1.0), optax.adam(0.01))
INPUTS = np.random.RandomState(0).normal(size=(64, 16)).astype(np.float32)
# Three of every eight labels are ignored, so that the two micro-batches have different weights.
LABELS = np.where(np.arange(64) % 8 < 5, np.random.RandomState(1).randint(8, size=64), -100)
PAIR = functools.partial(cross_entropy, reduction="sum_and_weight")
METRICS = {"pair": PAIR, "norm": gradient_norm}
ALL_REDUCE = {"all-reduce"}
ALL_GATHER_AND_REDUCE = {"all-gather", "all-reduce"}
COLLECTIVES = r"\b(all-[a-z-]+|reduce-scatter|collective-[a-z-]+|ragged-[a-z-]+)\("


class Noisy(nnx.Module):
    """A model with dropout, and batch statistics over all devices."""

    def __init__(self, *, rngs: nnx.Rngs):
        self.body = Classifier(*SIZES, rngs=rngs)
        self.norm = nnx.BatchNorm(SIZES[0], rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, inputs: jax.Array) -> jax.Array:
        return self.body(self.dropout(self.norm(inputs)))


def classifier() -> TrainState:
    return create_train_state(Classifier(*SIZES, rngs=nnx.Rngs(0)), OPTIMIZER)


def noisy() -> TrainState:
    return create_train_state(Noisy(rngs=nnx.Rngs(0)), OPTIMIZER)


def by_layer(path: str, _: jax.Array) -> P:
    """Shards the hidden features over the axis "model"."""
    split = {"hidden/kernel": P(None, "model"), "hidden/bias": P("model"), "output/kernel": P("model", None)}
    return split.get(path, P())


def by_class(path: str, _: jax.Array) -> P:
    """Shards the classes over the axis "model"."""
    return {"output/kernel": P(None, "model"), "output/bias": P("model")}.get(path, P())


Configuration = tuple[Callable[[], TrainState], Mesh, Any, int, set[str]]


def configurations() -> list[Configuration]:
    """Returns the configurations to compare: model, mesh, split, micro-batches, and expected collectives."""
    found: list[Configuration] = []
    for kind in (AxisType.Auto, AxisType.Explicit):
        mesh_1d = jax.make_mesh((8,), ("data",), axis_types=(kind,))
        mesh_2d = jax.make_mesh((4, 2), ("data", "model"), axis_types=(kind, kind))
        found += [
            (classifier, mesh_1d, None, 1, ALL_REDUCE),
            (classifier, mesh_1d, "data", 1, ALL_GATHER_AND_REDUCE),
            (classifier, mesh_1d, "data", 2, ALL_GATHER_AND_REDUCE),
            (classifier, mesh_2d, by_layer if kind is AxisType.Auto else by_class, 1, ALL_REDUCE),
        ]
    # Batch statistics and dropout masks are those of the whole batch, however it is sharded.
    return [*found, (noisy, found[0][1], None, 1, ALL_REDUCE)]


def compare(
    make: Callable[[], TrainState], mesh: Mesh, split: Any, micro_batches: int, collectives: set[str]
) -> Iterator[str]:
    """Yields a message for each difference between a configuration and one device."""
    kind = mesh.axis_types[0].name
    label = f"{make.__name__}, {kind}, {getattr(split, '__name__', split)}, {micro_batches} micro-batches"
    state = shard_train_state(make(), mesh, split)
    before = jax.tree.map(lambda array: array.sharding, state)
    batch = shard_batch((INPUTS, LABELS), mesh, "data")
    loss = cross_entropy if micro_batches == 1 else PAIR
    step = (
        jax.jit(functools.partial(train_step, loss=loss, micro_batches=micro_batches, metrics=METRICS))
        .lower(state, *batch)
        .compile()
    )
    if (found := set(re.findall(COLLECTIVES, step.as_text()))) != collectives:
        yield f"{label}: has {found}, not {collectives}"
    found = []
    for _ in range(STEPS):
        state, value, measured = step(state, *batch)
        found.append([value, *measured.values()])
    if not np.allclose(jax.device_get(found), one_device(make), rtol=1e-5):
        yield f"{label}: losses and metrics are {found}, on one device {one_device(make)}"
    stays = jax.tree.map(lambda array, old: array.sharding.is_equivalent_to(old, array.ndim), state, before)
    if not all(jax.tree.leaves(stays)):
        yield f"{label}: the step moves arrays, {stays}"


@functools.cache
def one_device(make: Callable[[], TrainState]) -> np.ndarray:
    """Returns the expected losses and metrics."""
    state, found = make(), []
    for _ in range(STEPS):
        state, value, measured = train_step(state, INPUTS, LABELS, loss=cross_entropy, metrics=METRICS)
        found.append([value, *measured.values()])
    return np.array(found)


def check_sizes(mesh: Mesh) -> Iterator[str]:
    """Checks the shard sizes of parameters and optimizer state: an eighth, where the mesh divides them."""
    kept = optax.chain(optax.scale_by_adam(), optax.scale_by_lbfgs(memory_size=3))
    state = create_train_state(Classifier(*SIZES, rngs=nnx.Rngs(0)), kept)
    state = shard_train_state(shard_train_state(state, mesh), mesh, "data")  # also shard it again
    sizes = {"hidden": {"kernel": (16, 8), "bias": (8,)}, "output": {"kernel": (8, 8), "bias": (1,)}}
    longer = jax.tree.map(lambda size: (3, *size), sizes, is_leaf=lambda size: isinstance(size, tuple))
    adam, lbfgs = state.opt_state
    for tree, expected in (
        (state.params, sizes),
        (adam.mu, sizes),
        (adam.nu, sizes),
        (lbfgs.updates, sizes),
        (lbfgs.diff_params_memory, longer),
        (adam.count, ()),
        (state.step, ()),
    ):
        shapes = jax.tree.map(lambda array: array.addressable_shards[0].data.shape, tree)
        if shapes != expected:
            yield f"each device holds {shapes}, not {expected}"
    lone = create_train_state((jnp.multiply, jnp.ones(16)), optax.adam(0.1))
    if (spec := shard_train_state(lone, mesh, "data").opt_state[0].mu.sharding.spec) != P("data"):
        yield f"the optimizer state of a single parameter has the sharding {spec}"


def check_copies(mesh: Mesh) -> Iterator[str]:
    """Checks that a step does not donate arrays of the state from which its own was placed on the mesh."""
    batch = shard_batch((INPUTS, LABELS), mesh, "data")
    # A state that is sharded over processes cannot be placed again.
    for first in (None, "data") if jax.process_count() == 1 else (None,):
        given = noisy()
        placed = shard_train_state(given, mesh, first)
        for second in (None, "data"):
            again = shard_train_state(placed, mesh, second)
            jax.block_until_ready(train_step(again, *batch, loss=cross_entropy))
            if any(array.is_deleted() for array in jax.tree.leaves(placed)):
                yield f"a step donates a state placed with {first} and then {second}"
        jax.block_until_ready(train_step(placed, *batch, loss=cross_entropy))
        if any(array.is_deleted() for array in jax.tree.leaves(given)):
            yield f"a step donates the state that was placed with {first}"


def check_checkpoint(mesh: Mesh, folder: str) -> Iterator[str]:
    """Checks that a checkpoint saved on the mesh can be restored to the mesh and to one device."""
    new = noisy()
    state = shard_train_state(new, mesh, "data")
    empty = jax.tree.map(jnp.zeros_like, new)
    with Checkpoints(folder) as checkpoints:
        checkpoints.save(state)
    with Checkpoints(folder) as checkpoints:
        restored = checkpoints.restore(shard_train_state(empty, mesh, "data"))
        whole = checkpoints.restore(empty) if jax.process_count() == 1 else new
    for there, here in ((restored, state), (whole, new)):
        for array, expected in zip(jax.tree.leaves(there), jax.tree.leaves(here), strict=True):
            same = map(np.array_equal, parts(array), parts(expected))
            if not all(same) or array.sharding != expected.sharding:
                yield f"{expected} came back as {array}"


def parts(array: jax.Array) -> list[np.ndarray]:
    """Returns the shards of this process as NumPy arrays; of a typed key, its bits."""
    if jnp.issubdtype(array.dtype, jax.dtypes.prng_key):
        array = jax.random.key_data(array)
    return [np.asarray(shard.data) for shard in array.addressable_shards]


def check_epochs(mesh: Mesh) -> Iterator[str]:
    """Checks that an epoch and an evaluation on the mesh equal those on one device."""
    arguments = {"loss": PAIR, "batch_size": 24}
    state, expected = train_epoch(classifier(), INPUTS, LABELS, key=jax.random.key(0), **arguments)
    means = [evaluate(state, INPUTS, LABELS, **arguments)]
    state = shard_train_state(classifier(), mesh, "data")
    state, losses = train_epoch(state, INPUTS, LABELS, key=jax.random.key(0), **arguments)
    means.append(evaluate(state, INPUTS, LABELS, **arguments))
    if not np.allclose(losses, expected, rtol=1e-5) or not np.allclose(*means, rtol=1e-5):
        yield f"an epoch has the losses {losses} and the evaluations {means}, on one device {expected}"
    batches = [(INPUTS[:24], LABELS[:24]), (INPUTS[24:], LABELS[24:])]
    placed = shard_train_state(classifier(), mesh, "data")
    _, losses = train_epoch(placed, (shard_batch(batch, mesh, "data") for batch in batches), loss=PAIR)
    _, expected = train_epoch(classifier(), batches, loss=PAIR)
    if not np.allclose(losses, expected, rtol=1e-5):
        yield f"batches on the mesh have the losses {losses}, on one device {expected}"


def check_misfits(mesh: Mesh) -> Iterator[str]:
    """Checks the errors for arguments that do not fit a mesh of eight devices."""
    state = classifier()
    for call, message in (
        (
            lambda: shard_batch((INPUTS[:60], LABELS[:60]), mesh, "data"),
            r"'data' of 8 .* batch\[0\] .*\(60, 16\)",
        ),
        (lambda: shard_batch(INPUTS, mesh, "model"), "the mesh has the axes 'data'; got 'model'"),
        (lambda: shard_train_state(state, mesh, "model"), "the mesh has the axes 'data'; got 'model'"),
        (
            lambda: shard_train_state(
                create_train_state(Classifier(16, 9, 8, rngs=nnx.Rngs(0)), OPTIMIZER),
                mesh,
                lambda path, array: P("data") if path == "hidden/bias" else P(),
            ),
            r"'data' of 8 devices must divide .* parameter hidden/bias of shape \(9,\) with P",
        ),
        (
            lambda: shard_train_state(state, mesh, lambda path, array: P(None, None)),
            "hidden/bias .* fewer dim",
        ),
        (
            lambda: shard_train_state(state, mesh, lambda path, array: "data"),
            "return a PartitionSpec .* 'data'",
        ),
        (lambda: shard_train_state(state, mesh, 8), "split must be the name of a mesh axis, .*; got 8"),
    ):
        try:
            call()
        except (TypeError, ValueError) as error:
            if not re.search(message, str(error)):
                yield f"{error!r} does not say {message!r}"
        else:
            yield f"no error says {message!r}"


def main() -> None:
    """Runs all checks; with arguments, as one of two processes that run them together."""
    with tempfile.TemporaryDirectory() as folder:
        match sys.argv[1:]:
            case [port, process, shared_folder]:
                jax.distributed.initialize(f"127.0.0.1:{port}", num_processes=2, process_id=int(process))
                folder = shared_folder
                chosen = configurations()[:2]
                problems = [*check_losses()]
            case _:
                chosen = configurations()
                problems = [*check_misfits(chosen[0][1]), *check_epochs(chosen[0][1])]
        problems += [*check_copies(chosen[0][1]), *check_sizes(chosen[0][1])]
        problems += check_checkpoint(chosen[0][1], folder)
        for configuration in chosen:
            problems += compare(*configuration)
    sys.exit("\n".join(problems) or None)


if __name__ == "__main__":
    main()
