"""The models: shapes, sizes, and initial values, which give the same initial losses as PyTorch."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import jaxloss
from jaxloss import binary_cross_entropy_with_logits, cross_entropy, mse_loss
from jaxloss.models import AdaptiveLogSoftmax, BinaryClassifier, Classifier, LinearRegression
from jaxloss.training import create_train_state, train_step

DEFAULT_LAYERS = {
    LinearRegression: {"linear": (10, 1)},
    Classifier: {"hidden": (784, 128), "output": (128, 10)},
    BinaryClassifier: {"hidden": (20, 16), "output": (16, 1)},
}
SEEDS = range(20)


def parameters(model):
    return nnx.to_pure_dict(nnx.state(model, nnx.Param))


@pytest.mark.parametrize("model", DEFAULT_LAYERS)
def test_default_layers(model):
    assert jax.tree.map(jnp.shape, parameters(model(rngs=nnx.Rngs(0)))) == {
        name: {"kernel": shape, "bias": shape[1:]} for name, shape in DEFAULT_LAYERS[model].items()
    }


@pytest.mark.parametrize(
    ("model", "layers"),
    [
        (LinearRegression(3, 2, rngs=nnx.Rngs(0)), {"linear": (3, 2)}),
        (LinearRegression(in_features=3, out_features=2, rngs=nnx.Rngs(0)), {"linear": (3, 2)}),
        (Classifier(3, 4, 5, rngs=nnx.Rngs(0)), {"hidden": (3, 4), "output": (4, 5)}),
        (
            Classifier(in_features=3, hidden_features=4, classes=5, rngs=nnx.Rngs(0)),
            {"hidden": (3, 4), "output": (4, 5)},
        ),
        (BinaryClassifier(3, 4, rngs=nnx.Rngs(0)), {"hidden": (3, 4), "output": (4, 1)}),
        (
            BinaryClassifier(in_features=3, hidden_features=4, rngs=nnx.Rngs(0)),
            {"hidden": (3, 4), "output": (4, 1)},
        ),
    ],
)
def test_sizes_are_arguments(model, layers):
    shapes = jax.tree.map(jnp.shape, parameters(model))
    assert {name: layer["kernel"] for name, layer in shapes.items()} == layers
    assert model(jnp.ones((2, 7, 3))).shape == (2, 7, *list(layers.values())[-1][1:])


@pytest.mark.parametrize("model", DEFAULT_LAYERS)
def test_outputs_equal_dense_layers_with_relu_between(model):
    model = model(rngs=nnx.Rngs(0))
    layers = jax.tree.map(np.asarray, list(parameters(model).values()))
    inputs = np.random.RandomState(0).normal(size=(5, layers[0]["kernel"].shape[0])).astype(np.float32)
    expected = inputs @ layers[0]["kernel"] + layers[0]["bias"]
    for layer in layers[1:]:
        expected = np.maximum(expected, 0) @ layer["kernel"] + layer["bias"]
    np.testing.assert_allclose(model(jnp.asarray(inputs)), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("model", DEFAULT_LAYERS)
@pytest.mark.parametrize("kind", ["kernel", "bias"])
def test_initial_values_are_uniform_within_the_bound_of_fan_in(model, kind):
    for layer, (fan_in, _) in DEFAULT_LAYERS[model].items():
        values = np.stack([parameters(model(rngs=nnx.Rngs(seed)))[layer][kind] for seed in SEEDS])
        unit = (values * np.sqrt(fan_in)).ravel()
        assert np.abs(unit).max() <= 1 + 1e-6
        # The largest distance from the uniform distribution on [-1, 1] is below 2/√n with probability 0.999.
        expected = (np.sort(unit) + 1) / 2
        assert np.abs(expected - np.linspace(0, 1, unit.size)).max() < 2 / np.sqrt(unit.size) + 1 / unit.size


def test_layers_and_seeds_differ():
    first, second = (parameters(Classifier(5, 5, 5, rngs=nnx.Rngs(seed))) for seed in (0, 1))
    assert not np.array_equal(first["hidden"]["kernel"], first["output"]["kernel"])
    assert not np.array_equal(first["hidden"]["kernel"], second["hidden"]["kernel"])
    again = parameters(Classifier(5, 5, 5, rngs=nnx.Rngs(0)))
    jax.tree.map(np.testing.assert_array_equal, first, again)


def first_loss(model, criterion, batch_size, targets, seed):
    rngs = nnx.Rngs(seed)
    model = model(rngs=rngs)
    (fan_in, _), *_ = DEFAULT_LAYERS[type(model)].values()
    return criterion(model(jax.random.normal(rngs(), (batch_size, fan_in))), targets(rngs()))


@pytest.mark.parametrize(
    ("model", "criterion", "batch_size", "targets", "level", "tolerance"),
    [
        # Variance of the targets, plus that of a model with weights of variance 1/30: 1 + 10/30 + 1/30.
        (LinearRegression, mse_loss, 32, lambda key: jax.random.normal(key, (32, 1)), 1.37, 0.3),
        (Classifier, cross_entropy, 64, lambda key: jax.random.randint(key, (64,), 0, 10), np.log(10), 0.05),
        (
            BinaryClassifier,
            binary_cross_entropy_with_logits,
            16,
            lambda key: jax.random.bernoulli(key, shape=(16, 1)).astype(jnp.float32),
            np.log(2),
            0.02,
        ),
    ],
)
def test_initial_losses_are_those_of_pytorch(model, criterion, batch_size, targets, level, tolerance):
    losses = [first_loss(model, criterion, batch_size, targets, seed) for seed in SEEDS]
    assert abs(np.mean(losses) - level) < tolerance


CUTOFFS = (5, 20)


@pytest.mark.parametrize("leading", [(), (8,), (2, 3)])
def test_adaptive_log_softmax_layer_equals_the_functions(leading):
    layer = AdaptiveLogSoftmax(16, 50, list(CUTOFFS), 2.0, head_bias=True, rngs=nnx.Rngs(0))
    hidden = jax.random.normal(jax.random.key(0), (*leading, 16))
    labels = jax.random.randint(jax.random.key(1), leading, 0, 50)
    where = labels % 2 == 0
    log_probs = layer(hidden)
    assert log_probs.shape == (*leading, 50)
    np.testing.assert_array_equal(layer.predict(hidden), jnp.argmax(log_probs, -1))
    for options in ({}, {"where": where, "reduction": "sum"}, {"reduction": "none"}):
        expected = jaxloss.nll_loss(log_probs, labels, **options)
        np.testing.assert_allclose(layer.loss(hidden, labels, **options), expected, rtol=1e-5)


def test_adaptive_log_softmax_layer_holds_the_parameters_of_the_function():
    layer = AdaptiveLogSoftmax(16, 50, CUTOFFS, rngs=nnx.Rngs(0))
    assert jax.tree.map(jnp.shape, layer.params) == {
        "head": {"kernel": (16, 7)},
        "tail": {0: {"down": (16, 4), "up": (4, 15)}, 1: {"down": (16, 1), "up": (1, 30)}},
    }
    assert jax.tree.map(jnp.shape, parameters(layer)) == jax.tree.map(jnp.shape, layer.params)
    hidden, labels = jnp.ones((3, 16)), jnp.array([0, 5, 49])
    gradient = nnx.grad(lambda layer: layer.loss(hidden, labels))(layer)
    expected = jax.grad(jaxloss.adaptive_log_softmax, 1)(hidden, layer.params, labels, cutoffs=CUTOFFS)
    jax.tree.map(np.testing.assert_array_equal, nnx.to_pure_dict(gradient), expected)


class _ReturnsHidden(nnx.Module):
    """Returns its last hidden features and the parameters of the last layer, for the loss."""

    def __init__(self, *, rngs):
        self.body = LinearRegression(4, 16, rngs=rngs)
        self.layer = AdaptiveLogSoftmax(16, 50, CUTOFFS, rngs=rngs)

    def __call__(self, inputs):
        return self.body(inputs), self.layer.params


class _ReturnsLogProbs(_ReturnsHidden):
    """Returns the log-probabilities of all classes."""

    def __call__(self, inputs):
        return self.layer(self.body(inputs))


def _loss_of_hidden(outputs, targets):
    return jaxloss.adaptive_log_softmax(*outputs, targets, cutoffs=CUTOFFS)


def test_training_with_hidden_features_equals_training_with_all_log_probs():
    inputs = jax.random.normal(jax.random.key(0), (32, 4))
    labels = jax.random.randint(jax.random.key(1), (32,), 0, 50)
    values = []
    for model, loss in ((_ReturnsHidden, _loss_of_hidden), (_ReturnsLogProbs, jaxloss.nll_loss)):
        state = create_train_state(model(rngs=nnx.Rngs(0)), optax.adam(0.03))
        for _ in range(30):
            state, value = train_step(state, inputs, labels, loss=loss)
        values.append(value)
    np.testing.assert_allclose(*values, rtol=1e-3)
    assert values[0] < 0.6 * np.log(50)
