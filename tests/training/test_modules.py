"""Modules with several arguments, sown variables, partial training, and FP8 layers."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen, nnx, struct
from flax.training import train_state

from jaxloss import cross_entropy, mse_loss
from jaxloss.training import Checkpoints, create_train_state, evaluate, train_epoch, train_step

SGD = optax.sgd(0.1)
ADAM = optax.adam(0.1)
X = np.random.RandomState(0).normal(size=(8, 6)).astype(np.float32)
LABELS = np.arange(8) % 3


def pair(outputs, targets):
    return mse_loss(outputs, targets, reduction="sum_and_weight")


def train(state, inputs=X, targets=LABELS, loss=cross_entropy, steps=3, **options):
    for _ in range(steps):
        state, value = train_step(state, inputs, targets, loss=loss, **options)
    return state, value


# Several arguments


class TwoArguments(nnx.Module):
    def __init__(self, *, rngs):
        self.linear = nnx.Linear(6, 3, rngs=rngs)

    def __call__(self, x, scale):
        return self.linear(x) * scale


class LinenTwoArguments(linen.Module):
    @linen.compact
    def __call__(self, x, scale=None):
        return linen.Dense(3)(x) * scale


class OneArgument(nnx.Module):
    """A module whose only argument is a tuple or a dict."""

    def __init__(self, *, rngs):
        self.linear = nnx.Linear(6, 3, rngs=rngs)

    def __call__(self, batch, *, unused=None):
        x, scale = batch.values() if isinstance(batch, dict) else batch
        return self.linear(x) * scale


def linen_two_arguments():
    module = LinenTwoArguments()
    return module.apply, module.init(jax.random.key(0), X, X[:, :3])


SCALE = np.full((8, 3), 2.0, np.float32)


@pytest.mark.parametrize("inputs", [(X, SCALE), {"x": X, "scale": SCALE}, {"scale": SCALE, "x": X}])
@pytest.mark.parametrize("model", [lambda: TwoArguments(rngs=nnx.Rngs(0)), linen_two_arguments])
def test_inputs_are_spread_over_the_arguments_of_a_module(model, inputs):
    state = create_train_state(model(), SGD)
    kernel = np.asarray(jax.tree.leaves(state.params)[-1])
    targets = np.zeros((8, 3), np.float32)
    _, value = train_step(jax.tree.map(jnp.copy, state), inputs, targets, loss=mse_loss)
    np.testing.assert_allclose(value, np.mean((X @ kernel * 2) ** 2), rtol=1e-5)
    parts = train_step(jax.tree.map(jnp.copy, state), inputs, targets, loss=pair, micro_batches=2)
    np.testing.assert_allclose(parts[1], value, rtol=1e-5)
    np.testing.assert_allclose(evaluate(state, inputs, targets, loss=pair, batch_size=3), value, rtol=1e-5)


@pytest.mark.parametrize("inputs", [(X, SCALE), {"a": X, "b": SCALE}])
def test_a_module_of_one_argument_receives_the_pytree(inputs):
    _, value = train(create_train_state(OneArgument(rngs=nnx.Rngs(0)), SGD), inputs)
    assert np.isfinite(value)
    _, value = train(
        create_train_state(nnx.Sequential(OneArgument(rngs=nnx.Rngs(0))), SGD), {"a": X, "b": SCALE}
    )
    assert np.isfinite(value)


# Variables that are created while the model runs


class WithSownVariables(nnx.Module):
    def __init__(self, *, rngs):
        self.linear = nnx.Linear(6, 3, rngs=rngs)
        self.norm = nnx.BatchNorm(3, rngs=rngs)

    def __call__(self, x):
        outputs = self.norm(self.linear(x))
        self.sow(nnx.Intermediate, "outputs", outputs)
        self.perturbed = nnx.Intermediate(outputs.sum())
        return outputs


@pytest.mark.filterwarnings("ignore:Using 'Module.sow:DeprecationWarning")
@pytest.mark.parametrize("has_run", [False, True])
def test_sown_variables_do_not_break_training(has_run):
    model = WithSownVariables(rngs=nnx.Rngs(0))
    if has_run:
        model(jnp.asarray(X))
    state = create_train_state(model, SGD)
    names = set(state.model_state)
    state, _ = train(state)
    assert set(state.model_state) == names == {"norm"}
    assert np.all(state.model_state["norm"]["mean"] != 0)
    state, _ = train_epoch(state, X, LABELS, loss=cross_entropy, batch_size=4, key=jax.random.key(0))
    assert hasattr(model, "perturbed") is has_run  # the caller's module is unchanged


# Training a part of a model


class WithLoRA(nnx.Module):
    def __init__(self, *, rngs):
        self.linear = nnx.LoRALinear(6, 3, lora_rank=2, rngs=rngs)
        self.norm = nnx.BatchNorm(3, rngs=rngs)

    def __call__(self, x):
        return self.norm(self.linear(x))


def test_only_variables_selected_by_wrt_are_trained(tmp_path):
    model = WithLoRA(rngs=nnx.Rngs(0))
    before = jax.device_get(nnx.to_pure_dict(nnx.state(model, nnx.Not(nnx.LoRAParam))))
    state = create_train_state(model, ADAM, wrt=nnx.LoRAParam)
    assert {array.shape for array in jax.tree.leaves(state.params)} == {(6, 2), (2, 3)}
    assert len(jax.tree.leaves(state.opt_state)) == 1 + 2 * len(jax.tree.leaves(state.params))
    first = evaluate(state, X, SCALE, loss=pair, batch_size=8)
    state, _ = train(state)
    frozen = state.model_state["linear"]
    np.testing.assert_array_equal(frozen["kernel"], before["linear"]["kernel"])
    assert np.all(state.model_state["norm"]["mean"] != before["norm"]["mean"])
    assert evaluate(state, X, SCALE, loss=pair, batch_size=8) != first
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state)
        restored = checkpoints.restore(create_train_state(model, ADAM, wrt=nnx.LoRAParam))
    jax.tree.map(np.testing.assert_array_equal, restored, state)
    nnx.update(model, state.params, state.model_state)
    np.testing.assert_array_equal(model.linear.kernel[...], before["linear"]["kernel"])


def test_training_a_part_of_the_parameters_equals_nnx():
    model, again = WithLoRA(rngs=nnx.Rngs(0)), WithLoRA(rngs=nnx.Rngs(0))
    filters = nnx.All(nnx.Param, nnx.PathContains("norm"))
    state, _ = train(create_train_state(model, SGD, wrt=filters))
    optimizer = nnx.Optimizer(again, SGD, wrt=filters)
    for _ in range(3):
        gradients = nnx.grad(
            lambda m: cross_entropy(m(jnp.asarray(X)), LABELS), argnums=nnx.DiffState(0, filters)
        )(again)
        optimizer.update(again, gradients)
    expected = nnx.to_pure_dict(nnx.state(again, filters))
    jax.tree.map(lambda a, e: np.testing.assert_allclose(a, e, rtol=1e-5), state.params, expected)


def test_a_wrt_filter_without_variables_or_module_raises():
    model = TwoArguments(rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match=r"wrt must select variables of the model, .*, which selects none"):
        create_train_state(model, SGD, wrt=nnx.LoRAParam)
    with pytest.raises(ValueError, match=r"wrt selects variables of an NNX module; .* optax.partition"):
        create_train_state((jnp.multiply, jnp.ones(3)), SGD, wrt=nnx.LoRAParam)


# FP8 layers, whose scales are overwritten instead of optimized


def fp8():
    module = linen.Dense(3, dot_general_cls=linen.Fp8DirectDotGeneralOp)
    return module, module.init(jax.random.key(0), X)


def test_fp8_scales_follow_flax():
    module, variables = fp8()
    flax = train_state.TrainState.create(apply_fn=module.apply, params=variables, tx=ADAM)
    state = create_train_state((module.apply, variables), ADAM)
    for _ in range(4):
        gradients = jax.grad(lambda p: cross_entropy(module.apply(p, X), LABELS))(flax.params)
        with jax.numpy_dtype_promotion("standard"):
            flax = flax.apply_gradients(grads=gradients)
        state, _ = train_step(state, X, LABELS, loss=cross_entropy)
    jax.tree.map(lambda a, e: np.testing.assert_allclose(a, e, rtol=1e-4), state.params, flax.params)
    scales = state.params["_overwrite_with_gradient"]["Fp8DirectDotGeneralOp_0"]
    assert np.count_nonzero(scales["input_amax_history"]) == 4


def test_fp8_scales_are_not_averaged_and_carry_over_between_micro_batches():
    module, variables = fp8()

    def sums(outputs, targets):
        return cross_entropy(outputs, targets, reduction="sum_and_weight")

    whole, _ = train(create_train_state((module.apply, variables), ADAM), steps=1)
    by_weight, _ = train(create_train_state((module.apply, variables), ADAM), loss=sums, steps=1)
    scales = [state.params["_overwrite_with_gradient"] for state in (whole, by_weight)]
    names = "input_amax_history", "kernel_amax_history"
    for name in names:
        np.testing.assert_array_equal(*(s["Fp8DirectDotGeneralOp_0"][name] for s in scales))
    parts, _ = train(
        create_train_state((module.apply, variables), ADAM, compute_dtype=jnp.float32),
        loss=sums,
        steps=1,
        micro_batches=2,
    )
    history = parts.params["_overwrite_with_gradient"]["Fp8DirectDotGeneralOp_0"]["input_amax_history"]
    found = sorted(history[history != 0].tolist())
    assert found == sorted(float(np.abs(X[part::2]).max()) for part in (0, 1))


def test_variables_other_than_fp8_scales_raise():
    module, variables = fp8()
    with pytest.raises(TypeError, match="Linen variables that include batch_stats"):
        create_train_state((module.apply, {**variables, "batch_stats": {}}), SGD)


# Errors


@pytest.mark.parametrize(
    "model", [TwoArguments(rngs=nnx.Rngs(0)), linen_two_arguments()[0].__self__, linen_two_arguments()]
)
def test_swapped_arguments_raise(model):
    with pytest.raises(TypeError, match=r"(?s)must be an Optax optimizer, .*takes the model first"):
        create_train_state(ADAM, model)


def test_an_optimizer_that_evaluates_the_model_raises():
    for optimizer in (optax.lbfgs(), optax.chain(optax.sgd(1.0), optax.scale_by_backtracking_linesearch(9))):
        with pytest.raises(ValueError, match=r"must not evaluate the model, .*; pass linesearch=None, or"):
            create_train_state(TwoArguments(rngs=nnx.Rngs(0)), optimizer)
    state = create_train_state(TwoArguments(rngs=nnx.Rngs(0)), optax.lbfgs(1e-2, linesearch=None))
    assert np.isfinite(train(state, (X, SCALE))[1])


@pytest.mark.parametrize("bound", [jnp.ones(3), np.ones(3)])
def test_an_unhashable_loss_that_holds_arrays_raises(bound):
    for decorate in (struct.dataclass, dataclasses.dataclass(frozen=True), dataclasses.dataclass):

        class Weighted:
            weight: jax.Array

            def __call__(self, outputs, targets):
                return cross_entropy(outputs, targets, weight=self.weight)

        loss = decorate(Weighted)(bound)
        with pytest.raises(TypeError, match=r"loss must be hashable, got a Weighted, .*Partial"):
            train_step(create_train_state(TwoArguments(rngs=nnx.Rngs(0)), SGD), (X, SCALE), LABELS, loss=loss)
