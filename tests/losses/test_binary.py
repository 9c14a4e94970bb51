"""Binary losses: limits at infinite logits, weights, cancellation, and invalid probabilities."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import checkify

from jaxloss import binary_cross_entropy, binary_cross_entropy_with_logits, soft_margin_loss

INF = np.inf
LOGITS = np.array([INF, INF, -INF, -INF, INF, -INF, 0], np.float32)
TARGETS = np.array([1, 0, 1, 0, 0.5, 0.5, 0.5], np.float32)
LIMITS = np.array([0, INF, INF, 0, INF, INF, np.log(2)], np.float32)


@pytest.mark.parametrize("pos_weight", [None, np.float32(1)])
def test_infinite_logits_have_the_limit_in_value_and_gradient(pos_weight):
    def losses(logits):
        return binary_cross_entropy_with_logits(logits, TARGETS, pos_weight=pos_weight, reduction="none")

    np.testing.assert_allclose(losses(LOGITS), LIMITS, rtol=1e-6)
    gradient = jax.grad(lambda logits: jnp.sum(losses(logits)))(LOGITS)
    np.testing.assert_allclose(gradient, [0, 1, -1, 0, 0.5, -0.5, 0], atol=1e-7)


@pytest.mark.parametrize(("logit", "target", "limit"), list(zip(LOGITS, TARGETS, LIMITS, strict=True)))
def test_scalar_infinite_logits_have_the_limit(logit, target, limit):
    np.testing.assert_allclose(binary_cross_entropy_with_logits(logit, target), limit, rtol=1e-6)


def test_a_pos_weight_of_zero_removes_an_infinite_term():
    options = {"pos_weight": np.float32(0), "reduction": "none"}
    losses = binary_cross_entropy_with_logits(LOGITS[:4], TARGETS[:4], **options)
    np.testing.assert_array_equal(losses, [0, INF, 0, 0])
    slope = jax.grad(lambda target: binary_cross_entropy_with_logits(-INF, target, pos_weight=0.0))
    assert slope(1.0) == 0


def test_weights_follow_the_formula():
    rng = np.random.RandomState(0)
    logits, targets = rng.randn(4, 3), rng.rand(4, 3)
    weight, pos_weight = rng.rand(4, 1), rng.rand(3) + 0.5
    sigmoid = 1 / (1 + np.exp(-logits))
    expected = -weight * (pos_weight * targets * np.log(sigmoid) + (1 - targets) * np.log(1 - sigmoid))
    with jax.enable_x64(True):
        options = {"weight": weight, "pos_weight": pos_weight, "reduction": "none"}
        value = binary_cross_entropy_with_logits(logits, targets, **options)
    np.testing.assert_allclose(value, expected, rtol=1e-12)


def test_losses_of_logits_equal_losses_of_their_probabilities():
    logits, targets = np.linspace(-5, 5, 11), np.linspace(0, 1, 11)
    with jax.enable_x64(True):
        expected = binary_cross_entropy(1 / (1 + np.exp(-logits)), targets)
        np.testing.assert_allclose(binary_cross_entropy_with_logits(logits, targets), expected, rtol=1e-12)


@pytest.mark.parametrize("pos_weight", [1e-6, 1.0, 100.0])
@pytest.mark.parametrize("target", [0.0, 0.3, 1.0])
def test_gradients_of_confident_logits_have_no_cancellation(target, pos_weight):
    logits = np.arange(-30.0, 31.0, 2)
    odds = np.exp(-np.abs(logits))
    small, large = odds / (1 + odds), 1 / (1 + odds)
    yes, no = np.where(logits < 0, [small, large], [large, small])  # sigmoid(logits) and sigmoid(-logits)
    expected = (1 - target) * yes - pos_weight * target * no, (1 - target + pos_weight * target) * yes * no

    def slope(logit):
        return jax.grad(binary_cross_entropy_with_logits)(
            logit, jnp.float32(target), pos_weight=jnp.float32(pos_weight)
        )

    found = jax.vmap(jax.value_and_grad(slope))(jnp.asarray(logits, jnp.float32))
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-7 if target == 0.3 else 0)


@pytest.mark.parametrize("target", [0.0, 0.3, 1.0])
def test_second_derivatives_in_a_probability_have_no_cancellation(target):
    probs = np.float32([1e-11, 1e-8, 1e-6, 1e-4, 0.1, 0.5, 0.9, 0.9999, 1 - 2.0**-20, 1 - 2.0**-24])
    yes, no, wanted = np.float64(probs), 1 - np.float64(probs), np.float64(np.float32(target))

    def slope(prob):
        return jax.grad(binary_cross_entropy)(prob, jnp.float32(target))

    for derivative in (jax.grad, jax.jacfwd):
        found = jax.vmap(derivative(slope))(probs)
        np.testing.assert_allclose(found, wanted / yes**2 + (1 - wanted) / no**2, rtol=1e-6)
    third = jax.vmap(jax.grad(jax.grad(slope)))(probs[:5])
    np.testing.assert_allclose(third, (2 * (1 - wanted) / no**3 - 2 * wanted / yes**3)[:5], rtol=1e-5)
    bound = float(np.float32(1e-12))  # on the variance
    np.testing.assert_allclose(jax.vmap(jax.grad(slope))(np.float32([0, 1e-14, 1])), 1 / bound, rtol=1e-6)


def test_second_derivatives_in_a_score_have_no_cancellation():
    scores = np.arange(-60.0, 61.0, 3)
    odds = np.exp(-np.abs(scores))
    for target in (1.0, -1.0):
        slope = jax.grad(lambda score, target=target: soft_margin_loss(score, jnp.float32(target)))
        found = jax.vmap(jax.grad(slope))(jnp.asarray(scores, jnp.float32))
        np.testing.assert_allclose(found, odds / (1 + odds) ** 2, rtol=1e-6)


@pytest.mark.slow
def test_derivatives_up_to_fourth_order_equal_those_of_the_formula():
    def ours(score, target):
        return soft_margin_loss(score, target)

    def formula(score, target):
        return jnp.log(1 + jnp.exp(-target * score))

    points = np.array([0.0, -0.0, 0.3, -0.3] * 2), np.repeat([1.0, -1.0], 4)
    with jax.enable_x64(True):
        found, expected = ours, formula
        for _ in range(4):
            found, expected = jax.jacrev(found, (0, 1)), jax.jacrev(expected, (0, 1))
            answers, truths = (jax.jit(jax.vmap(function))(*points) for function in (found, expected))
            chex.assert_trees_all_close(answers, truths, rtol=1e-12, atol=1e-15)


def test_pos_weight_is_differentiable():
    def mean(pos_weight):
        return binary_cross_entropy_with_logits(
            np.array([0.0, 1.0]), np.array([1.0, 1.0]), pos_weight=pos_weight
        )

    with jax.enable_x64(True):
        np.testing.assert_allclose(jax.grad(mean)(2.0), np.log1p(np.exp([0.0, -1.0])).mean(), rtol=1e-12)


@pytest.mark.parametrize(
    ("probs", "targets", "name"),
    [
        (1.1, 0.5, "probs"),
        (-0.1, 1.0, "probs"),
        (0.5, 1.1, "targets"),
        (0.5, -0.1, "targets"),
        (0.0, -1.0, "targets"),
    ],
)
def test_values_outside_0_to_1_are_nan_and_reported_by_checkify(probs, targets, name):
    arguments = np.float32([0.5, probs]), np.float32([0.5, targets])
    np.testing.assert_array_equal(np.isnan(binary_cross_entropy(*arguments, reduction="none")), [False, True])
    gradient = jax.grad(lambda probs: binary_cross_entropy(probs, arguments[1], reduction="sum"))(
        arguments[0]
    )
    np.testing.assert_array_equal(np.isnan(gradient), [False, True])
    assert np.isnan(binary_cross_entropy(np.float32(probs), np.float32(targets)))
    assert np.isnan(jax.grad(binary_cross_entropy, 1)(np.float32(probs), np.float32(targets)))
    for function in (binary_cross_entropy, jax.grad(binary_cross_entropy)):
        error, _ = checkify.checkify(function)(*arguments)
        assert (
            f"{name}: expected probabilities in [0, 1], got {[probs, targets][name == 'targets']}"
            in error.get()
        )


@pytest.mark.parametrize("loss", [binary_cross_entropy, binary_cross_entropy_with_logits])
def test_labels_may_be_integers_or_booleans(loss):
    scores, labels = np.float32([0.2, 0.7, 0.9]), np.array([0, 1, 1])
    expected = loss(scores, labels.astype(np.float32))
    assert loss(scores, labels) == loss(scores, labels.astype(bool)) == expected


def test_weights_that_do_not_broadcast_raise():
    scores = np.full((4, 3), 0.5, np.float32)
    with pytest.raises(ValueError, match=r"pos_weight must broadcast to shape \(4, 3\), got shape \(4,\)"):
        binary_cross_entropy_with_logits(scores, scores, pos_weight=np.ones(4))
    with pytest.raises(ValueError, match=r"weight must broadcast to shape \(4, 3\), got shape \(4,\)"):
        binary_cross_entropy(scores, scores, weight=np.ones(4))
