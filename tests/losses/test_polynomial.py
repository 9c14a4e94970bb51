"""Poly and generalized cross-entropy: limits, domains, and invalid input."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import checkify

from jaxloss import cross_entropy, generalized_cross_entropy, poly_cross_entropy

INF = np.inf
LOGITS, LABELS = np.random.RandomState(0).randn(4, 3) * 3, np.array([0, 2, 1, -100])


@pytest.mark.parametrize("reduction", ["none", "mean", "sum", "sum_and_weight"])
def test_poly_cross_entropy_with_epsilon_0_is_cross_entropy(reduction):
    options = {"weight": np.array([0.5, 2.0, 0.0]), "label_smoothing": 0.1, "reduction": reduction}
    with jax.enable_x64(True):
        for targets in (LABELS, np.full((4, 3), 1 / 3)):
            found = poly_cross_entropy(LOGITS, targets, epsilon=0.0, **options)
            expected = cross_entropy(LOGITS, targets, **options)
            chex.assert_trees_all_close(found, expected, rtol=1e-12, atol=1e-15)


def test_labels_equal_one_hot_probabilities():
    labels, options = np.array([0, 2, 1, 1]), {"weight": np.array([0.5, 2.0, 1.0]), "label_smoothing": 0.3}
    with jax.enable_x64(True):
        found = poly_cross_entropy(LOGITS, np.eye(3)[labels], reduction="none", **options)
        expected = poly_cross_entropy(LOGITS, labels, reduction="none", **options)
        np.testing.assert_allclose(found, expected, rtol=1e-12)


@pytest.mark.parametrize(("epsilon", "limit"), [(2.0, INF), (-1.0, INF)])
def test_poly_cross_entropy_at_extreme_logits(epsilon, limit):
    function = functools.partial(poly_cross_entropy, targets=np.array(0), epsilon=epsilon)
    value, gradient = jax.value_and_grad(function)(np.float32([-INF, 0, 0]))
    assert value == limit
    np.testing.assert_allclose(gradient, [-1, 0.5, 0.5])
    value, gradient = jax.value_and_grad(function)(np.float32([1e4, -1e4, 0]))
    assert value == 0
    np.testing.assert_array_equal(gradient, 0)


def test_generalized_cross_entropy_at_q_0_and_1():
    labels = np.array([0, 2, 1, 0])
    with jax.enable_x64(True):
        cross_entropies = cross_entropy(LOGITS, labels, reduction="none")
        found = generalized_cross_entropy(LOGITS, labels, q=1e-9, reduction="none")
        np.testing.assert_allclose(found, cross_entropies, rtol=1e-7)
        found = generalized_cross_entropy(LOGITS, labels, q=1.0, reduction="none")
        np.testing.assert_allclose(found, 1 - np.exp(-cross_entropies), rtol=1e-12)


@pytest.mark.parametrize("q", [0.25, 0.7, 1.0])
def test_generalized_cross_entropy_of_probability_zero_is_maximal_with_gradient_zero(q):
    logits = np.float32([-INF, 0, 1])
    function = functools.partial(generalized_cross_entropy, targets=np.array(0))
    value, gradient = jax.value_and_grad(function)(logits, q=q)
    np.testing.assert_allclose(value, 1 / q, rtol=1e-6)
    np.testing.assert_array_equal(gradient, 0)
    np.testing.assert_array_equal(jax.hessian(function)(logits, q=q), 0)
    np.testing.assert_allclose(jax.grad(lambda q: function(logits, q=q))(q), -1 / q**2, rtol=1e-6)


@pytest.mark.parametrize("loss", [poly_cross_entropy, generalized_cross_entropy])
def test_out_of_range_labels_are_nan_and_reported_by_checkify(loss):
    logits, labels = np.ones((2, 3), np.float32), np.array([0, 3])
    np.testing.assert_array_equal(np.isnan(loss(logits, labels, reduction="none")), [False, True])
    gradient = jax.grad(lambda logits: loss(logits, labels, reduction="sum"))(logits)
    np.testing.assert_array_equal(np.isnan(gradient).all(1), [False, True])
    error, _ = checkify.checkify(loss)(logits, labels)
    assert "targets: expected class indices in [0, 3) or ignore_index=-100, got 3" in error.get()


@pytest.mark.parametrize("loss", [poly_cross_entropy, generalized_cross_entropy])
def test_only_ignored_labels_give_mean_nan_and_gradient_zero(loss):
    labels = np.full(2, -100)
    value, gradient = jax.value_and_grad(loss)(np.full((2, 3), np.nan, np.float32), labels)
    assert np.isnan(value)
    np.testing.assert_array_equal(gradient, 0)


@pytest.mark.parametrize(
    ("loss", "option", "bad"),
    [
        (poly_cross_entropy, "epsilon", -1.5),
        (generalized_cross_entropy, "q", 0.0),
        (generalized_cross_entropy, "q", 1.5),
    ],
)
def test_options_outside_their_domain_raise(loss, option, bad):
    arrays = np.ones((1, 2)), np.zeros(1, int)
    with pytest.raises(ValueError, match=f"{option} must be a number"):
        loss(*arrays, **{option: bad})
    assert np.isnan(loss(*arrays, **{option: jnp.float32(bad)}))


def test_mismatched_probabilities_raise():
    with pytest.raises(ValueError, match=r"must have the shape of logits, got targets \(4,\) and logits"):
        poly_cross_entropy(LOGITS, np.ones(4))
    with pytest.raises(ValueError, match="ignore_index=1 needs integer targets"):
        poly_cross_entropy(LOGITS, np.ones((4, 3)), ignore_index=1)
