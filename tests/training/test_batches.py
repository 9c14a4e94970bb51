"""Batches from loaders, generators and lists, transferred while a step runs."""

import functools
import gc
import importlib.util

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import AxisType

from jaxloss import cross_entropy, reduce
from jaxloss.models import Classifier
from jaxloss.training import (
    create_train_state,
    epochs,
    evaluate,
    gradient_norm,
    shard_batch,
    train_epoch,
    train_step,
)

ADAM = optax.adam(0.1)
INPUTS = np.random.RandomState(0).normal(size=(11, 6)).astype(np.float32)
LABELS = np.where(np.arange(11) < 8, np.arange(11) % 3, -100)
PAIR = functools.partial(cross_entropy, reduction="sum_and_weight")
SIZES = [4, 4, 3]  # the last batch has only ignored labels


def new_state():
    return create_train_state(Classifier(6, 5, 3, rngs=nnx.Rngs(0)), ADAM)


def batches():
    start = 0
    for size in SIZES:
        yield INPUTS[start : start + size], LABELS[start : start + size]
        start += size


class Loader:
    """A loader as in grain and PyTorch: iterable several times, with lists as batches."""

    def __iter__(self):
        return map(list, batches())


def accuracy(logits, labels):
    return reduce(logits.argmax(axis=-1) == labels, where=labels >= 0, reduction="sum_and_weight")


KINDS = [batches, Loader, lambda: [*batches()], lambda: zip(*zip(*batches(), strict=True), strict=True)]
if importlib.util.find_spec("torch"):

    def torch_loader():
        from torch.utils.data import DataLoader

        rows = [*zip(INPUTS, LABELS, strict=True)]
        return DataLoader(
            rows, batch_size=4, collate_fn=lambda rows: [*map(np.stack, zip(*rows, strict=True))]
        )

    KINDS.append(torch_loader)


@pytest.mark.parametrize("kind", KINDS)
def test_an_epoch_over_any_iterable_equals_its_steps(kind):
    start = new_state()
    metrics = {"norm": gradient_norm, "accuracy": accuracy}
    options = {"loss": cross_entropy, "metrics": metrics}
    state, losses, measured = train_epoch(start, kind(), allow_non_finite=True, **options)
    again, expected = new_state(), []
    for batch in batches():
        again, value, found = train_step(again, *batch, **options)
        expected.append({"loss": value, **found})
    for name, values in {"loss": losses, **measured}.items():
        assert isinstance(values, jax.Array)
        np.testing.assert_array_equal(values, [found[name] for found in expected])
    jax.tree.map(np.testing.assert_array_equal, state, again)
    assert start.step == 0  # not donated


@pytest.mark.parametrize("kind", KINDS)
def test_an_evaluation_over_any_iterable_is_exact(kind):
    state = new_state()
    options = {"loss": PAIR, "metrics": {"accuracy": accuracy}}
    found = evaluate(state, kind(), **options)
    expected = evaluate(state, INPUTS, LABELS, batch_size=11, **options)
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6), found, expected)
    assert {leaf.dtype for leaf in jax.tree.leaves(found)} == {jnp.dtype(jnp.float32)}


def test_sums_over_many_batches_are_not_rounded():
    """In float32 a sum of 2**24 + 1 + 1 would stay 2**24."""

    def size(outputs, targets):
        return outputs[0], targets[0]

    state = create_train_state((lambda w, x: w * x, jnp.float32(1.0)), ADAM)
    parts = [np.array([2.0**24], np.float32)] + [np.ones(1, np.float32)] * 64
    mean = evaluate(state, [(part, np.ones(1, np.float32)) for part in parts], loss=size)
    assert mean == np.float32((2**24 + 64) / 65)


def test_sharded_batches_are_accepted():
    mesh = jax.make_mesh((1,), ("data",), axis_types=(AxisType.Auto,))
    sharded = (shard_batch(batch, mesh, "data") for batch in batches())
    _, losses = train_epoch(new_state(), sharded, loss=PAIR, allow_non_finite=True)
    _, expected = train_epoch(new_state(), batches(), loss=PAIR, allow_non_finite=True)
    np.testing.assert_allclose(losses, expected, rtol=1e-6)


def test_the_next_batch_is_loaded_while_a_step_runs(monkeypatch):
    values = []

    def recorded(*args, **options):
        result = train_step(*args, **options)
        values.append(result[1])
        return result

    def slow(outputs, targets):
        square = jnp.ones((512, 512)) / 512
        product = jax.lax.fori_loop(0, 50, lambda _, x: x @ square, square)
        return outputs.sum() * product.mean()

    runs = []

    def load():
        for _ in range(3):
            runs.append(not values or not values[-1].is_ready())
            yield np.ones(2, np.float32), np.ones(2, np.float32)

    monkeypatch.setattr(epochs, "train_step", recorded)
    state = create_train_state((lambda w, x: w * x, jnp.float32(1.0)), optax.sgd(0.1))
    train_epoch(state, load(), loss=slow)
    assert runs == [True, True, True]


def test_few_batches_are_alive_at_once():
    def alive():
        gc.collect()
        return sum(array.shape == (2, 1031) for array in jax.live_arrays())

    seen = []

    def load():
        for _ in range(12):
            seen.append(alive())
            yield jnp.ones((2, 1031)), jnp.ones((2, 1031))

    state = create_train_state((lambda w, x: w * x, jnp.float32(1.0)), optax.sgd(0.1))
    train_epoch(state, load(), loss=lambda outputs, targets: (outputs - targets).sum())
    assert max(seen) <= 6


# Errors

TORCH = [importlib.import_module("torch").ones(2, 6)] if importlib.util.find_spec("torch") else []
ITERABLE = "without targets, inputs must be an iterable of batches"


@pytest.mark.parametrize(
    ("data", "options", "error", "message"),
    [
        ((x for x in ()), {}, ValueError, "at least one batch, got none; a generator can be used only once"),
        ([INPUTS], {}, TypeError, r"each batch must be a pair \(inputs, targets\); got array"),
        (
            [(INPUTS, LABELS, LABELS)],
            {},
            TypeError,
            r"each batch must be a pair \(inputs, targets\); got",
        ),
        (INPUTS, {}, TypeError, f"{ITERABLE} .*; got array"),
        ({"a": INPUTS}, {}, TypeError, ITERABLE),
        ("text", {}, TypeError, ITERABLE),
        (3, {}, TypeError, ITERABLE),
        ([(INPUTS, LABELS)], {"batch_size": 4}, ValueError, f"batch_size must not be given .* {ITERABLE}"),
        ([(INPUTS, ["a"])], {}, TypeError, r"targets\[0\] must be an array, got str"),
    ],
)
@pytest.mark.parametrize("use", [train_epoch, evaluate])
def test_data_that_is_not_an_iterable_of_batches_raises(use, data, options, error, message):
    with pytest.raises(error, match=message):
        use(new_state(), data, loss=PAIR, **options)


@pytest.mark.parametrize(
    ("leaf", "message"),
    [
        (np.array(["a", "b"]), r"\['x'\] must hold numbers, got dtype <U1"),
        (np.array([None, 1.0]), r"\['x'\] must hold numbers, got dtype object"),
        (np.array(["2026-01-01"], "M8[D]"), r"\['x'\] must hold numbers, got dtype datetime64"),
        ("text", r"\['x'\] must be an array, got str"),
        *[
            (tensor, r"\['x'\] must be an array, got torch.Tensor; pass .*cpu\(\).numpy\(\)")
            for tensor in TORCH
        ],
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_leaf_that_is_not_a_numeric_array_raises(leaf, message):
    batch = {"x": leaf}
    mesh = jax.make_mesh((1,), ("data",), axis_types=(AxisType.Auto,))
    uses = {
        "inputs": [
            lambda: train_step(new_state(), batch, LABELS, loss=PAIR),
            lambda: train_epoch(new_state(), [(batch, LABELS)], loss=PAIR),
            lambda: evaluate(new_state(), [(batch, LABELS)], loss=PAIR),
            lambda: evaluate(new_state(), batch, LABELS, loss=PAIR, batch_size=4),
        ],
        "targets": [lambda: train_step(new_state(), INPUTS, batch, loss=PAIR)],
        "batch": [lambda: shard_batch(batch, mesh, "data")],
    }
    for name, calls in uses.items():
        for call in calls:
            with pytest.raises(TypeError, match=f"^{name}{message}"):
                call()
