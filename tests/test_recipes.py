"""The recipes in examples/README.md print what they say, and compute what they are meant to."""

import re
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxloss import binary_cross_entropy_with_logits, mse_loss
from jaxloss.training import evaluate, train_epoch, train_step
from tests.test_documentation import ROOT, blocks, run_and_compare

_, RECIPES = (ROOT / "examples" / "README.md").read_text(encoding="utf-8").split("\n## Recipes\n")
SECTIONS = re.findall(r"^### (.*?)\n(.*?)(?=^### |\Z)", RECIPES, re.MULTILINE | re.DOTALL)
BLOCKS = [pytest.param(title, code, id=title) for title, text in SECTIONS for code in blocks("python", text)]


def equal(found, expected):
    return all(jax.tree.leaves(jax.tree.map(np.array_equal, found, expected)))


def linear(params):
    return np.float64(params["linear"]["kernel"]), np.float64(params["linear"]["bias"])


def after_sgd(kernel, bias, inputs, targets, decay=0.0):
    """Returns a linear regression after a step of learning rate 0.1, computed by NumPy."""
    error = 2 * (inputs @ kernel + bias - targets) / len(inputs)
    return kernel - 0.1 * (inputs.T @ error + decay * kernel), bias - 0.1 * error.sum(axis=0)


def check_average(block):
    if hasattr(block, "average_params"):
        updates, average = block.average_params(decay=0.75).update(
            jnp.array(2.0), jnp.array(1.0), jnp.array(3.0)
        )
        assert (updates, average) == (2.0, 0.75 * 1 + 0.25 * 5)
        return
    kernel, bias = np.float64(block.model.linear.kernel), np.float64(block.model.linear.bias)
    average = kernel
    for inputs, targets in zip(block.inputs, block.targets, strict=True):
        kernel, bias = after_sgd(kernel, bias, np.float64(inputs), targets)
        average = 0.98 * average + 0.02 * kernel
    np.testing.assert_allclose(block.average["linear"]["kernel"], average, atol=1e-5)


def check_penalty(block):
    inputs, targets = block.inputs, block.inputs[:, :1]
    start = jax.tree.map(jnp.ones_like, block.state.params)
    expected = after_sgd(*linear(start), np.float64(inputs), np.float64(targets), decay=0.02)
    for state, loss in ((block.state, block.penalized), (block.decayed, mse_loss)):
        state = state.replace(params=jax.tree.map(jnp.copy, start))
        error = evaluate(state, inputs, targets, loss=squared_error, batch_size=64)
        np.testing.assert_allclose(error, np.mean((inputs.sum(axis=1) + 1 - inputs[:, 0]) ** 2), rtol=1e-4)
        state, _ = train_step(state, inputs, targets, loss=loss)
        for found, right in zip(linear(state.params), expected, strict=True):
            np.testing.assert_allclose(found, right, atol=1e-5)


def squared_error(outputs, targets):
    return mse_loss(outputs, targets, reduction="sum_and_weight")


def check_gan(block):
    # Copies: an array that NumPy looks into is not donated.
    critic, generator = (jax.tree.map(np.array, state.params) for state in (block.critic, block.generator))
    data = (block.noise, block.critic.params), block.is_real[:64]
    with jax.no_tracing():
        state, _ = train_step(block.generator, *data, loss=binary_cross_entropy_with_logits)
    assert equal(block.critic.params, critic)
    assert not equal(state.params, generator)
    assert jnp.isfinite(block.trained(block.noise)).all()  # though the arrays of the state are deleted


def check_learning_rate(block):
    before = jax.tree.map(np.array, block.state.params)
    opt_state = optax.tree.set(block.state.opt_state, learning_rate=jnp.float32(0))
    with jax.no_tracing():
        state, _ = train_step(
            block.state.replace(opt_state=opt_state), block.inputs, block.inputs[:, :1], loss=mse_loss
        )
    assert equal(state.params, before)


def check_plateau(block):
    _, before = block.state.opt_state
    state, _ = train_epoch(
        block.state, block.inputs, block.targets, loss=mse_loss, batch_size=30, key=jax.random.key(0)
    )
    assert equal(state.opt_state[1], before)  # training losses do not count
    updates, _ = block.optimizer.update(block.state.params, block.state.opt_state, block.state.params)
    adam, _ = optax.adam(0.1).update(block.state.params, block.state.opt_state[0], block.state.params)
    assert before.scale < 0.1
    assert optax.tree.allclose(updates, optax.tree.scale(before.scale, adam))


def check_float16(block):
    params, inputs, labels = {"bias": jnp.array([0.0, 20.0])}, jnp.ones((1, 2)), jnp.array([1])

    def after_step(scale):
        model = (lambda params, inputs: params["bias"][None, :] * inputs, params)
        state = block.create_train_state(model, optax.sgd(1.0), compute_dtype=jnp.float16)
        state, scale, value = block.step(state, block.DynamicScale(scale=scale), inputs, labels)
        assert jnp.isfinite(value)
        return state, scale.scale

    gradient = 1 / (1 + np.exp(20))
    state, _ = after_step(1.0)
    assert state.params["bias"][0] == 0  # float16 has no such small number
    state, scale = after_step(2.0**16)
    np.testing.assert_allclose(state.params["bias"][0], -gradient, rtol=1e-3)
    assert scale == 2.0**16
    state, scale = after_step(2.0**60)
    assert equal(state.params, params)
    assert (state.step, scale) == (1, 2.0**59)


def check_metrics(block):
    is_valid = np.asarray(block.labels) != -100
    logits = np.float64(block.state.apply_fn(block.state.params, block.inputs))[is_valid]
    labels = np.asarray(block.labels)[is_valid]
    own = np.take_along_axis(logits, labels[:, None], axis=-1)
    log_probs = own[:, 0] - np.log(np.exp(logits).sum(axis=-1))
    np.testing.assert_allclose(block.perplexity, np.exp(-log_probs.mean()), rtol=1e-4)
    top_5 = ((logits > own).sum(axis=-1) < 5).mean()
    np.testing.assert_allclose(block.measured["top_5"], top_5, rtol=1e-6)


def check_vae(block):
    mean, log_variance = np.array([[0.5, -1.0]]), np.array([[0.3, -0.7]])
    z = np.linspace(-12, 12, 20001)[:, None]
    log_posterior = -0.5 * ((z - mean) ** 2 / np.exp(log_variance) + log_variance)
    divergence = np.sum(np.exp(log_posterior) * (log_posterior + z**2 / 2), axis=0)
    divergence = divergence.sum() * (z[1, 0] - z[0, 0]) / np.sqrt(2 * np.pi)
    total, weight = block.negative_elbo(
        (jnp.zeros((1, 3)), jnp.asarray(mean, "f"), jnp.asarray(log_variance, "f")), jnp.ones((1, 3))
    )
    np.testing.assert_allclose(total / weight, 3 * np.log(2) + divergence, rtol=1e-5)
    first, state = block.state.apply_fn(block.state.params, block.state.model_state, block.images)
    second, _ = block.state.apply_fn(block.state.params, state, block.images)
    assert not np.array_equal(first[0], second[0])  # other noise
    assert np.array_equal(first[1], second[1])


CHECKS = {
    "Exponential moving average of the parameters": check_average,
    "L2 and other penalties on the parameters": check_penalty,
    "Two models in turn (GAN)": check_gan,
    "Learning rate by hand": check_learning_rate,
    "Learning rate from a plateau of the validation loss": check_plateau,
    "float16 with a dynamic loss scale": check_float16,
    "Perplexity and top-k accuracy": check_metrics,
    "Variational autoencoder": check_vae,
}


@pytest.mark.parametrize(("title", "code"), BLOCKS)
def test_recipe_runs_and_prints_what_it_says(title: str, code: str, capsys: pytest.CaptureFixture[str]):
    # Steps that are written out call Optax as users do, whose code needs JAX's usual promotion of dtypes.
    with jax.numpy_dtype_promotion("standard"):
        variables = run_and_compare(code, capsys)
        if title in CHECKS:
            CHECKS[title](SimpleNamespace(**variables))


def test_table_of_contents_names_every_recipe():
    titles = [title for title, _ in SECTIONS]
    assert re.findall(r"^- \[(.*)\]\(#", RECIPES, re.MULTILINE) == titles
    assert {*CHECKS} <= {*titles}
