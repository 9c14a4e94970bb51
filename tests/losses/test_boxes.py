"""Bounding-box losses: values by hand, extreme sizes, degenerate and invalid boxes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import checkify

import jaxloss
from tests import oracle
from tests.case import Case

LOSSES = ["box_iou_loss", "generalized_box_iou_loss", "distance_box_iou_loss", "complete_box_iou_loss"]
every_loss = pytest.mark.parametrize("loss", [getattr(jaxloss, name) for name in LOSSES], ids=LOSSES)
SQUARE = [0.0, 0.0, 2.0, 2.0]
FLAT = {
    "points": ([1.0, 1.0, 1.0, 1.0], [1.0, 1.0, 1.0, 1.0]),
    "a point within": ([1.0, 1.0, 1.0, 1.0], SQUARE),
    "a point as target": (SQUARE, [0.5, 1.0, 0.5, 1.0]),
    "no height": ([0.0, 1.0, 2.0, 1.0], SQUARE),
    "no width": ([1.0, 0.0, 1.0, 2.0], SQUARE),
    "no width of a target": (SQUARE, [0.0, 0.0, 0.0, 2.0]),
    "one across the other": ([0.0, 1.0, 2.0, 1.0], [1.0, 0.0, 1.0, 2.0]),
}


@pytest.mark.parametrize(
    ("prediction", "target", "expected"),
    [
        (SQUARE, SQUARE, (0, 0, 0, 0)),
        (SQUARE, [1, 0, 3, 2], (2 / 3, 2 / 3, 2 / 3 + 1 / 13, 2 / 3 + 1 / 13)),
        (SQUARE, [2, 0, 4, 2], (1, 1, 1.2, 1.2)),  # touches along a side
        (SQUARE, [2, 2, 4, 4], (1, 1.5, 1.25, 1.25)),  # touches in a corner
        (SQUARE, [4, 4, 6, 6], (1, 2 - 8 / 36, 1 + 32 / 72, 1 + 32 / 72)),
        (SQUARE, [0.5, 0.5, 1.5, 1.5], (0.75, 0.75, 0.75, 0.75)),  # encloses
        (SQUARE, [1, 1, 1, 1], (1, 1, 1, 1 + 0.0625 / 1.25 * 1)),  # v = (4 / π²) (π / 4)² = 1 / 4
    ],
)
def test_values_by_hand(prediction, target, expected):
    found = [getattr(jaxloss, loss)(jnp.float32(prediction), jnp.float32(target)) for loss in LOSSES]
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.slow
@every_loss
@pytest.mark.parametrize("size", [1e10, 1e4, 1e-3, 1e-10, 1e-17])
def test_huge_and_tiny_boxes_keep_full_precision(loss, size):
    rng = np.random.RandomState(0)
    low = rng.rand(6, 2)
    boxes = np.concatenate([low, low + 0.25 + rng.rand(6, 2)], -1).reshape(2, 3, 4) * size
    predictions, targets = np.float32(boxes)
    arrays = {"predictions": predictions.astype(float), "targets": targets.astype(float)}
    case = Case(f"{loss.__name__}-{size}", loss.__name__, arrays, {}, False, tuple(arrays))
    answer = case.answer(case.inputs(jnp.float32), "none")
    for name, found in answer.items():
        truth = oracle.truth(case, "none", name)
        np.testing.assert_allclose(found, truth, rtol=1e-5, atol=2e-6 * np.max(np.abs(truth)), err_msg=name)
    hessian = jax.jit(jax.hessian(loss))
    found = hessian(predictions, targets)
    with jax.enable_x64(True):
        truth = jax.jit(jax.hessian(loss))(*arrays.values())
    # Numbers below the float32 range become 0.
    tolerance = 1e-5 * np.max(np.abs(truth)) + float(jnp.finfo(jnp.float32).tiny)
    np.testing.assert_allclose(found, truth, rtol=0, atol=tolerance)


@pytest.mark.slow
@every_loss
@pytest.mark.parametrize("flat", FLAT)
def test_degenerate_boxes_have_finite_derivatives(loss, flat):
    boxes = [jnp.float32(box) for box in FLAT[flat]]
    answers = loss(*boxes), jax.grad(loss, (0, 1))(*boxes), jax.hessian(loss, (0, 1))(*boxes)
    assert all(np.isfinite(answer).all() for answer in jax.tree.leaves(answers))
    if flat == "points":
        assert answers[0] == 1
        np.testing.assert_array_equal(answers[1], np.zeros((2, 4)))


@every_loss
def test_gradients_of_equal_boxes_are_at_most_eps(loss):
    by_both = jax.grad(loss, (0, 1))(jnp.float32(SQUARE), jnp.float32(SQUARE))
    np.testing.assert_allclose(by_both, np.zeros((2, 4)), atol=1e-7)


def test_disjoint_boxes_have_a_gradient_except_under_iou():
    prediction, target = jnp.float32(SQUARE), jnp.float32([4, 3, 5, 6])
    assert not jax.grad(jaxloss.box_iou_loss)(prediction, target).any()
    for name in LOSSES[1:]:
        step = -jax.grad(getattr(jaxloss, name))(prediction, target)
        assert step[2] > 0
        assert step[3] > 0


@every_loss
@pytest.mark.parametrize(
    "bad",
    [
        [2.0, 0.0, 1.0, 1.0],
        [0.0, 3.0, 1.0, 1.0],
        [0.0, 0.0, np.nan, 1.0],
        [0.0, 0.0, np.inf, 1.0],
        [np.inf, 0.0, np.inf, 1.0],
    ],
)
def test_invalid_boxes_are_nan_in_every_coordinate(loss, bad):
    good, bad = jnp.float32([SQUARE, SQUARE]), jnp.float32([SQUARE, bad])
    for name, boxes in {"predictions": (bad, good), "targets": (good, bad)}.items():
        losses = loss(*boxes, reduction="none")
        np.testing.assert_array_equal(np.isnan(losses), [False, True])
        for gradient in jax.grad(lambda p, t: jnp.sum(loss(p, t, reduction="none")), (0, 1))(*boxes):
            np.testing.assert_array_equal(np.isnan(gradient), [[False] * 4, [True] * 4])
        error, _ = checkify.checkify(loss)(*boxes)
        assert f"{name}: expected boxes with finite x2 - x1 >= 0 and y2 - y1 >= 0" in error.get()
        masked = loss(*boxes, where=jnp.array([True, False]))
        np.testing.assert_allclose(masked, losses[0])
        error, _ = checkify.checkify(loss)(*boxes, where=jnp.array([True, False]))
        assert error.get() is None


def test_eps_applies_to_the_distance_term_of_the_complete_loss():
    prediction, target = jnp.float32(SQUARE), jnp.float32([1, 0, 3, 2])  # of one aspect ratio
    distance, complete = (getattr(jaxloss, name)(prediction, target, eps=1.0) for name in LOSSES[2:])
    np.testing.assert_allclose([distance, complete], [1 - 2 / 7 + 1 / 14] * 2, rtol=1e-6)


@every_loss
def test_eps_is_differentiable_and_raises_outside_its_domain(loss):
    with jax.enable_x64(True):
        boxes = jnp.array(SQUARE), jnp.array([1.0, 0.5, 3.0, 1.5])
        found, step = jax.grad(lambda eps: loss(*boxes, eps=eps))(0.5), 1e-6
        expected = (loss(*boxes, eps=0.5 + step) - loss(*boxes, eps=0.5 - step)) / (2 * step)
        if loss is not jaxloss.complete_box_iou_loss:  # it stops the gradient of its alpha
            np.testing.assert_allclose(found, expected, rtol=1e-6)
    boxes = jnp.float32(SQUARE), jnp.float32(SQUARE)
    with pytest.raises(ValueError, match="eps must be a number > 0, got 0"):
        loss(*boxes, eps=0.0)
    assert np.isnan(loss(*boxes, eps=jnp.float32(-1)))


@every_loss
def test_arrays_without_four_coordinates_raise(loss):
    with pytest.raises(
        ValueError, match=r"predictions must be boxes of shape \(..., 4\), got shape \(2, 5\)"
    ):
        loss(jnp.zeros((2, 5)), jnp.zeros((2, 5)))
    with pytest.raises(ValueError, match=r"must be boxes of shape \(..., 4\), got shape \(\)"):
        loss(0.0, 0.0)
