"""Epochs in one call, exact means over a data set, and non-finite losses."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from jaxloss import cross_entropy, mse_loss, reduce
from jaxloss.models import Classifier
from jaxloss.training import (
    NonFiniteLossError,
    create_train_state,
    evaluate,
    read_losses,
    train_epoch,
    train_step,
)

ADAM = optax.adam(0.1)
INPUTS = np.random.RandomState(0).normal(size=(11, 6)).astype(np.float32)
LABELS = np.where(np.arange(11) < 8, np.arange(11) % 3, -100)
PAIR = functools.partial(cross_entropy, reduction="sum_and_weight")
KEY = jax.random.key(3)


def new_state():
    return create_train_state(Classifier(6, 5, 3, rngs=nnx.Rngs(0)), ADAM)


def epoch(state, loss=cross_entropy, key=KEY, **options):
    arguments = {"inputs": INPUTS, "targets": LABELS, "batch_size": 4, **options}
    return train_epoch(state, loss=loss, key=key, **arguments)


def test_an_epoch_equals_its_steps():
    start = new_state()
    state, losses = epoch(start)
    again = new_state()
    for rows, value in zip(jax.random.permutation(KEY, 11)[:8].reshape(2, 4), losses, strict=True):
        again, expected = train_step(again, INPUTS[rows], LABELS[rows], loss=cross_entropy)
        np.testing.assert_allclose(value, expected, rtol=1e-6)
    jax.tree.map(lambda a, e: np.testing.assert_allclose(a, e, rtol=1e-5, atol=1e-6), state, again)
    assert state.step == 2
    # The initial state is not donated.
    assert start.step == 0
    in_parts, _ = epoch(start, PAIR, micro_batches=2)
    jax.tree.map(lambda a, e: np.testing.assert_allclose(a, e, rtol=1e-4, atol=1e-5), in_parts, again)


def test_each_key_gives_another_permutation_of_the_samples():
    def seen(key):
        state = create_train_state((lambda w, x: w * x, jnp.float32(1.0)), optax.sgd(0.0))
        samples = np.arange(12, dtype=np.float32)
        return train_epoch(
            state, samples, samples, loss=lambda outputs, _: outputs.sum(), batch_size=1, key=key
        )[1]

    first, second = seen(jax.random.key(0)), seen(jax.random.key(1))
    assert sorted(first.tolist()) == sorted(second.tolist()) == list(range(12))
    assert first.tolist() != second.tolist()
    np.testing.assert_array_equal(seen(jax.random.key(0)), first)


REMEDY = r", which changed only the step number\. Possible causes are out-of-range labels, a batch "


@pytest.mark.parametrize("step", [1, 3])
def test_a_non_finite_loss_stops_the_epoch_and_keeps_the_state(step):
    def growing(outputs, _):
        return jnp.where(outputs.max() > step - 1.5, jnp.inf, -outputs.mean())

    ones = np.ones(4, np.float32)
    state = create_train_state((lambda w, x: w * x, jnp.float32(0.0)), optax.sgd(1.0))
    run = functools.partial(
        train_epoch, inputs=ones, targets=ones, batch_size=1, key=KEY, loss=functools.partial(growing)
    )
    with pytest.raises(NonFiniteLossError, match=f"^growing is inf at step {step}{REMEDY}") as caught:
        run(state)
    assert (state.step, state.params) == (0, 0)
    kept, losses = run(state, allow_non_finite=True)
    assert np.isinf(losses).argmax() == step - 1
    # The remaining steps are counted, but update nothing.
    assert (kept.step, kept.params) == (caught.value.state.step, caught.value.state.params) == (4, step - 1)
    np.testing.assert_array_equal(caught.value.losses, losses)


def test_a_batch_of_only_ignored_labels_is_skipped():
    """Adam would otherwise move the parameters by its momentum."""
    state, _ = train_step(new_state(), INPUTS, LABELS, loss=cross_entropy)
    before = jax.tree.map(jnp.copy, state)
    state, value = train_step(state, INPUTS[:4], np.full(4, -100), loss=cross_entropy)
    assert np.isnan(value)
    assert state.step == 2
    jax.tree.map(np.testing.assert_array_equal, state.replace(step=before.step), before)
    # An epoch continues after such a batch.
    labels = np.where(np.arange(11) < 4, -100, np.arange(11) % 3)
    batches = [(INPUTS[rows], labels[rows]) for rows in (slice(4, 8), slice(0, 4), slice(7, 11))]
    trained, losses = train_epoch(new_state(), batches, loss=cross_entropy, allow_non_finite=True)
    without, same = train_epoch(new_state(), batches[::2], loss=cross_entropy)
    assert np.isnan(losses).tolist() == [False, True, False]
    np.testing.assert_array_equal(losses[::2], same)
    jax.tree.map(np.testing.assert_array_equal, trained.params, without.params)


def test_read_losses_raises_for_non_finite_losses():
    state = new_state().replace(step=jnp.int32(20))
    losses = [jnp.float32(value) for value in (0.5, np.nan, 0.25)]
    with pytest.raises(NonFiniteLossError, match=rf"^mse_loss is nan at step 19{REMEDY}") as caught:
        read_losses(losses, state, loss=jax.tree_util.Partial(functools.partial(mse_loss), where=True))
    assert caught.value.state is state
    np.testing.assert_array_equal(caught.value.losses, losses)
    np.testing.assert_array_equal(read_losses(losses[::2], state, loss=mse_loss), [0.5, 0.25])
    np.testing.assert_array_equal(read_losses([], state, loss=mse_loss), [])
    np.testing.assert_array_equal(read_losses(losses[0], state, loss=mse_loss), [0.5])
    with pytest.raises(FloatingPointError, match=r"^mse_loss is nan at step 20,"):
        read_losses(losses[1], state, loss=mse_loss)
    epochs = [jnp.array([1.0, np.inf]), jnp.ones(3)]
    with pytest.raises(FloatingPointError, match=r"^mse_loss is inf at step 17,"):
        read_losses(epochs, state, loss=mse_loss)


# Evaluation


@pytest.mark.parametrize("batch_size", [4, 11, 64])
def test_an_evaluation_is_the_mean_over_all_samples(batch_size):
    state = new_state()
    logits = state.apply_fn(state.params, INPUTS)
    mean = evaluate(state, INPUTS, LABELS, loss=PAIR, batch_size=batch_size)
    np.testing.assert_allclose(mean, cross_entropy(logits, LABELS), rtol=1e-6)


def test_any_sum_and_weight_function_can_be_evaluated():
    def accuracy(logits, labels):
        return reduce(logits.argmax(axis=-1) == labels, where=labels >= 0, reduction="sum_and_weight")

    state = new_state()
    right = np.argmax(state.apply_fn(state.params, INPUTS), axis=-1) == LABELS
    value = evaluate(state, INPUTS, LABELS, loss=accuracy, batch_size=4)
    np.testing.assert_allclose(value, right.sum() / 8, rtol=1e-6)


@pytest.mark.parametrize("batch_size", [1, 4, 11])
def test_an_integer_count_can_be_divided_by_fractional_weights(batch_size):
    def weighted(logits, labels):
        weight = jnp.where(labels == 0, 0.5, 1.0)
        return (logits.argmax(axis=-1) == labels).sum(), weight.sum()

    state = new_state()
    right = np.asarray(state.apply_fn(state.params, INPUTS)).argmax(axis=-1) == LABELS
    expected = right.sum() / np.where(LABELS == 0, 0.5, 1.0).sum()
    value = evaluate(state, INPUTS, LABELS, loss=weighted, batch_size=batch_size)
    np.testing.assert_allclose(value, expected, rtol=1e-6)


class Noisy(nnx.Module):
    def __init__(self, *, rngs):
        self.norm = nnx.BatchNorm(6, momentum=0.5, rngs=rngs)
        self.linear = nnx.Linear(6, 3, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, inputs):
        return self.dropout(self.linear(self.norm(inputs)))


def test_a_module_is_evaluated_without_dropout_and_with_running_statistics():
    model = Noisy(rngs=nnx.Rngs(0))
    state, _ = epoch(create_train_state(model, ADAM))
    before = jax.tree.map(jnp.copy, state)
    mean = evaluate(state, INPUTS, LABELS, loss=PAIR, batch_size=4)
    jax.tree.map(lambda a, e: np.testing.assert_array_equal(*map(bits, (a, e))), state, before)
    assert not model.dropout.deterministic  # the caller's module is unchanged
    nnx.update(model, state.params, state.model_state)
    model.eval()
    np.testing.assert_allclose(mean, cross_entropy(model(jnp.asarray(INPUTS)), LABELS), rtol=1e-5)


def bits(array):
    return jax.random.key_data(array) if jnp.issubdtype(array.dtype, jax.dtypes.prng_key) else array


def test_evaluating_a_function_with_state_requires_eval_fn():
    def apply(weight, count, inputs):
        return weight * inputs, count + 1

    ones = np.ones(3, np.float32)
    pair = functools.partial(mse_loss, reduction="sum_and_weight")
    model = (apply, jnp.float32(1.0), jnp.float32(7.0))
    with pytest.raises(
        ValueError, match=r"evaluate needs an eval_fn .*; pass eval_fn\(params, model_state, "
    ):
        evaluate(create_train_state(model, ADAM), ones, ones, loss=pair, batch_size=2)
    state = create_train_state(model, ADAM, eval_fn=lambda weight, count, inputs: count * inputs)
    assert evaluate(state, ones, ones, loss=pair, batch_size=2) == 36


# Errors


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 12}, r"batch_size must be in \[1, 11\] for 11 samples, got 12"),
        ({"batch_size": 0}, r"batch_size must be in \[1, 11\] for 11 samples, got 0"),
        ({"batch_size": 4.0}, "batch_size must be an integer, got 4.0"),
        ({"batch_size": jnp.ones(1)}, "batch_size must be an integer, got Array"),
        ({"batch_size": None}, "arrays need batch_size and key, .*; got batch_size=None, key=Array"),
        ({"key": None}, "arrays need batch_size and key, .*; got batch_size=4, key=None"),
        ({"batch_size": None, "key": None}, r"key=jax.random.key\(0\); got batch_size=None, key=None"),
        ({"key": 0}, "key must be one PRNG key, such as .*; got 0"),
        ({"key": jax.random.split(jax.random.key(0))}, "key must be one PRNG key, such as .*; got Array"),
        ({"targets": LABELS[:10]}, "the same number of samples .*; got inputs 11, targets 10"),
        ({"targets": (LABELS, 1.0)}, r"got inputs 11, targets\[0\] 11, targets\[1\] a scalar"),
        ({"micro_batches": 3, "loss": PAIR}, "micro_batches must divide the batch of 4 samples, got 3"),
        ({"loss": "mse"}, "loss must be a callable .* got 'mse'"),
    ],
)
def test_invalid_epoch_arguments_raise(options, message):
    with pytest.raises((TypeError, ValueError), match=message):
        epoch(new_state(), **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"loss": cross_entropy},
            r"loss must return the pair \(sum, weight\) for evaluate, .*; got a scalar",
        ),
        ({"batch_size": 0}, "batch_size >= 1; got 11 samples and batch_size=0"),
        ({"batch_size": 4.0}, "batch_size must be an integer, got 4.0"),
        (
            {"inputs": INPUTS[:0], "targets": LABELS[:0]},
            "one sample .*; got 0 samples and batch_size=4",
        ),
        ({"targets": LABELS[:10]}, "the same number of samples .*; got inputs 11, targets 10"),
        ({"loss": None}, "loss must be a callable .* got None"),
    ],
)
def test_invalid_evaluation_arguments_raise(options, message):
    arguments = {"inputs": INPUTS, "targets": LABELS, "loss": PAIR, "batch_size": 4, **options}
    with pytest.raises((TypeError, ValueError), match=message):
        evaluate(new_state(), **arguments)
