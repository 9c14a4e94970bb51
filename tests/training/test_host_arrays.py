"""NumPy arrays of 64 bits or another byte order keep their values through every training function."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.tree_util import Partial

from jaxloss import cross_entropy, mse_loss
from jaxloss.training import create_train_state, evaluate, shard_batch, train_epoch, train_step

SGD = optax.sgd(0.1)
MESH = jax.make_mesh((1,), ("data",), (AxisType.Auto,))
LOGITS = np.linspace(-1, 1, 12, dtype=np.float32).reshape(4, 3)
# NaN cast to int64, and 2**32 + 1: truncated to 32 bits, they would be the classes 0 and 1.
BAD_LABELS = [-(2**63), 2**32 + 1]


def new_state():
    return create_train_state((jnp.multiply, jnp.float32(1)), SGD)


@functools.cache
def pair(loss):
    return functools.partial(loss, reduction="sum_and_weight")


def step(inputs, targets, loss):
    return train_step(new_state(), inputs, targets, loss=loss)[1]


def micro_batches(inputs, targets, loss):
    return train_step(new_state(), inputs, targets, loss=pair(loss), micro_batches=2)[1]


def epoch(inputs, targets, loss):
    options = {"batch_size": 4, "key": jax.random.key(0), "allow_non_finite": True}
    return train_epoch(new_state(), inputs, targets, loss=loss, **options)[1][0]


def evaluation(inputs, targets, loss):
    return evaluate(new_state(), inputs, targets, loss=pair(loss), batch_size=3)


def epoch_of_batches(inputs, targets, loss):
    return train_epoch(new_state(), [(inputs, targets)], loss=loss, allow_non_finite=True)[1][0]


def evaluation_of_batches(inputs, targets, loss):
    return evaluate(new_state(), [(inputs, targets)], loss=pair(loss))


def sharded(inputs, targets, loss):
    return step(*shard_batch((inputs, targets), MESH, "data"), loss)


def sharded_by_processes(inputs, targets, loss):
    return step(*sharded_in_processes((inputs, targets), MESH, "data"), loss)


def sharded_in_processes(batch, mesh, axis):
    """Calls `shard_batch` as in a multi-process program, where each process holds a part of the devices."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(NamedSharding, "is_fully_addressable", False)
        return shard_batch(batch, mesh, axis)


every_entry_point = pytest.mark.parametrize(
    "run",
    [
        step,
        micro_batches,
        epoch,
        epoch_of_batches,
        evaluation,
        evaluation_of_batches,
        sharded,
        sharded_by_processes,
    ],
)


class Subclass(np.ndarray):
    pass


def in_dict(outputs, targets, **options):
    return cross_entropy(outputs, targets["labels"], **options)


@every_entry_point
@pytest.mark.parametrize("label", BAD_LABELS)
@pytest.mark.parametrize(
    ("wrap", "loss"),
    [
        (np.asarray, cross_entropy),
        (lambda labels: labels.view(Subclass), cross_entropy),
        (lambda labels: {"labels": labels, "other": LOGITS}, in_dict),
    ],
    ids=["array", "subclass", "dict"],
)
def test_a_64_bit_label_out_of_range_is_nan(run, label, wrap, loss):
    assert np.isnan(run(LOGITS, wrap(np.array([0, 1, 2, label])), loss))
    assert np.isfinite(run(LOGITS, wrap(np.array([0, 1, 2, 1])), loss))


@every_entry_point
def test_a_64_bit_target_keeps_its_value(run):
    targets = np.full(4, 2**32 + 5)
    np.testing.assert_allclose(run(np.zeros(4, np.float32), targets, mse_loss), float(2**32 + 5) ** 2)


@every_entry_point
def test_big_endian_arrays_give_the_result_of_native_ones(run):
    labels = np.array([0, 1, 2, 1], np.int32)
    big_endian = LOGITS.astype(">f4"), labels.astype(">i4")
    first = run(*big_endian, cross_entropy)
    native = run(LOGITS, labels, cross_entropy)
    assert first == native == run(*big_endian, cross_entropy)


@every_entry_point
@pytest.mark.parametrize("masked", ["inputs", "targets"])
def test_a_numpy_masked_array_raises(run, masked):
    arguments = {"inputs": LOGITS, "targets": LOGITS}
    arguments[masked] = {"a": np.ma.array(LOGITS, mask=LOGITS > 0)}
    with pytest.raises(TypeError, match=r"\['a'\] must be an array, .* pass its mask as where="):
        run(**arguments, loss=mse_loss)


def test_host_arrays_bound_to_a_loss_are_converted_like_inputs():
    def weighted(outputs, targets, weight):
        return (outputs * weight.astype(jnp.float32)).sum()

    ones = jnp.ones(4)
    for weight in (np.ones(4, np.float32), np.ones(4, ">f4"), np.full(4, 2**32 + 1)):
        assert step(ones, ones, Partial(weighted, weight=weight)) == float(weight.sum())
    with pytest.raises(TypeError, match=r"\['weight'\] must be an array, .* pass its mask as where="):
        step(ones, ones, Partial(weighted, weight=np.ma.ones(4)))


def test_a_device_batch_does_not_alias_its_host_buffer():
    memory = np.zeros(2**12 + 16, np.float32)
    buffer = memory[-(memory.ctypes.data // 4) % 16 :][: 2**12]  # aligned, so that a CPU may share it
    for shard in (shard_batch, sharded_in_processes):
        batch = shard(buffer, MESH, "data")
        buffer += 1
        np.testing.assert_array_equal(batch, buffer - 1)
