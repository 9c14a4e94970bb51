"""Adaptive log-softmax, beyond the catalogue: definition, prediction, memory, errors, initialization."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import checkify

import jaxloss
from tests import torch_oracle

CUTOFFS = (3, 7)


def draw(
    *leading: int, cutoffs: tuple[int, ...] = CUTOFFS, classes: int = 12, dtype: Any = float
) -> dict[str, Any]:
    """Returns hidden features, parameters with a bias, and labels."""
    keys = jax.random.split(jax.random.key(0), 3)
    params = jaxloss.init_adaptive_log_softmax(keys[0], 5, classes, cutoffs, 2.0, head_bias=True)
    hidden = 3 * jax.random.normal(keys[1], (*leading, 5))
    return {
        "hidden": hidden.astype(dtype),
        "params": jax.tree.map(lambda array: (2 * array).astype(dtype), params),
        "targets": jax.random.randint(keys[2], leading, 0, classes),
    }


def loss(arguments: dict[str, Any], **options: Any) -> jax.Array:
    return jaxloss.adaptive_log_softmax(**arguments, **{"cutoffs": CUTOFFS, **options})


def loss_of_position(hidden: np.ndarray, params: Any, label: int) -> float:
    """Returns the loss of one position, from its definition."""

    def neg_log_softmax(scores: np.ndarray, chosen: int) -> float:
        return np.log(np.exp(scores).sum()) - scores[chosen]

    scores = hidden @ params["head"]["kernel"] + params["head"]["bias"]
    if label < 3:
        return neg_log_softmax(scores, label)
    tail, first = (0, 3) if label < 7 else (1, 7)
    layers = params["tail"][tail]
    within_tail = hidden @ layers["down"] @ layers["up"]
    return neg_log_softmax(scores, 3 + tail) + neg_log_softmax(within_tail, label - first)


def test_losses_equal_the_definition_for_any_leading_axes():
    with jax.enable_x64(True):
        arguments = draw(2, 3)
        hidden, params, labels = jax.tree.map(np.asarray, tuple(arguments.values()))
        expected = [
            [loss_of_position(hidden[i, j], params, labels[i, j]) for j in range(3)] for i in range(2)
        ]
        np.testing.assert_allclose(loss(arguments, reduction="none"), expected, rtol=1e-12)


def test_log_probs_equal_minus_the_loss_of_every_class():
    with jax.enable_x64(True):
        arguments = draw(2, 3)
        hidden, params = arguments["hidden"], arguments["params"]
        log_probs = jaxloss.adaptive_log_probs(hidden, params, cutoffs=CUTOFFS)
        labels = jnp.broadcast_to(jnp.arange(12), (2, 3, 12))
        everywhere = jnp.broadcast_to(hidden[:, :, None], (2, 3, 12, 5))
        losses = loss({"hidden": everywhere, "params": params, "targets": labels}, reduction="none")
        np.testing.assert_allclose(log_probs, -losses, rtol=1e-12, atol=1e-15)
        np.testing.assert_allclose(jnp.sum(jnp.exp(log_probs), -1), np.ones((2, 3)), rtol=1e-12)


def test_prediction_is_the_most_likely_class():
    arguments = draw(200)
    hidden, params = arguments["hidden"], arguments["params"]
    predicted = jaxloss.adaptive_predict(hidden, params, cutoffs=CUTOFFS)
    log_probs = jaxloss.adaptive_log_probs(hidden, params, cutoffs=CUTOFFS)
    np.testing.assert_array_equal(predicted, jnp.argmax(log_probs, -1), strict=True)
    assert {0, 1, 2} < {*np.asarray(predicted).tolist()}
    assert max(predicted) >= 7


def test_predict_returns_the_first_of_equal_classes_even_outside_the_likeliest_tail():
    params = jaxloss.init_adaptive_log_softmax(jax.random.key(0), 4, 9, (3,), head_bias=True)
    hidden = jnp.zeros((2, 4))
    assert jaxloss.adaptive_predict(
        hidden, params | {"head": {**params["head"], "bias": jnp.array([0.0, 1.0, 1.0, 2.0])}}, cutoffs=(3,)
    ).tolist() == [1, 1]


def test_predict_can_be_called_in_a_differentiated_function():
    arguments = draw(4)

    def loss_and_hits(hidden: jax.Array) -> tuple[jax.Array, jax.Array]:
        predicted = jaxloss.adaptive_predict(hidden, arguments["params"], cutoffs=CUTOFFS)
        return loss({**arguments, "hidden": hidden}), predicted == arguments["targets"]

    gradient, hits = jax.grad(loss_and_hits, has_aux=True)(arguments["hidden"])
    assert gradient.shape == (4, 5)
    assert hits.shape == (4,)


# More classes than one block holds.


@pytest.mark.slow
@pytest.mark.parametrize(("cutoffs", "classes"), [((6,), 9000), ((5000, 5010), 5020)], ids=["tail", "head"])
def test_looping_over_classes_equals_the_plain_form(cutoffs: tuple[int, ...], classes: int):
    with jax.enable_x64(True):
        arguments = draw(4, cutoffs=cutoffs, classes=classes)
        labels = jnp.array([0, cutoffs[0] - 1, cutoffs[0], classes - 1])
        moved = {name: arguments[name] for name in ("hidden", "params")}
        direction = jax.tree.map(lambda array: jnp.cos(jnp.arange(array.size)).reshape(array.shape), moved)

        def looped(moved: dict[str, Any]) -> jax.Array:
            return loss({**moved, "targets": labels}, cutoffs=cutoffs)

        def whole(moved: dict[str, Any]) -> jax.Array:
            return jaxloss.nll_loss(jaxloss.adaptive_log_probs(**moved, cutoffs=cutoffs), labels)

        @jax.jit
        def derivatives(moved: dict[str, Any]) -> Any:
            return [(f(moved), *jax.jvp(jax.grad(f), (moved,), (direction,))) for f in (looped, whole)]

        ours, expected = derivatives(moved)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-12), ours, expected)


def test_the_scores_of_all_classes_are_never_materialized():
    positions, classes, cutoffs = 512, 60_000, (1000, 10_000)
    params = jax.eval_shape(
        lambda key: jaxloss.init_adaptive_log_softmax(key, 64, classes, cutoffs), jax.random.key(0)
    )
    arguments = {
        "hidden": jax.ShapeDtypeStruct((positions, 64), jnp.float32),
        "params": params,
        "targets": jax.ShapeDtypeStruct((positions,), jnp.int32),
    }

    def value_and_gradients(arguments: dict[str, Any]) -> Any:
        moved = {name: arguments[name] for name in ("hidden", "params")}
        return jax.value_and_grad(lambda moved: loss({**arguments, **moved}, cutoffs=cutoffs))(moved)

    memory = jax.jit(value_and_gradients).lower(arguments).compile().memory_analysis().temp_size_in_bytes
    assert memory < 0.3 * 4 * positions * classes


# Invalid input.


@pytest.mark.parametrize("bad", [-1, 12, -(2**31)])
def test_an_out_of_range_label_gives_nan_at_its_position(bad: int):
    arguments = draw(3)
    arguments["targets"] = jnp.array([1, bad, 11])
    value, pull = jax.vjp(lambda h: loss({**arguments, "hidden": h}, reduction="none"), arguments["hidden"])
    np.testing.assert_array_equal(np.isnan(value), [False, True, False])
    (gradient,) = pull(jnp.ones(3))
    np.testing.assert_array_equal(np.isnan(gradient), np.repeat([[False], [True], [False]], 5, 1))
    error, _ = checkify.checkify(loss)(arguments)
    assert f"targets: expected class indices in [0, 12), got {bad}" in error.get()
    error, masked = checkify.checkify(loss)(arguments | {"where": jnp.array([True, False, True])})
    assert error.get() is None
    assert np.isfinite(masked)


@pytest.mark.parametrize("cutoffs", [(), (0, 3), (3, 3), (7, 3), (3, 12), (3.0, 7.0), (3, True), 3, None])
def test_cutoffs_must_increase_within_the_classes(cutoffs: Any):
    message = r"cutoffs must be increasing integers in \[1, "
    if cutoffs != (3, 12):  # valid for parameters of more classes
        with pytest.raises(ValueError, match=message + r"n_classes - 1\], got"):
            loss(draw(2), cutoffs=cutoffs)
    with pytest.raises(ValueError, match=message + r"11\], got"):
        jaxloss.init_adaptive_log_softmax(jax.random.key(0), 5, 12, cutoffs)


def test_cutoffs_must_be_a_tuple_and_may_hold_numpy_integers():
    arguments = draw(2)
    with pytest.raises(TypeError, match="cutoffs is static and must be a hashable Python value, got list"):
        loss(arguments, cutoffs=[3, 7])
    assert loss(arguments, cutoffs=tuple(np.array(CUTOFFS))) == loss(arguments)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a | {"hidden": jnp.ones(())}, r"hidden must have an axis of features, got shape \(\)"),
        (
            lambda a: a | {"hidden": jnp.ones((2, 4))},
            r"params\['head'\]\['kernel'\] must have shape \(4, 5\) for hidden \(2, 4\) .* got \(5, 5\)",
        ),
        (
            lambda a: a | {"targets": jnp.zeros((2, 1), int)},
            r"targets must have the shape of hidden without its last axis, \(2,\), got targets \(2, 1\)",
        ),
        (lambda a: a | {"params": {}}, r"params must contain params\['head'\]\['kernel'\], .* got nothing"),
        (lambda a: a | {"params": a["hidden"]}, r"params must contain .* got params(\n|$)"),
        (
            lambda a: a | {"params": a["params"] | {"tail": a["params"]["tail"][:1]}},
            r"params must .*\['tail'\]\[1\]\['up'\], .* for cutoffs=\(3, 7\), got .*\[0\]\['up'\](\n|$)",
        ),
        (
            lambda a: with_tail(a, up=jnp.ones((1, 0))),
            r"\['tail'\]\[1\]\['up'\] must have shape \(1, 1\) .* got \(1, 0\)",
        ),
        (
            lambda a: with_tail(a, up=jnp.ones(())),
            r"\['tail'\]\[1\]\['up'\] must have shape \(1, 1\) .* got \(\)",
        ),
        (
            lambda a: with_tail(a, down=jnp.ones(5)),
            r"\['tail'\]\[1\]\['down'\] must have shape \(5, 5\) .* got \(5,\)",
        ),
        (
            lambda a: with_tail(a, down=jnp.ones((5, 3))),
            r"\['tail'\]\[1\]\['up'\] must have shape \(3, 5\) .* got \(1, 5\)",
        ),
    ],
)
def test_mismatched_parameter_shapes_raise(change: Callable[[dict[str, Any]], dict[str, Any]], message: str):
    with pytest.raises(ValueError, match=message):
        loss(change(draw(2)))


def with_tail(arguments: dict[str, Any], **layers: jax.Array) -> dict[str, Any]:
    first, last = arguments["params"]["tail"]
    return arguments | {"params": arguments["params"] | {"tail": [first, last | layers]}}


def test_wrong_dtypes_of_targets_and_parameters_raise():
    arguments = draw(2)
    with pytest.raises(TypeError, match="targets must be integer class indices, got dtype float32"):
        loss(arguments | {"targets": jnp.zeros(2)})
    with pytest.raises(
        TypeError, match=r"params\['tail'\]\[1\]\['up'\] must hold real numbers, got dtype complex"
    ):
        loss(with_tail(arguments, up=jnp.ones((1, 5), complex)))


def test_a_tail_with_zero_features_raises():
    with pytest.raises(ValueError, match=r"got 4.0: tail 1 has none for in_features=8"):
        jaxloss.init_adaptive_log_softmax(jax.random.key(0), 8, 100, (10, 20))
    with pytest.raises(ValueError, match=r"div_value must leave every tail at least one feature, got -2"):
        jaxloss.init_adaptive_log_softmax(jax.random.key(0), 8, 100, (10, 20), div_value=-2)


# Initial parameters.


@pytest.mark.parametrize("head_bias", [False, True])
def test_parameters_start_uniform_within_the_bound_of_fan_in(head_bias: bool):
    params = jaxloss.init_adaptive_log_softmax(jax.random.key(0), 64, 2000, (500, 900), 2.0, head_bias)
    assert ("bias" in params["head"]) == head_bias
    fan_in = {
        "head": dict.fromkeys(params["head"], 64),
        "tail": [{"down": 64, "up": 32}, {"down": 64, "up": 16}],
    }
    shapes = {
        "head": {"kernel": (64, 502), "bias": (502,)},
        "tail": [{"down": (64, 32), "up": (32, 400)}, {"down": (64, 16), "up": (16, 1100)}],
    }

    def check(array: jax.Array, fan_in: int) -> None:
        unit = np.sort(np.ravel(array)) * np.sqrt(fan_in)
        assert np.abs(unit).max() <= 1 + 1e-6
        expected = np.linspace(-1, 1, unit.size)
        assert np.abs(unit - expected).max() < 4 / np.sqrt(unit.size)

    jax.tree.map(check, params, fan_in)
    assert jax.tree.leaves(jax.tree.map(jnp.shape, params)) == jax.tree.leaves(
        shapes | {"head": {name: shapes["head"][name] for name in params["head"]}}
    )
    firsts = [float(leaf.ravel()[0]) for leaf in jax.tree.leaves(params)]
    assert len({*firsts}) == len(firsts)


if torch_oracle.IS_INSTALLED:

    def test_log_probs_and_predictions_equal_those_of_the_pytorch_module():
        import torch

        module = torch.nn.AdaptiveLogSoftmaxWithLoss(5, 12, CUTOFFS, 2.0, head_bias=True)
        params = {
            "head": {"kernel": module.head.weight, "bias": module.head.bias},
            "tail": [{"down": down.weight, "up": up.weight} for down, up in module.tail],
        }
        arguments = draw(50)
        params = jax.tree.map(lambda tensor: jnp.asarray(tensor.detach().numpy().T), params)
        assert jax.tree.map(jnp.shape, params) == jax.tree.map(jnp.shape, arguments["params"])
        inputs = torch.tensor(np.asarray(arguments["hidden"]))
        theirs = module.log_prob(inputs).detach(), module.predict(inputs)
        log_probs = jaxloss.adaptive_log_probs(arguments["hidden"], params, cutoffs=CUTOFFS)
        predicted = jaxloss.adaptive_predict(arguments["hidden"], params, cutoffs=CUTOFFS)
        np.testing.assert_allclose(log_probs, theirs[0], rtol=1e-5, atol=1e-6)
        np.testing.assert_array_equal(predicted, theirs[1])
