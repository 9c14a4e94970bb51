"""Metrics in addition to the loss: of a step, over an epoch, over a data set."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.tree_util import Partial

from jaxloss import cross_entropy, mse_loss, reduce
from jaxloss.models import Classifier
from jaxloss.training import create_train_state, evaluate, gradient_norm, train_epoch, train_step

SGD = optax.sgd(0.1)
INPUTS = np.random.RandomState(0).normal(size=(12, 6)).astype(np.float32)
# The micro-batches have different numbers of labels.
LABELS = np.where(np.isin(np.arange(12), [0, 1, 2, 4, 7, 10]), np.arange(12) % 3, -100)
PAIR = functools.partial(cross_entropy, reduction="sum_and_weight")


def accuracy(logits, labels):
    return reduce(logits.argmax(axis=-1) == labels, where=labels >= 0, reduction="sum_and_weight")


def rms(logits, labels, scale=1.0):
    return scale * jnp.sqrt(jnp.mean(logits**2))


METRICS = {"accuracy": accuracy, "norm": gradient_norm}


def new_state():
    return create_train_state(Classifier(6, 5, 3, rngs=nnx.Rngs(0)), SGD)


def expected(rows=slice(None)):
    """Returns the metrics of the initial state over some samples."""
    state = new_state()

    def loss(params):
        return cross_entropy(state.apply_fn(params, INPUTS[rows]), LABELS[rows])

    logits = np.asarray(state.apply_fn(state.params, INPUTS[rows]))
    labels = LABELS[rows]
    norm = np.sqrt(sum(np.sum(np.square(g)) for g in jax.tree.leaves(jax.grad(loss)(state.params))))
    right = np.mean(logits.argmax(axis=-1)[labels >= 0] == labels[labels >= 0])
    return {"accuracy": right, "norm": norm, "rms": np.sqrt(np.mean(logits**2))}


def assert_close(measured, names):
    assert measured.keys() == set(names)
    for name, value in measured.items():
        assert value.shape == ()
        np.testing.assert_allclose(value, expected()[name], rtol=1e-5, err_msg=name)


@pytest.mark.parametrize("micro_batches", [1, 3])
def test_metrics_are_of_the_whole_batch_before_the_step(micro_batches):
    _, value, measured = train_step(
        new_state(), INPUTS, LABELS, loss=PAIR, metrics=METRICS, micro_batches=micro_batches
    )
    assert_close(measured, METRICS)
    np.testing.assert_allclose(value, PAIR(new_state().apply_fn(new_state().params, INPUTS), LABELS)[0] / 6)


def test_metrics_do_not_change_the_step():
    plain, value = train_step(new_state(), INPUTS, LABELS, loss=cross_entropy)
    state, same, measured = train_step(
        new_state(),
        INPUTS,
        LABELS,
        loss=cross_entropy,
        metrics={"rms": rms, "double": Partial(rms, scale=2.0)},
    )
    assert value == same
    jax.tree.map(np.testing.assert_array_equal, state.params, plain.params)
    np.testing.assert_allclose(measured["double"], 2 * measured["rms"])
    assert_close({"rms": measured["rms"]}, ["rms"])


def test_metrics_do_not_run_the_model_again():
    calls = []

    def apply(params, inputs):
        calls.append(inputs.shape)
        return params[None] * inputs

    state = create_train_state((apply, jnp.ones(3)), SGD)
    metrics = {"rms": rms, "norm": gradient_norm}
    train_step(state, jnp.ones((4, 3)), jnp.ones((4, 3)), loss=lambda o, t: mse_loss(o, t), metrics=metrics)
    assert len(calls) == 1


def test_no_metrics_is_an_empty_dict():
    _, _, measured = train_step(new_state(), INPUTS, LABELS, loss=cross_entropy, metrics={})
    assert measured == {}


def test_a_metric_need_not_be_differentiable():
    def rank(logits, labels):
        shape = jax.ShapeDtypeStruct((), jnp.float32)
        return jax.pure_callback(lambda x: np.float32(np.linalg.matrix_rank(x)), shape, logits)

    _, _, measured = train_step(new_state(), INPUTS, LABELS, loss=cross_entropy, metrics={"rank": rank})
    assert measured["rank"] == 3


def test_an_epoch_returns_the_metrics_of_each_step():
    options = {"loss": PAIR, "batch_size": 4, "key": jax.random.key(0), "micro_batches": 2}
    state, losses, measured = train_epoch(new_state(), INPUTS, LABELS, metrics=METRICS, **options)
    plain, same = train_epoch(new_state(), INPUTS, LABELS, **options)
    np.testing.assert_array_equal(losses, same)
    jax.tree.map(np.testing.assert_array_equal, state.params, plain.params)
    assert {name: values.shape for name, values in measured.items()} == {"accuracy": (3,), "norm": (3,)}
    first = jax.random.permutation(jax.random.key(0), 12)[:4]
    for name, values in measured.items():
        np.testing.assert_allclose(values[0], expected(np.asarray(first))[name], rtol=1e-5)


@pytest.mark.parametrize("batch_size", [5, 64])
def test_an_evaluation_returns_exact_metrics(batch_size):
    metrics = {"accuracy": accuracy}
    value, measured = evaluate(new_state(), INPUTS, LABELS, loss=PAIR, batch_size=batch_size, metrics=metrics)
    assert_close(measured, metrics)
    assert value == evaluate(new_state(), INPUTS, LABELS, loss=PAIR, batch_size=batch_size)


@pytest.mark.parametrize(
    ("metrics", "options", "error", "message"),
    [
        ([accuracy], {}, TypeError, "metrics must be a mapping of names to callables"),
        ({"a": 3}, {}, TypeError, r"metrics\['a'\] must be a callable \(outputs, targets\) -> scalar; got 3"),
        (
            {"a": lambda o, t: o},
            {},
            ValueError,
            r"metrics\['a'\] must return a scalar.*; got shape \(12",
        ),
        (
            {"a": rms},
            {"micro_batches": 2},
            ValueError,
            r"metrics\['a'\] must return the pair \(sum, weight\) for micro_batches.*; got a scalar",
        ),
    ],
)
def test_invalid_metrics_raise(metrics, options, error, message):
    with pytest.raises(error, match=message):
        train_step(new_state(), INPUTS, LABELS, loss=PAIR, metrics=metrics, **options)


def test_metrics_that_cannot_be_evaluated_raise():
    for metric, message in (
        (gradient_norm, "gradient_norm is only a metric of train_step and train_epoch"),
        (rms, r"metrics\['a'\] must return the pair .* for evaluate"),
    ):
        with pytest.raises((TypeError, ValueError), match=message):
            evaluate(new_state(), INPUTS, LABELS, loss=PAIR, batch_size=4, metrics={"a": metric})


# New functions at each call


def test_a_new_loss_function_per_step_warns_once_at_the_third_compilation():
    state = new_state()
    for turn in range(5):
        call = functools.partial(
            train_step, state, INPUTS, LABELS, loss=lambda outputs, targets: cross_entropy(outputs, targets)
        )
        if turn == 2:
            with pytest.warns(UserWarning, match=r"<lambda> of .*test_metrics.py, line \d+, is a new"):
                state, _ = call()
        else:
            state, _ = call()  # warnings are errors here


@pytest.mark.parametrize("use", ["metrics", "evaluate", "train_epoch"])
def test_a_new_function_per_call_warns_everywhere(use):
    state = new_state()

    def call():
        def anew(outputs, targets):
            return PAIR(outputs, targets)

        if use == "metrics":
            return train_step(new_state(), INPUTS, LABELS, loss=PAIR, metrics={"a": anew})
        if use == "evaluate":
            return evaluate(state, INPUTS, LABELS, loss=anew, batch_size=4)
        options = {"batch_size": 4, "key": jax.random.key(0)}
        return train_epoch(state, INPUTS, LABELS, loss=anew, **options)

    call(), call()
    with pytest.warns(UserWarning, match="anew of .* is a new function at each call"):
        call()


def test_new_functions_for_new_shapes_do_not_warn():
    for size in (3, 4, 6, 12):
        train_step(new_state(), INPUTS[:size], LABELS[:size], loss=lambda o, t: cross_entropy(o, t))
