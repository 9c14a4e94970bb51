"""Lovász losses: relation to the Jaccard index, ties, masks, and invalid input."""

import functools

import jax
import numpy as np
import pytest
from jax.experimental import checkify

from jaxloss import lovasz_hinge_loss, lovasz_softmax_loss


def _jaccard_losses(predicted, labels, count):
    """Returns one minus the intersection over union of each class."""
    pairs = [(predicted == c, labels == c) for c in range(count)]
    return np.array([1 - np.sum(p & t) / max(np.sum(p | t), 1) for p, t in pairs])


@pytest.mark.parametrize("classes", ["present", "all"])
def test_lovasz_softmax_loss_of_hard_predictions_is_the_mean_jaccard_loss(classes):
    rng = np.random.RandomState(0)
    labels, predicted = rng.randint(0, 3, (4, 6)), rng.randint(0, 4, (4, 6))
    losses = _jaccard_losses(predicted, labels, 4)
    # The loss of an absent class is its largest error, which is 0 if the class is never predicted.
    expected = np.mean(losses[:3]) if classes == "present" else np.mean(losses)
    found = lovasz_softmax_loss(np.eye(4)[predicted], labels, classes=classes)
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_lovasz_hinge_loss_of_one_pixel_is_the_hinge_loss():
    logits, targets = np.float32([[2.0], [0.5], [-1.0], [0.5]]), np.array([[1], [1], [1], [0]])
    found = lovasz_hinge_loss(logits, targets, reduction="none")
    np.testing.assert_allclose(found, [0, 0.5, 2, 1.5])


def test_lovasz_hinge_loss_of_an_empty_region_is_the_largest_error():
    logits = np.float32([[0.5, 2.0, -3.0]])
    value, gradient = jax.value_and_grad(lovasz_hinge_loss)(logits, np.zeros((1, 3), int))
    assert value == 3
    np.testing.assert_array_equal(gradient, [[0, 1, 0]])


def test_ties_are_sorted_by_pixel_index():
    logits, targets = np.zeros((1, 4), np.float32), np.array([[0, 1, 0, 1]])
    # Union and intersection after each pixel: 3 and 2, 3 and 1, 4 and 1, 4 and 0.
    jaccard = 1 - np.array([1, 2 / 3, 1 / 3, 1 / 4, 0])
    gradient = jax.grad(lovasz_hinge_loss)(logits, targets)
    np.testing.assert_allclose(gradient[0], np.diff(jaccard) * [1, -1, 1, -1], rtol=1e-6)


def test_first_and_second_derivatives_are_zero_at_kinks():
    gradient = jax.grad(lovasz_hinge_loss)(np.float32([[1.0, -1.0]]), np.array([[1, 0]]))
    np.testing.assert_array_equal(gradient, 0)
    probs = np.float32([[[1.0, 0.0], [0.0, 1.0]]])
    gradient = jax.grad(lovasz_softmax_loss)(probs, np.array([[0, 1]]))
    np.testing.assert_array_equal(gradient, 0)
    np.testing.assert_array_equal(jax.hessian(lovasz_softmax_loss)(probs, np.array([[0, 1]])), 0)


def test_infinite_logits_have_the_limit():
    logits, targets = np.float32([[np.inf, -np.inf, 0.5]]), np.array([[1, 0, 1]])
    value, gradient = jax.value_and_grad(lovasz_hinge_loss)(logits, targets)
    np.testing.assert_allclose(value, 0.5 * 0.5)
    np.testing.assert_allclose(gradient, [[0, 0, -0.5]])
    assert lovasz_hinge_loss(-logits, targets) == np.inf


def test_gradients_over_many_pixels_have_no_cancellation():
    # With 10⁵ pixels each step is about 10⁻⁵; as a difference of Jaccard losses it would have two digits.
    rng = np.random.RandomState(0)
    logits, targets = rng.randn(1, 10**5).astype(np.float32), rng.randint(0, 2, (1, 10**5))
    with jax.enable_x64(True):
        expected = jax.grad(lovasz_hinge_loss)(np.float64(logits), targets)
    found = jax.grad(lovasz_hinge_loss)(logits, targets)
    close = np.isclose(found, expected, rtol=1e-5, atol=0)
    assert np.mean(close) > 0.999  # some errors are tied in float32 only


@pytest.mark.parametrize("batch", [False, True])
def test_masked_pixels_are_left_out_of_the_sort(batch):
    rng = np.random.RandomState(0)
    logits, targets = rng.randn(2, 5).astype(np.float32), rng.randint(0, 2, (2, 5))
    where = np.array([[True, False, True, True, False], [True, True, False, False, True]])
    function = functools.partial(lovasz_hinge_loss, batch=batch)
    value, gradient = jax.value_and_grad(function)(
        np.where(where, logits, np.nan), np.where(where, targets, 9), where=where
    )
    kept = logits[where].reshape(2, 3), targets[where].reshape(2, 3)
    expected, slopes = jax.value_and_grad(function)(*kept)
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    np.testing.assert_allclose(gradient[where].reshape(2, 3), slopes, rtol=1e-6)
    np.testing.assert_array_equal(gradient[~where], 0)


@pytest.mark.parametrize("batch", [False, True])
def test_images_of_only_ignored_pixels_have_loss_and_weight_zero(batch):
    function = functools.partial(lovasz_softmax_loss, batch=batch, reduction="sum_and_weight")
    probs, labels = np.full((2, 3, 2), np.nan, np.float32), np.full((2, 3), -100)
    (total, weight), pullback = jax.vjp(lambda probs: function(probs, labels), probs)
    assert (total, weight) == (0, 0)
    np.testing.assert_array_equal(pullback((np.float32(1), np.float32(0)))[0], 0)
    assert np.isnan(lovasz_softmax_loss(np.ones((0, 3, 2)), np.zeros((0, 3), int), batch=batch))


def test_any_class_axis():
    rng = np.random.RandomState(0)
    probs, labels = rng.rand(2, 3, 4).astype(np.float32), rng.randint(0, 4, (2, 3))
    for batch in (False, True):
        expected = lovasz_softmax_loss(probs, labels, batch=batch, reduction="none")
        for axis in (0, 1):
            moved = np.moveaxis(probs, -1, axis)
            found = lovasz_softmax_loss(moved, labels, axis=axis, batch=batch, reduction="none")
            np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("loss", "first", "targets", "expected"),
    [
        (lovasz_hinge_loss, [[0.5, 1.0]], [[0.0, 0.5]], "targets: expected 0 or 1, got 0.5"),
        (lovasz_softmax_loss, [[[0.5, 0.5], [1.5, 0.5]]], [[0, 1]], "probs: expected probabilities"),
        (
            lovasz_softmax_loss,
            [[[0.5, 0.5], [0.5, 0.5]]],
            [[0, 2]],
            "targets: expected class indices in [0, 2)",
        ),
    ],
)
def test_invalid_input_is_nan_and_reported_by_checkify(loss, first, targets, expected):
    first, targets = np.float32(first), np.asarray(targets)
    value, gradient = jax.value_and_grad(loss)(first, targets)
    assert np.isnan(value)
    assert np.isnan(gradient[0, 1]).any()
    error, _ = checkify.checkify(loss)(first, targets)
    assert expected in error.get()


def test_mismatched_calls_raise():
    with pytest.raises(ValueError, match="classes must be one of 'present', 'all', got 'some'"):
        lovasz_softmax_loss(np.ones((2, 3, 2)), np.zeros((2, 3), int), classes="some")
    with pytest.raises(ValueError, match=r"probs must have shape \(N, ..., C\), got shape \(2,\)"):
        lovasz_softmax_loss(np.ones(2), np.array(0))
    with pytest.raises(ValueError, match=r"logits must have shape \(N, ...\), got shape \(\)"):
        lovasz_hinge_loss(np.array(0.0), np.array(0.0))
