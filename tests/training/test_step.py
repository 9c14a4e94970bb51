"""The training step: PyTorch's trajectories, kinds of model and loss, donation, compilation, state."""

import functools
import importlib.util
import inspect
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen, nnx
from jax.sharding import AxisType
from jax.tree_util import Partial

from jaxloss import binary_cross_entropy_with_logits, cross_entropy, mse_loss
from jaxloss.models import BinaryClassifier, Classifier, LinearRegression
from jaxloss.training import (
    create_train_state,
    evaluate,
    read_losses,
    shard_batch,
    shard_train_state,
    train_epoch,
    train_step,
)
from tests.torch_trajectories import DTYPES, RUNS, batches, initial_parameters, recorded, train_in_torch

SIZES = (6, 5, 3)
SGD = optax.sgd(0.1)
ZERO_RATE = optax.sgd(0.0)
INPUTS = np.random.RandomState(0).normal(size=(8, 6)).astype(np.float32)
TARGETS = np.random.RandomState(1).randint(3, size=8)


def assert_trees_close(actual, expected, rtol=1e-6):
    jax.tree.map(lambda a, e: np.testing.assert_allclose(a, e, rtol=rtol, atol=rtol), actual, expected)


def train(state, loss=cross_entropy, steps=3, inputs=INPUTS, targets=TARGETS):
    losses = []
    for _ in range(steps):
        state, value = train_step(state, inputs, targets, loss=loss)
        losses.append(value)
    return state, np.array(losses)


# PyTorch's trajectories

MODELS = {
    "regression": (LinearRegression, mse_loss, optax.sgd),
    "classification": (Classifier, cross_entropy, optax.adam),
    "binary_classification": (BinaryClassifier, binary_cross_entropy_with_logits, optax.sgd),
}
SOURCES = {"recorded": recorded}
if importlib.util.find_spec("torch"):
    SOURCES["live"] = lambda name, dtype: train_in_torch(RUNS[name], dtype)


def from_torch(model, arrays):
    """Returns PyTorch's weights and biases, given layer by layer, as the parameters of a model."""
    layers = nnx.to_pure_dict(nnx.state(model, nnx.Param))
    return {
        name: {"kernel": weight.T, "bias": bias}
        for name, weight, bias in zip(layers, arrays[::2], arrays[1::2], strict=True)
    }


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", RUNS)
def test_twenty_steps_follow_pytorch(name, dtype, source):
    expected = SOURCES[source](name, dtype)
    model_class, loss, optimizer = MODELS[name]
    with jax.enable_x64(dtype == "float64"):
        model = model_class(rngs=nnx.Rngs(0))
        nnx.update(model, from_torch(model, initial_parameters(RUNS[name], dtype)))
        state = create_train_state(model, optimizer(RUNS[name].learning_rate))
        losses = []
        for inputs, targets in batches(RUNS[name], dtype):
            state, value = train_step(state, inputs, targets, loss=loss)
            losses.append(value)
        losses, params = jax.device_get((losses, state.params))

    rtol = {"float32": 1e-5, "float64": 1e-9}[dtype]
    assert {array.dtype for array in (*losses, *jax.tree.leaves(params))} == {np.dtype(dtype)}
    np.testing.assert_allclose(losses, expected.losses, rtol)
    # Weights are compared by layer, not elementwise: Adam normalizes each gradient, so the rounding error of
    # a nearly vanishing gradient becomes a full step.
    for actual, torchs in zip(
        jax.tree.leaves(params), jax.tree.leaves(from_torch(model, expected.parameters)), strict=True
    ):
        assert np.linalg.norm(actual - torchs) <= rtol * np.linalg.norm(torchs)


# Every kind of model


def classifier_params():
    return jax.device_get(nnx.to_pure_dict(nnx.state(Classifier(*SIZES, rngs=nnx.Rngs(0)), nnx.Param)))


def nnx_model():
    return Classifier(*SIZES, rngs=nnx.Rngs(0))


def linen_model():
    module = linen.Sequential([linen.Dense(SIZES[1]), linen.relu, linen.Dense(SIZES[2])])
    params = classifier_params()
    return module.apply, {"params": {"layers_0": params["hidden"], "layers_2": params["output"]}}


def dict_model():
    def apply(params, inputs):
        hidden = jax.nn.relu(jnp.dot(inputs, params["w1"]) + params["b1"][None])
        return jnp.dot(hidden, params["w2"]) + params["b2"][None]

    params = classifier_params()
    hidden, output = params["hidden"], params["output"]
    return apply, {"w1": hidden["kernel"], "b1": hidden["bias"], "w2": output["kernel"], "b2": output["bias"]}


def equinox_model():
    import equinox

    model = equinox.nn.MLP(*SIZES[::2], SIZES[1], depth=1, key=jax.random.key(0))
    params = classifier_params()
    model = equinox.tree_at(
        lambda mlp: [value for layer in mlp.layers for value in (layer.weight, layer.bias)],
        model,
        [value for layer in params.values() for value in (layer["kernel"].T, layer["bias"])],
    )
    params, static = equinox.partition(model, equinox.is_inexact_array)
    return lambda params, inputs: jax.vmap(equinox.combine(params, static))(inputs), params


KINDS = [nnx_model, linen_model, dict_model]
if importlib.util.find_spec("equinox"):
    KINDS.append(equinox_model)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_of_model_trains_identically(kind):
    expected_state, expected = train(create_train_state(nnx_model(), SGD), steps=10)
    state, losses = train(create_train_state(kind(), SGD), steps=10)
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    # The same numbers under other names and in another order.
    actual, expected = (
        np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(params)])
        for params in (state.params, expected_state.params)
    )
    np.testing.assert_allclose(np.sort(actual), np.sort(expected), rtol=1e-4, atol=1e-6)


def test_a_step_equals_value_and_grad_with_an_optax_update():
    apply_fn, params = dict_model()
    expected, gradients = jax.value_and_grad(lambda p: cross_entropy(apply_fn(p, INPUTS), TARGETS))(params)
    state, value = train_step(
        create_train_state((apply_fn, params), SGD), INPUTS, TARGETS, loss=cross_entropy
    )
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    assert_trees_close(state.params, jax.tree.map(lambda p, g: p - 0.1 * g, params, gradients))
    assert state.step == 1
    assert state.model_state is None


def test_inputs_and_targets_may_be_any_pytrees():
    def apply(params, inputs):
        return {"sum": params * (inputs["left"] + inputs["right"])}

    def loss(outputs, targets):
        return mse_loss(outputs["sum"], targets["sum"])

    state = create_train_state((apply, jnp.ones(3)), SGD)
    ones = jnp.ones(3)
    _, value = train_step(state, {"left": ones, "right": ones}, {"sum": ones}, loss=loss)
    assert value == 1


def test_the_step_runs_inside_scan():
    state = create_train_state(nnx_model(), SGD)
    _, expected = train(state, steps=5)

    def body(state, _):
        return train_step(state, INPUTS, TARGETS, loss=cross_entropy)

    _, losses = jax.lax.scan(body, create_train_state(nnx_model(), SGD), length=5)
    np.testing.assert_allclose(losses, expected, rtol=1e-6)


# Donation


def test_the_state_is_donated_and_the_model_is_not():
    model = nnx_model()
    old = create_train_state(model, optax.adam(0.1))
    train_step(old, INPUTS, TARGETS, loss=cross_entropy)
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves((old.params, old.opt_state)))
    assert model(jnp.asarray(INPUTS)).shape == (8, 3)


@pytest.mark.parametrize("kind", KINDS[1:])
def test_parameters_of_the_caller_are_not_donated(kind):
    apply_fn, params = kind()
    params = jax.tree.map(jnp.asarray, params)
    before = jax.device_get(params)
    train(create_train_state((apply_fn, params), SGD))
    assert_trees_close(params, before, rtol=0)


def test_model_state_of_the_caller_is_not_donated():
    count = jnp.zeros(())
    state = create_train_state((lambda p, n, x: (p * x, n + 1), jnp.ones(()), count), SGD)
    state, _ = train(state, loss=lambda outputs, _: outputs.mean())
    assert (count, state.model_state) == (0, 3)


def test_the_optimizer_state_may_alias_the_parameters():
    """The same buffer twice in a state could not be donated."""

    def update(gradients, start, params):
        return jax.tree.map(lambda g, s, p: -0.1 * g + 0.01 * (s - p), gradients, start, params), start

    state = create_train_state(nnx_model(), optax.GradientTransformation(lambda params: params, update))
    _, losses = train(state)
    assert losses[-1] < losses[0]


def test_trained_parameters_update_the_module():
    model = nnx_model()
    state, _ = train(create_train_state(model, SGD))
    nnx.update(model, state.params)
    np.testing.assert_allclose(model(jnp.asarray(INPUTS)), state.apply_fn(state.params, INPUTS), rtol=1e-6)


# Compilation


@pytest.fixture
def traced_loss():
    """A loss that counts its traces, and so the compilations of a step, in `loss.traces`."""

    def loss(outputs, targets, weight=None, scale=1.0):
        loss.traces += 1
        return scale * cross_entropy(outputs, targets, weight=weight)

    loss.traces = 0
    return loss


def test_steps_share_one_compilation(traced_loss):
    train(create_train_state(nnx_model(), SGD), traced_loss)
    train(create_train_state(Classifier(*SIZES, rngs=nnx.Rngs(1)), SGD), traced_loss)
    assert traced_loss.traces == 1


def test_a_weakly_typed_parameter_compiles_once(traced_loss):
    def apply(params, inputs):
        return params["temperature"] * inputs[:, :3]

    # A learned temperature, as a Python number and as a weakly typed array.
    for number in (10.0, jnp.log(10.0)):
        train(create_train_state((apply, {"temperature": number}), optax.adam(0.1)), traced_loss)
    assert traced_loss.traces == 2


def test_another_architecture_recompiles(traced_loss):
    train(create_train_state(nnx_model(), SGD), traced_loss)
    train(create_train_state(Classifier(6, 4, 3, rngs=nnx.Rngs(0)), SGD), traced_loss)
    assert traced_loss.traces == 2


def test_arrays_bound_to_a_loss_can_change_without_recompiling(traced_loss):
    values = []
    for weight in np.eye(3, dtype=np.float32):
        state = create_train_state(nnx_model(), SGD)
        _, value = train_step(state, INPUTS, TARGETS, loss=Partial(traced_loss, weight=weight))
        values.append(value)
    assert traced_loss.traces == 1
    logits = nnx_model()(jnp.asarray(INPUTS))
    expected = [cross_entropy(logits, TARGETS, weight=weight) for weight in np.eye(3, dtype=np.float32)]
    np.testing.assert_allclose(values, expected, rtol=1e-6)


def test_a_functools_partial_may_be_a_loss(traced_loss):
    loss = functools.partial(traced_loss, scale=2.0)
    _, doubled = train(create_train_state(nnx_model(), SGD), loss)
    assert traced_loss.traces == 1
    _, losses = train(create_train_state(nnx_model(), SGD), traced_loss, steps=1)
    np.testing.assert_allclose(doubled[0], 2 * losses[0], rtol=1e-6)


@pytest.mark.parametrize("bind", [lambda loss: loss, Partial, lambda loss: Partial(loss, weight=jnp.ones(3))])
def test_equal_partials_compile_once(traced_loss, bind):
    state = create_train_state(nnx_model(), SGD)
    for scale, traces in ((2.0, 1), (2.0, 1), (2, 2), (3.0, 3), (2.0, 3)):
        loss = bind(functools.partial(traced_loss, scale=scale))
        state, _ = train_step(state, INPUTS, TARGETS, loss=loss)
        assert traced_loss.traces == traces


def test_options_and_arrays_can_be_bound_together():
    weight = np.array([1, 2, 3], np.float32)
    loss = Partial(functools.partial(cross_entropy, reduction="sum", label_smoothing=0.1), weight=weight)
    _, value = train_step(create_train_state(nnx_model(), SGD), INPUTS, TARGETS, loss=loss)
    logits = nnx_model()(jnp.asarray(INPUTS))
    expected = cross_entropy(logits, TARGETS, reduction="sum", label_smoothing=0.1, weight=weight)
    np.testing.assert_allclose(value, expected, rtol=1e-6)


def test_the_step_is_a_plain_function():
    assert pickle.loads(pickle.dumps(train_step)) is train_step
    assert list(inspect.signature(train_step).parameters) == [
        "state",
        "inputs",
        "targets",
        "loss",
        "micro_batches",
        "metrics",
    ]


# Model state


class Noisy(nnx.Module):
    """Batch normalization and dropout: a model with both kinds of state."""

    def __init__(self, *, rngs):
        self.linear = nnx.Linear(6, 3, rngs=rngs)
        self.norm = nnx.BatchNorm(3, momentum=0.9, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, inputs):
        return self.dropout(self.norm(self.linear(inputs)))


def test_batch_statistics_equal_those_of_the_module():
    model, again = Noisy(rngs=nnx.Rngs(0)), Noisy(rngs=nnx.Rngs(0))
    state, _ = train(create_train_state(model, ZERO_RATE))
    for _ in range(3):
        again(jnp.asarray(INPUTS))
    assert_trees_close(
        state.model_state["norm"], nnx.to_pure_dict(nnx.state(again.norm, nnx.BatchStat)), 1e-5
    )
    assert np.all(state.model_state["norm"]["mean"] != 0)


def test_dropout_differs_per_step_and_is_reproducible_per_seed():
    def losses(seed):
        return train(create_train_state(Noisy(rngs=nnx.Rngs(seed)), ZERO_RATE), steps=5)[1]

    assert len(set(losses(0).tolist())) == 5
    np.testing.assert_array_equal(losses(0), losses(0))
    assert not np.array_equal(losses(0), losses(1))


def test_trained_parameters_and_model_state_update_the_module():
    model = Noisy(rngs=nnx.Rngs(0))
    state, _ = train(create_train_state(model, SGD))
    nnx.update(model, state.params, state.model_state)
    model.eval()
    params, norm = jax.device_get((state.params, state.model_state["norm"]))
    linear = INPUTS @ params["linear"]["kernel"] + params["linear"]["bias"]
    expected = (linear - norm["mean"]) / np.sqrt(norm["var"] + 1e-5) * params["norm"]["scale"]
    np.testing.assert_allclose(
        model(jnp.asarray(INPUTS)), expected + params["norm"]["bias"], rtol=1e-4, atol=1e-6
    )


class NoisyLinen(linen.Module):
    """The same model in Linen."""

    @linen.compact
    def __call__(self, inputs):
        outputs = linen.BatchNorm(use_running_average=False)(linen.Dense(3)(inputs))
        return linen.Dropout(0.5, deterministic=False)(outputs)


def test_a_linen_model_keeps_its_statistics_and_dropout_key():
    module = NoisyLinen()
    variables = module.init(jax.random.key(0), INPUTS)

    def apply_fn(params, model_state, inputs):
        key, dropout = jax.random.split(model_state["dropout"])
        variables = {"params": params, "batch_stats": model_state["batch_stats"]}
        outputs, updates = module.apply(variables, inputs, rngs={"dropout": dropout}, mutable=["batch_stats"])
        return outputs, {"dropout": key, **updates}

    model_state = {"batch_stats": variables["batch_stats"], "dropout": jax.random.key(1)}
    state = create_train_state((apply_fn, variables["params"], model_state), ZERO_RATE)
    state, losses = train(state, steps=5)
    assert len(set(losses.tolist())) == 5
    assert np.all(state.model_state["batch_stats"]["BatchNorm_0"]["mean"] != 0)
    assert_trees_close(state.params, variables["params"], rtol=0)


# Errors


@pytest.mark.parametrize(
    "model",
    [
        Classifier,
        linen.Dense(3),
        {"w": 1.0},
        ({"w": 1.0}, lambda params, inputs: inputs),
        (lambda params, inputs: inputs,),
    ],
)
def test_an_invalid_model_raises(model):
    with pytest.raises(
        TypeError, match=r"model must be a Flax NNX module, a pair \(apply_fn, params\) or.*; got "
    ):
        create_train_state(model, SGD)


def test_a_linen_module_in_place_of_its_apply_function_raises():
    module = linen.Dense(3)
    with pytest.raises(TypeError, match=r"pass a Linen module as .*, got the module itself"):
        create_train_state((module, module.init(jax.random.key(0), INPUTS)), SGD)


def test_an_nnx_module_paired_with_parameters_raises():
    with pytest.raises(TypeError, match=r"pass an NNX module alone, .*; got a tuple that contains it"):
        create_train_state((nnx_model(), {}), SGD)


@pytest.mark.parametrize(
    ("params", "named"),
    [
        ({"w": jnp.ones(2), "n": jnp.arange(3)}, r"Array\(\[0, 1, 2\].* for params\['n'\]"),
        ([jnp.ones(2), jnp.dot], r"for params\[1\]"),
        ("text", r"'text' for params$"),
        ({"w": jnp.ones(2, complex)}, r"for params\['w'\]; store real and imaginary parts separately"),
    ],
)
def test_parameters_that_cannot_be_trained_raise(params, named):
    with pytest.raises(TypeError, match=f"params must hold only floating-point arrays, got .*{named}"):
        create_train_state((lambda params, inputs: inputs, params), SGD)


def test_linen_variables_with_other_collections_raise():
    module = linen.BatchNorm(use_running_average=True)
    variables = module.init(jax.random.key(0), INPUTS)
    with pytest.raises(
        TypeError, match=r'variables that include batch_stats; pass \(apply_fn, variables\["params"\]'
    ):
        create_train_state((module.apply, variables), SGD)
    create_train_state((module.apply, {"params": variables["params"]}), SGD)


def test_an_eval_fn_that_is_not_callable_raises():
    with pytest.raises(TypeError, match="eval_fn must be callable, got 3"):
        create_train_state(nnx_model(), SGD, eval_fn=3)


@pytest.mark.parametrize("optimizer", [optax.sgd, None, nnx.Optimizer(nnx_model(), SGD, wrt=nnx.Param)])
def test_an_invalid_optimizer_raises(optimizer):
    with pytest.raises(TypeError, match=r"must be an Optax optimizer, such as optax.sgd\(0.01\); got "):
        create_train_state(nnx_model(), optimizer)


@pytest.mark.parametrize(
    "use",
    [
        functools.partial(train_step, inputs=INPUTS, targets=TARGETS, loss=cross_entropy),
        functools.partial(
            train_epoch,
            inputs=INPUTS,
            targets=TARGETS,
            loss=cross_entropy,
            batch_size=8,
            key=jax.random.key(0),
        ),
        functools.partial(evaluate, inputs=INPUTS, targets=TARGETS, loss=cross_entropy, batch_size=8),
        functools.partial(shard_train_state, mesh=jax.make_mesh((1,), ("data",), (AxisType.Auto,))),
        lambda state: read_losses([], state, loss=cross_entropy),
    ],
    ids=["train_step", "train_epoch", "evaluate", "shard_train_state", "read_losses"],
)
def test_a_state_that_is_not_a_train_state_raises(use):
    for other in (nnx_model(), (create_train_state(nnx_model(), SGD), jnp.float32(1))):
        with pytest.raises(
            TypeError, match="state must be a TrainState, as returned by create_train_state; got"
        ):
            use(other)


@pytest.mark.parametrize("mesh", ["data", None, jax.devices()])
def test_a_mesh_that_is_not_a_mesh_raises(mesh):
    for use in (shard_train_state, functools.partial(shard_batch, axis="data")):
        with pytest.raises(TypeError, match=r"mesh must be a jax.sharding.Mesh, as returned by .*; got "):
            use(create_train_state(nnx_model(), SGD), mesh)


def test_a_loss_that_is_not_a_scalar_raises():
    loss = functools.partial(cross_entropy, reduction="none")
    with pytest.raises(ValueError, match=r"loss must return a scalar.*; got shape \(8,\)"):
        train_step(create_train_state(nnx_model(), SGD), INPUTS, TARGETS, loss=loss)


@pytest.mark.parametrize(
    ("value", "error", "message"),
    [
        (jnp.int32(1), ValueError, "loss must return a floating-point number.*; got int32"),
        ((jnp.int32(1), jnp.int32(2)), ValueError, "loss must return a floating-point number.*; got int32"),
        (1j, TypeError, r"loss\(outputs, targets\) must be an array, got complex"),
        ("text", TypeError, r"loss\(outputs, targets\) must be an array, got str"),
        (None, ValueError, "loss must return a scalar.*; got shape None"),
        ((), ValueError, r"loss must return a scalar.*; got shape \(\)"),
    ],
)
def test_a_loss_that_is_not_differentiable_raises(value, error, message):
    with pytest.raises(error, match=message):
        train_step(create_train_state(nnx_model(), SGD), INPUTS, TARGETS, loss=lambda *_: value)


def test_a_donated_state_raises(capfd):
    state = create_train_state(nnx_model(), SGD)
    train_step(state, INPUTS, TARGETS, loss=cross_entropy)
    data = {"inputs": INPUTS, "targets": TARGETS, "loss": cross_entropy}
    for use in (
        functools.partial(train_step, **data),
        functools.partial(train_epoch, **data, batch_size=4, key=jax.random.key(0)),
        functools.partial(evaluate, **data, batch_size=4),
        functools.partial(shard_train_state, mesh=jax.make_mesh((1,), ("data",), (AxisType.Auto,))),
    ):
        with pytest.raises(ValueError, match="state was donated to an earlier train_step, which deleted its"):
            use(state)
    assert "donate" not in capfd.readouterr().err  # otherwise XLA would log its own error first


def test_an_error_inside_a_running_step_propagates():
    def fail(value):
        raise RuntimeError("the sensor is broken")

    def loss(outputs, targets):
        return jax.pure_callback(fail, jax.ShapeDtypeStruct((), jnp.float32), jnp.mean(outputs))

    def stopped(outputs, targets):
        return cross_entropy(outputs, targets) + loss(jax.lax.stop_gradient(outputs), targets)

    state = create_train_state(nnx_model(), SGD)
    with pytest.raises(RuntimeError, match="the sensor is broken"):
        jax.block_until_ready(train_step(state, INPUTS, TARGETS, loss=stopped))


def test_a_loss_that_is_not_callable_raises():
    with pytest.raises(TypeError, match=r"loss must be a callable.*; got 'cross_entropy'"):
        train_step(create_train_state(nnx_model(), SGD), INPUTS, TARGETS, loss="cross_entropy")


def test_an_apply_fn_that_does_not_return_its_state_raises():
    state = create_train_state((lambda params, model_state, inputs: inputs, 1.0, jnp.zeros(())), SGD)
    with pytest.raises(TypeError, match=r"apply_fn must return a pair \(outputs, model_state\) .*; got a "):
        train_step(state, INPUTS[:2], TARGETS[:2], loss=cross_entropy)
