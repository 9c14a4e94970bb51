"""Overlap losses: empty regions, weights of the mean, masks, and invalid input."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import checkify
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxloss import dice_loss, generalized_dice_loss, tversky_loss

ALL = [dice_loss, tversky_loss, generalized_dice_loss]
every_loss = pytest.mark.parametrize("loss", ALL)
PROBS = np.float32([[[0.8, 0.2], [0.6, 0.4], [0.3, 0.7]]])  # one image, three pixels, two classes
LABELS = np.array([[0, 1, 1]])


def test_overlaps_of_three_pixels_by_hand():
    options = {"smooth": 0.0, "reduction": "none"}
    found = dice_loss(PROBS, LABELS, **options)
    np.testing.assert_allclose(found, [[1 - 1.6 / 2.7, 1 - 2.2 / 3.3]], rtol=1e-6)
    found = dice_loss(PROBS, LABELS, squared=True, **options)
    np.testing.assert_allclose(found, [[1 - 1.6 / 2.09, 1 - 2.2 / 2.69]], rtol=1e-6)
    found = tversky_loss(PROBS, LABELS, alpha=0.25, beta=0.75, gamma=2.0, **options)
    shares = np.array([0.8 / (0.8 + 0.25 * 0.9 + 0.75 * 0.2), 1.1 / (1.1 + 0.25 * 0.2 + 0.75 * 0.9)])
    np.testing.assert_allclose(found, [(1 - shares) ** 2], rtol=1e-5)
    found = generalized_dice_loss(PROBS, LABELS, **options)
    np.testing.assert_allclose(found, [1 - 2 * (0.8 + 1.1 / 4) / (2.7 + 3.3 / 4)], rtol=1e-6)


def test_dice_and_jaccard_losses_are_special_cases_of_tversky_loss():
    for smooth in (0.0, 1e-3, 1.0):
        found = tversky_loss(PROBS, LABELS, smooth=smooth / 2)
        np.testing.assert_allclose(found, dice_loss(PROBS, LABELS, smooth=smooth), rtol=1e-6)
    jaccard = tversky_loss(PROBS, LABELS, alpha=1.0, beta=1.0, smooth=0.0, reduction="none")
    np.testing.assert_allclose(jaccard, [[1 - 0.8 / 1.9, 1 - 1.1 / 2.2]], rtol=1e-6)


@every_loss
def test_empty_regions_without_smoothing_have_loss_and_gradient_zero(loss):
    probs, targets = np.zeros((2, 3, 2), np.float32), np.zeros((2, 3, 2), np.float32)
    function = functools.partial(loss, smooth=0.0)
    value, gradients = jax.value_and_grad(function, (0, 1))(probs, targets)
    assert value == 0
    np.testing.assert_array_equal(gradients, 0)
    np.testing.assert_array_equal(jax.hessian(function)(probs, targets), 0)


def test_an_empty_target_penalizes_predicted_pixels():
    probs, targets = np.full((1, 16), 0.01, np.float32), np.zeros((1, 16), int)
    np.testing.assert_allclose(dice_loss(probs, targets, axis=None), 0.16 / (0.16 + 1e-5), rtol=1e-6)
    total, weight = dice_loss(probs, targets, axis=None, skip_absent=True, reduction="sum_and_weight")
    assert (total, weight) == (0, 0)


def test_absent_classes_do_not_count_in_the_mean():
    labels = np.array([[1, 1, 1]])
    present = dice_loss(PROBS, labels, reduction="none")[0, 1]
    assert dice_loss(PROBS, labels, skip_absent=True) == present
    gradient = jax.grad(functools.partial(dice_loss, skip_absent=True))(PROBS, labels)
    np.testing.assert_array_equal(gradient[..., 0], 0)


@pytest.mark.parametrize("loss", ALL[:2])
def test_the_mean_divides_by_the_class_weights(loss):
    losses, weight = loss(PROBS, LABELS, reduction="none")[0], np.array([0.5, 2.0])
    found = loss(PROBS, LABELS, weight=weight, reduction="sum_and_weight")
    np.testing.assert_allclose(found, (np.sum(weight * losses), 2.5), rtol=1e-6)
    found = loss(PROBS, LABELS, weight=weight, include_background=False, reduction="sum_and_weight")
    np.testing.assert_allclose(found, (2 * losses[1], 2.0), rtol=1e-6)


@every_loss
@pytest.mark.parametrize("batch", [False, True])
def test_an_image_whose_pixels_are_all_masked_does_not_count(loss, batch):
    probs, labels = np.concatenate([PROBS, PROBS * np.nan]), np.concatenate([LABELS, LABELS + 10**6])
    where = np.array([[True], [False]])
    function = functools.partial(loss, batch=batch)
    value, gradient = jax.value_and_grad(function)(probs, labels, where=where)
    np.testing.assert_allclose(value, loss(PROBS, LABELS), rtol=1e-6)
    np.testing.assert_array_equal(gradient[1], 0)
    value, gradient = jax.value_and_grad(function)(probs, labels, where=np.zeros((), bool))
    assert np.isnan(value)
    np.testing.assert_array_equal(gradient, 0)
    assert np.isnan(function(np.ones((0, 3, 2)), np.zeros((0, 3), int)))


@pytest.mark.parametrize("loss", ALL[:2])
@pytest.mark.parametrize("dtype", ["uint8", "int8", "int32", "int64"])
def test_ignored_labels_equal_masked_pixels(loss, dtype):
    labels = np.array([[0, 1, 7]], dtype)
    expected = loss(PROBS, LABELS, where=np.array([[True, True, False]]))
    assert loss(PROBS, labels, ignore_index=7) == expected
    binary = np.array([[0, 1, 7]], dtype)
    expected = loss(PROBS[..., 0], binary % 2, axis=None, where=np.array([[True, True, False]]))
    assert loss(PROBS[..., 0], binary, axis=None, ignore_index=7) == expected
    assert np.isnan(loss(PROBS[..., 0], binary, axis=None))  # 7 is neither 0, 1 nor ignore_index


@every_loss
def test_targets_may_be_labels_or_regions_of_any_dtype(loss):
    expected = loss(PROBS, LABELS)
    for dtype in ("bool", "int32", "float32"):
        np.testing.assert_allclose(loss(PROBS, np.eye(2)[LABELS].astype(dtype)), expected, rtol=1e-6)
    first = np.moveaxis(PROBS, -1, 0)
    np.testing.assert_allclose(loss(first, LABELS, axis=0), expected, rtol=1e-6)


@every_loss
def test_probabilities_slightly_above_1_are_accepted(loss):
    probs = np.float32([[[1 + 2.0**-22, 0], [0, 1]]])
    value, gradient = jax.value_and_grad(loss)(probs, np.array([[0, 1]]))
    np.testing.assert_allclose(value, 0, atol=1e-6)
    assert np.isfinite(gradient).all()


@every_loss
@pytest.mark.parametrize(
    ("probs", "targets", "expected"),
    [
        (1.1, 1.0, "probs: expected probabilities in [0, 1]"),
        (-0.1, 1.0, "probs: expected probabilities in [0, 1]"),
        (0.5, 1.5, "targets: expected probabilities in [0, 1]"),
    ],
)
def test_values_outside_0_to_1_are_nan_and_reported_by_checkify(loss, probs, targets, expected):
    arrays = np.float32([[[0.5], [probs]]]), np.float32([[[0.5], [targets]]])
    value, gradients = jax.value_and_grad(loss, (0, 1))(*arrays)
    assert np.isnan(value)
    assert np.isnan(gradients).all()
    error, _ = checkify.checkify(loss)(*arrays)
    assert expected in error.get()


@every_loss
def test_out_of_range_labels_are_nan_and_reported_by_checkify(loss):
    value, gradient = jax.value_and_grad(loss)(PROBS, np.array([[0, 1, 2]]))
    assert np.isnan(value)
    assert np.isnan(gradient).all()
    error, _ = checkify.checkify(loss)(PROBS, np.array([[0, 1, 2]]))
    assert "targets: expected class indices in [0, 2)" in error.get()


@pytest.mark.parametrize(("gamma", "slope"), [(0.5, 0.0), (1.0, -0.5), (2.0, 0.0)])
def test_the_gradient_of_a_perfect_prediction(gamma, slope):
    probs, targets = np.float32([1.0, 0.0]), np.float32([1.0, 0.0])
    function = functools.partial(tversky_loss, axis=None, gamma=gamma, smooth=0.0, batch=True)
    value, gradient = jax.value_and_grad(function)(probs, targets)
    assert value == 0
    np.testing.assert_allclose(gradient, [slope, -slope], atol=1e-7)
    assert np.isfinite(jax.hessian(function)(probs, targets)).all()
    assert tversky_loss(probs, targets, axis=None, gamma=0.0, batch=True) == 1  # 0⁰


def test_tiny_soft_regions_do_not_overflow_the_class_weights():
    probs, targets = np.float32([[[0.5, 1e-25]]]), np.float32([[[1.0, 1e-25]]])
    value, gradient = jax.value_and_grad(generalized_dice_loss)(probs, targets)
    np.testing.assert_allclose(value, 1)  # 1 - 2 · 1.5 / 2e25
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize("include_background", [True, False])
def test_classes_may_be_sharded_over_explicit_mesh_axes(include_background):
    mesh = jax.make_mesh((1, 1), ("batch", "classes"), axis_types=(AxisType.Explicit,) * 2)
    probs = jax.device_put(PROBS, NamedSharding(mesh, P("batch", None, "classes")))
    for loss in ALL[:2]:
        function = functools.partial(loss, include_background=include_background)
        np.testing.assert_allclose(function(probs, LABELS), function(PROBS, LABELS), rtol=1e-6)


def test_mismatched_calls_raise():
    with pytest.raises(
        ValueError, match=r"probs must have shape \(N, ..., C\) with axis=-1, got shape \(3,\)"
    ):
        dice_loss(np.ones(3), np.array(0))
    with pytest.raises(ValueError, match="need a class axis, got axis=None"):
        dice_loss(np.ones((2, 3)), np.ones((2, 3)), axis=None, weight=np.ones(3))
    with pytest.raises(ValueError, match="include_background=False needs a second class"):
        dice_loss(np.ones((2, 3, 1)), np.zeros((2, 3), int), include_background=False)
    with pytest.raises(ValueError, match="ignore_index=1 needs integer labels"):
        dice_loss(np.ones((2, 3, 2)), np.ones((2, 3, 2)), ignore_index=1)
    with pytest.raises(ValueError, match=r"weight must have one value for each class, shape \(2,\)"):
        dice_loss(PROBS, LABELS, weight=np.ones(3))
    for option in ("alpha", "beta", "gamma", "smooth"):
        with pytest.raises(ValueError, match=f"{option} must be a number >= 0"):
            tversky_loss(PROBS, LABELS, **{option: -1.0})
        assert np.isnan(tversky_loss(PROBS, LABELS, **{option: jnp.float32(-1)}))
