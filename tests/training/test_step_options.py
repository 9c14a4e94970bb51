"""Micro-batches, low precision, clipping and schedules; and errors that leave the state intact."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.tree_util import Partial

from jaxloss import cross_entropy, mse_loss
from jaxloss.models import Classifier, LinearRegression
from jaxloss.training import create_train_state, train_step

SIZES = (6, 5, 3)
ADAM = optax.adam(0.1)
INPUTS = np.random.RandomState(0).normal(size=(12, 6)).astype(np.float32)
# With three micro-batches, the first and third have one label each, the second has four.
TARGETS = np.where(np.isin(np.arange(12), [0, 1, 2, 4, 7, 10]), np.arange(12) % 3, -100)
PAIR = functools.partial(cross_entropy, reduction="sum_and_weight")


def new_state(optimizer=ADAM, **options):
    return create_train_state(Classifier(*SIZES, rngs=nnx.Rngs(0)), optimizer, **options)


def train(state, loss=cross_entropy, steps=3, inputs=INPUTS, targets=TARGETS, **options):
    losses = []
    for _ in range(steps):
        state, value = train_step(state, inputs, targets, loss=loss, **options)
        losses.append(value)
    return state, np.array(losses)


def assert_trees_close(actual, expected, rtol=1e-5, atol=1e-6):
    jax.tree.map(lambda a, e: np.testing.assert_allclose(a, e, rtol=rtol, atol=atol), actual, expected)


# Micro-batches


@pytest.fixture(scope="module")
def whole():
    return train(new_state())


@pytest.mark.parametrize("micro_batches", [1, 3])
def test_micro_batches_of_unequal_weight_give_the_mean_of_the_batch(micro_batches, whole):
    state, losses = train(new_state(), PAIR, micro_batches=micro_batches)
    np.testing.assert_allclose(losses, whole[1], rtol=1e-6)
    assert_trees_close(state.params, whole[0].params)
    # The mean of the micro-batch means differs.
    logits = new_state().apply_fn(new_state().params, INPUTS)
    means = [cross_entropy(logits[part::3], TARGETS[part::3]) for part in range(3)]
    assert abs(np.mean(means) - whole[1][0]) > 0.01


def test_a_mask_reaches_the_loss_with_the_targets():
    """Targets may be any pytree that the loss accepts."""

    def masked(outputs, targets, reduction="mean"):
        return mse_loss(outputs, targets["values"], where=targets["where"], reduction=reduction)

    where = np.random.RandomState(1).rand(12, 3) < 0.3
    targets = {"values": np.where(where, 1.0, np.nan).astype(np.float32), "where": where}
    expected, whole = train(new_state(), masked, targets=targets, steps=1)
    pair = functools.partial(masked, reduction="sum_and_weight")
    state, losses = train(new_state(), pair, targets=targets, steps=1, micro_batches=4)
    np.testing.assert_allclose(losses, whole, rtol=1e-6)
    assert_trees_close(state.params, expected.params)


def test_a_batch_of_total_weight_zero_does_not_update_parameters():
    nothing = np.full_like(TARGETS, -100)
    state, losses = train(new_state(), PAIR, targets=nothing, steps=1, micro_batches=3)
    assert np.isnan(losses).all()
    assert_trees_close(state.params, new_state().params)


class Noisy(nnx.Module):
    """A model with batch statistics and dropout."""

    def __init__(self, *, rngs, dtype=None):
        self.linear = nnx.Linear(6, 3, rngs=rngs)
        self.norm = nnx.BatchNorm(3, momentum=0.9, dtype=dtype, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, inputs):
        return self.dropout(self.norm(self.linear(inputs)))


def test_model_state_is_carried_through_the_micro_batches():
    model = Noisy(rngs=nnx.Rngs(0))
    state = create_train_state(model, optax.sgd(0.0))
    state, losses = train(state, PAIR, steps=2, micro_batches=3)
    # The module itself, called on the micro-batches in turn, twice.
    pairs = np.array([PAIR(model(jnp.asarray(INPUTS[part::3])), TARGETS[part::3]) for part in (0, 1, 2) * 2])
    assert_trees_close(state.model_state["norm"], nnx.to_pure_dict(nnx.state(model.norm, nnx.BatchStat)))
    assert state.model_state["dropout"]["rngs"]["count"] == model.dropout.rngs.count[...] == 6
    total, weight = pairs.reshape(2, 3, 2).sum(axis=1).T
    np.testing.assert_allclose(losses, total / weight, rtol=1e-5)


# Low precision


def test_only_the_model_runs_in_low_precision():
    seen = {}

    def loss(outputs, targets):
        value = cross_entropy(outputs, targets)
        seen.update(outputs=outputs.dtype, value=value.dtype)
        return value

    state = new_state(compute_dtype=jnp.bfloat16)
    dtypes = jax.tree.map(lambda array: array.dtype, state)
    state, losses = train(state, loss)
    assert seen == {"outputs": jnp.bfloat16, "value": jnp.float32}
    assert jax.tree.map(lambda array: array.dtype, state) == dtypes
    _, expected = train(new_state())
    np.testing.assert_allclose(losses, expected, rtol=0.02)
    assert not np.array_equal(losses, expected)


def test_small_updates_are_not_lost_in_low_precision():
    """In bfloat16, 1 + 0.001 is 1."""
    state = create_train_state(
        (lambda w, x: w * x, jnp.ones(3)), optax.sgd(0.001), compute_dtype=jnp.bfloat16
    )
    state, _ = train(state, lambda outputs, _: -outputs.sum(dtype=jnp.float32), inputs=np.ones(3, np.float32))
    np.testing.assert_allclose(state.params, 1.003, rtol=1e-6)


def test_batch_statistics_stay_float32_in_low_precision():
    model = Noisy(rngs=nnx.Rngs(0), dtype=jnp.bfloat16)
    # Flax itself relies on implicit dtype promotion here.
    with jax.numpy_dtype_promotion("standard"):
        state, _ = train(create_train_state(model, ADAM, compute_dtype=jnp.bfloat16), steps=1)
        outputs, _ = state.apply_fn(state.params, state.model_state, INPUTS)
    assert {array.dtype for array in state.model_state["norm"].values()} == {np.dtype("float32")}
    assert outputs.dtype == jnp.bfloat16


@pytest.mark.parametrize(("dtype", "named"), [(jnp.int8, "int8"), (bool, "bool"), ("nonsense", "nonsense")])
def test_an_invalid_compute_dtype_raises(dtype, named):
    with pytest.raises(TypeError, match=rf"compute_dtype must be .* floating-point .*, got {named}"):
        new_state(compute_dtype=dtype)


def test_low_precision_gradients_are_accumulated_in_float32():
    """In bfloat16, 256 + 1 is 256."""

    def pair(outputs, _):
        return outputs.astype(jnp.float32).sum(), jnp.float32(1 / 512)

    ones = np.ones(512, np.float32).astype(jnp.bfloat16)
    state = create_train_state((lambda w, x: w * x, jnp.zeros((), jnp.bfloat16)), optax.sgd(1.0))
    state, _ = train(state, pair, steps=1, inputs=ones, targets=ones, micro_batches=512)
    assert state.params.dtype == jnp.bfloat16
    assert state.params == -512


# Optimizers


def test_an_optimizer_that_needs_the_loss_receives_it():
    optimizer = optax.chain(optax.sgd(0.1), optax.contrib.reduce_on_plateau(patience=1, factor=0.5))
    state, losses = train(new_state(optimizer), PAIR, steps=2)
    assert state.opt_state[1].best_value == losses.min()


def test_optax_clipping_and_schedules_work():
    schedule = optax.linear_schedule(0.5, 0.1, transition_steps=2)
    state = new_state(optax.chain(optax.clip_by_global_norm(0.01), optax.sgd(schedule)))
    for rate in (0.5, 0.3, 0.1):
        before = jax.device_get(state.params)
        state, _ = train(state, steps=1)
        moved = jax.tree.map(jnp.subtract, before, state.params)
        np.testing.assert_allclose(optax.tree.norm(moved), 0.01 * rate, rtol=1e-3)


# Errors


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"targets": TARGETS[:, None]},
            r"targets must have the shape of logits .*, got targets \(12, 1\) and logits \(12, 3\)",
        ),
        (
            {"targets": TARGETS.astype(np.float32)},
            r"got targets \(12,\) and logits \(12, 3\); class indices must be integers",
        ),
        ({"inputs": INPUTS[:, :4]}, r"\(4,\).*\(6,\)|\(6,\).*\(4,\)"),
        ({"micro_batches": 3}, r"loss must return the pair \(sum, weight\) for micro_batches.*got a scalar"),
        ({"micro_batches": 5, "loss": PAIR}, r"micro_batches must divide the batch of 12 samples, got 5"),
        ({"micro_batches": 0, "loss": PAIR}, r"micro_batches must divide the batch of 12 samples, got 0"),
        ({"micro_batches": 2.0, "loss": PAIR}, "micro_batches must be an integer, got 2.0"),
        ({"micro_batches": [2], "loss": PAIR}, r"micro_batches must be an integer, got \[2\]"),
        (
            {"loss": Partial(cross_entropy, reduction="sum")},
            r"use functools.partial for argument reduction, got 'sum'",
        ),
        (
            {"micro_batches": 3, "loss": PAIR, "targets": TARGETS[:9]},
            r"inputs and targets must have the same number of samples .*; got inputs 12, targets 9",
        ),
        ({"micro_batches": 3, "loss": PAIR, "targets": 1.0}, r"got inputs 12, targets a scalar"),
    ],
)
def test_a_failing_call_does_not_donate_the_state(options, message):
    state = new_state()
    arguments = {"loss": cross_entropy, "inputs": INPUTS, "targets": TARGETS, **options}
    with pytest.raises((TypeError, ValueError), match=message):
        train_step(state, **arguments)
    assert not any(array.is_deleted() for array in jax.tree.leaves(state))


@pytest.mark.parametrize(
    "change",
    [
        lambda count: (count.astype(jnp.float32),),
        lambda count: (count[None],),
        lambda count: {"count": count},
        lambda count: None,
        lambda count: [count],
    ],
)
def test_a_model_state_that_changes_structure_or_dtype_raises(change):
    def apply(params, model_state, inputs):
        return params * inputs, change(*model_state)

    state = create_train_state((apply, jnp.ones(6), (jnp.zeros((), jnp.int32),)), ADAM)
    with pytest.raises(
        TypeError, match=r"apply_fn must return a model_state of the structure, .*; model_state.* expected "
    ):
        train_step(state, INPUTS[0], TARGETS, loss=lambda outputs, targets: outputs.sum())


@pytest.mark.parametrize(
    ("optimizer", "hidden", "message"),
    [
        (ADAM, 7, r"\['hidden'\]\['bias'\] is float32\[7\], expected float32\[5\]; .*; and 1 more"),
        (optax.sgd(0.1, momentum=0.9), 5, r"\['hidden'\]\['bias'\] is missing, expected float32\[5\]"),
    ],
)
def test_an_optimizer_state_that_does_not_match_the_parameters_raises(optimizer, hidden, message):
    other = create_train_state(Classifier(6, hidden, 3, rngs=nnx.Rngs(0)), optimizer)
    state = new_state().replace(opt_state=other.opt_state)
    with pytest.raises(ValueError, match=rf"opt_state must match params; opt_state.*mu{message}"):
        train_step(state, INPUTS, TARGETS, loss=cross_entropy)
    assert not any(array.is_deleted() for array in jax.tree.leaves(state))


def test_parameters_of_another_model_raise():
    other = create_train_state(LinearRegression(6, 3, rngs=nnx.Rngs(0)), optax.sgd(0.1))
    state = new_state(optax.sgd(0.1)).replace(params=other.params)
    with pytest.raises(ValueError, match=r"must match the model; got .*'linear'.* 'float32\[6, 3\]'"):
        train_step(state, INPUTS, TARGETS, loss=cross_entropy)
    assert not any(array.is_deleted() for array in jax.tree.leaves(state))
