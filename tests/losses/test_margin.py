"""Margin losses: plain loops as a second reference, limits, invalid labels, memory."""

import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import checkify

from jaxloss import (
    binary_cross_entropy_with_logits,
    hinge_embedding_loss,
    hinge_loss,
    margin_ranking_loss,
    multi_margin_loss,
    multilabel_margin_loss,
    multilabel_soft_margin_loss,
    soft_margin_loss,
)

INF = np.inf


# Targets of 1 and -1. Tests shared with `cosine_embedding_loss` are in test_embedding.py.


def test_hinge_embedding_by_hand():
    distances = jnp.array([0.5, -2.0, INF, 0.5, 2.0, 3.0, INF])
    targets = jnp.array([1, 1, 1, -1, -1, -1, -1])
    value, pull = jax.vjp(
        lambda d, m: hinge_embedding_loss(d, targets, margin=m, reduction="none"), distances, 2.0
    )
    np.testing.assert_array_equal(value, [0.5, -2, INF, 1.5, 0, 0, 0])
    slopes = pull(jnp.ones(7))
    np.testing.assert_array_equal(slopes[0], [1, 1, 1, -1, -1, 0, 0])
    assert slopes[1] == 2


def test_margin_ranking_by_hand():
    scores1, scores2 = jnp.array([1.0, 1.0, 3.0, INF]), jnp.array([2.0, 2.0, 1.0, 0.0])
    targets = jnp.array([1.0, -1.0, 1.0, 1.0])
    value, pull = jax.vjp(
        lambda *a: margin_ranking_loss(*a[:3], margin=a[3], reduction="none"),
        *(scores1, scores2, targets, 2.0),
    )
    np.testing.assert_array_equal(value, [3, 1, 0, 0])
    slopes = pull(jnp.ones(4))
    np.testing.assert_array_equal(slopes[0], [-1, 1, -1, 0])
    np.testing.assert_array_equal(slopes[1], [1, -1, 1, 0])
    np.testing.assert_array_equal(slopes[2], [1, 1, -2, 0])
    assert slopes[3] == 3


@pytest.mark.parametrize("squared", [False, True])
def test_hinge_by_hand(squared):
    scores = jnp.array([0.5, -2.0, 3.0, -3.0, 2.0, -2.0, INF, -INF])
    targets = jnp.array([1, 1, -1, -1, 1, -1, 1, -1])
    value, pull = jax.vjp(
        lambda s, m: hinge_loss(s, targets, margin=m, squared=squared, reduction="none"), scores, 2.0
    )
    hinges = np.array([1.5, 4, 5, 0, 0, 0, 0, 0])
    active = np.array([-1, -1, 1, 0, 0, 0, 0, 0])  # 0 at the kink
    np.testing.assert_array_equal(value, hinges**2 if squared else hinges)
    by_scores, by_margin = pull(jnp.ones(8))
    np.testing.assert_array_equal(by_scores, active * (2 * hinges if squared else 1))
    assert by_margin == (2 * hinges.sum() if squared else 3)


def test_hinge_targets_other_than_plus_minus_1_are_nan():
    def losses(scores):
        return hinge_loss(scores, jnp.array([1.0, 0.0, 2.0, -1.0]), reduction="none")

    value, pull = jax.vjp(losses, jnp.zeros(4))
    np.testing.assert_array_equal(value, [1, np.nan, np.nan, 1])
    np.testing.assert_array_equal(pull(jnp.ones(4))[0], [-1, np.nan, np.nan, 1])
    error, _ = checkify.checkify(losses)(jnp.zeros(4))
    assert "targets: expected 1 or -1, got 0.0" in error.get()
    with pytest.raises(ValueError, match="margin must be a number > 0, got 0"):
        hinge_loss(jnp.zeros(1), jnp.ones(1), margin=0.0)


# One class label.


def multi_margin(scores, label, p, margin, weight):
    hinges = [max(0, margin - scores[label] + score) ** p for c, score in enumerate(scores) if c != label]
    return weight[label] * sum(hinges) / len(scores)


@pytest.mark.parametrize("p", [1, 2])
@pytest.mark.parametrize("margin", [1.0, 0.3, 0.0, -0.5])
def test_multi_margin_equals_a_loop(p: int, margin: float):
    rng = np.random.RandomState(0)
    scores, labels, weight = rng.randn(7, 5), rng.randint(0, 5, 7), rng.rand(5)
    expected = [multi_margin(row, y, p, margin, weight) for row, y in zip(scores, labels, strict=True)]
    options = {"p": p, "margin": margin, "weight": weight}
    with jax.enable_x64(True):
        value = multi_margin_loss(scores, labels, **options, reduction="none")
        np.testing.assert_allclose(value, expected, rtol=1e-12)
        np.testing.assert_allclose(multi_margin_loss(scores, labels, **options), np.mean(expected))


def test_multi_margin_supports_any_class_axis():
    rng = np.random.RandomState(0)
    scores, labels = rng.randn(4, 5, 3).astype(np.float32), rng.randint(0, 5, (4, 3))
    expected = multi_margin_loss(np.moveaxis(scores, 1, -1), labels, reduction="none")
    value = multi_margin_loss(scores, labels, axis=1, reduction="none")
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    with pytest.raises(ValueError, match=r"targets .* with axis=-1; they would fit axis=1"):
        multi_margin_loss(scores, labels, axis=2)


def test_multi_margin_at_infinite_scores():
    scores = np.float32([[-INF, 0, 1], [INF, 0, 1], [-INF, 0, 1], [0, INF, 1]])
    value = multi_margin_loss(scores, np.array([1, 0, 0, 0]), reduction="none")
    np.testing.assert_allclose(value, [2 / 3, 0, INF, INF], rtol=1e-6)
    value = multi_margin_loss(scores, np.array([1, 0, 0, 0]), weight=np.zeros(3), reduction="none")
    np.testing.assert_array_equal(value, 0)


def test_the_margin_can_be_swept_and_differentiated():
    scores, labels = jnp.array([[0.0, 0.5, 3.0], [1.0, 0.0, 0.0]]), jnp.array([1, 0])

    def mean(margin):
        return multi_margin_loss(scores, labels, margin=margin)

    margins = jnp.array([0.2, 1.5])
    np.testing.assert_allclose(jax.vmap(mean)(margins), [mean(0.2), mean(1.5)], rtol=1e-6)
    np.testing.assert_allclose(jax.vmap(jax.grad(mean))(margins), [1 / 6, 4 / 6], rtol=1e-6)


def test_invalid_options_raise():
    arguments = np.zeros((2, 3)), np.zeros(2, int)
    with pytest.raises(ValueError, match="p must be 1 or 2, got 3"):
        multi_margin_loss(*arguments, p=3)
    with pytest.raises(ValueError, match="margin must be a finite number, got inf"):
        multi_margin_loss(*arguments, margin=INF)
    with pytest.raises(ValueError, match="margin must be a finite number, got float32"):
        multi_margin_loss(*arguments, margin=jnp.ones(3))
    with pytest.raises(ValueError, match=r"weight must have one value for each class, shape \(3,\)"):
        multi_margin_loss(*arguments, weight=np.ones(2))


@pytest.mark.parametrize("bad", [-1, 3, -100])
def test_an_out_of_range_label_is_nan_and_reported_by_checkify(bad: int):
    scores, labels = jnp.array([[9.0, 0, 0], [9.0, 0, 0]]), jnp.array([0, bad])
    value = multi_margin_loss(scores, labels, reduction="none")
    np.testing.assert_array_equal(np.isnan(value), [False, True])
    gradient = jax.grad(lambda scores: multi_margin_loss(scores, labels, reduction="sum"))(scores)
    np.testing.assert_array_equal(np.isnan(gradient).all(1), [False, True])
    for function in (multi_margin_loss, jax.grad(multi_margin_loss)):
        error, _ = checkify.checkify(function)(scores, labels)
        assert f"targets: expected class indices in [0, 3), got {bad}" in error.get()


# Lists of class labels.


def multilabel_margin(scores, listed):
    right = list(itertools.takewhile(lambda label: label != -1, listed))
    wrong = [c for c in range(len(scores)) if c not in right]
    return sum(max(0, 1 - scores[j] + scores[i]) for j in right for i in wrong) / len(scores)


@pytest.mark.slow
@pytest.mark.parametrize("integral", [False, True])
@pytest.mark.parametrize("shape", [(1,), (4,), (3, 1), (20, 6), (2, 3, 4)])
def test_multilabel_margin_equals_a_loop(shape: tuple[int, ...], integral: bool):
    rng = np.random.RandomState(0)
    scores, targets = rng.randn(*shape), rng.randint(-1, shape[-1], shape)  # with end markers and repetitions
    scores = np.round(scores) if integral else scores  # with ties
    rows = zip(scores.reshape(-1, shape[-1]), targets.reshape(-1, shape[-1]), strict=True)
    expected = np.reshape([multilabel_margin(*row) for row in rows], shape[:-1])
    with jax.enable_x64(True):
        value = multilabel_margin_loss(scores, targets, reduction="none")
        np.testing.assert_allclose(value, expected, rtol=1e-12)

        def mean(scores):
            return multilabel_margin_loss(scores, targets)

        np.testing.assert_allclose(mean(scores), np.mean(expected), rtol=1e-12)
        np.testing.assert_array_equal(jax.hessian(mean)(scores), 0)
        if not integral:
            direction = rng.randn(*shape)
            _, tangent = jax.jvp(mean, (scores,), (direction,))
            ahead, behind = (mean(scores + step * direction) for step in (1e-6, -1e-6))
            np.testing.assert_allclose(tangent, (ahead - behind) / 2e-6, rtol=1e-6, atol=1e-9)
            np.testing.assert_allclose(jnp.vdot(jax.grad(mean)(scores), direction), tangent, atol=1e-12)


def test_labels_after_the_end_marker_are_not_read():
    scores = np.random.RandomState(0).randn(2, 5).astype(np.float32)
    first, second = np.array([[2, 0, -1, -1, -1]] * 2), np.array([[2, 0, -1, 4, 99]] * 2)
    assert multilabel_margin_loss(scores, first) == multilabel_margin_loss(scores, second)
    error, _ = checkify.checkify(multilabel_margin_loss)(scores, second)
    assert error.get() is None


@pytest.mark.parametrize("bad", [4, -2])
def test_an_out_of_range_label_in_a_list_is_nan_and_reported_by_checkify(bad: int):
    scores, targets = jnp.array([[1.0, 2, 3, 4]] * 2), jnp.array([[0, bad, -1, 1], [0, -1, bad, 1]])
    value = multilabel_margin_loss(scores, targets, reduction="none")
    np.testing.assert_array_equal(np.isnan(value), [True, False])
    gradient = jax.grad(lambda scores: multilabel_margin_loss(scores, targets, reduction="sum"))(scores)
    np.testing.assert_array_equal(np.isnan(gradient), [[True] * 4, [False] * 4])
    error, _ = checkify.checkify(multilabel_margin_loss)(scores, targets)
    assert f"targets: expected class indices in [0, 4), and -1 to end the list, got {bad}" in error.get()


def test_multilabel_margin_at_infinite_scores():
    scores = np.float32([[-INF, 0, 1], [INF, 0, 1], [-INF, 0, 1], [0, INF, 1], [0, np.nan, 1]])
    targets = np.array([[1, -1, -1], [0, -1, 2], [0, -1, -1], [0, -1, 0], [0, -1, 0]])
    value = multilabel_margin_loss(scores, targets, reduction="none")
    np.testing.assert_allclose(value, [2 / 3, 0, INF, INF, np.nan], rtol=1e-6)


def test_label_lists_of_the_wrong_dtype_or_shape_raise():
    scores = np.zeros((2, 3))
    with pytest.raises(TypeError, match="targets must be integer class indices, got dtype float32"):
        multilabel_margin_loss(scores, np.zeros((2, 3), np.float32))
    with pytest.raises(ValueError, match=r"scores \(2, 3\) and targets \(2,\)"):
        multilabel_margin_loss(scores, np.zeros(2, int))
    for shape in ((), (2, 0)):
        with pytest.raises(ValueError, match="scores must have a last axis with at least one class"):
            multilabel_margin_loss(np.zeros(shape), np.zeros(shape, int))


def test_pairs_of_classes_are_never_materialized():
    scores = jax.ShapeDtypeStruct((512, 100), jnp.float32)
    targets = jax.ShapeDtypeStruct((512, 100), jnp.int32)
    compiled = jax.jit(jax.value_and_grad(multilabel_margin_loss)).lower(scores, targets).compile()
    assert compiled.memory_analysis().temp_size_in_bytes <= 12 * 4 * 512 * 100


# Soft margin.


def test_soft_margin_equals_the_formula_and_binary_cross_entropy():
    scores, targets = np.linspace(-5, 5, 11), np.resize([1, -1], 11)
    expected = [math.log(1 + math.exp(-y * x)) for x, y in zip(scores, targets, strict=True)]
    with jax.enable_x64(True):
        value = soft_margin_loss(scores, targets, reduction="none")
        np.testing.assert_allclose(value, expected, rtol=1e-12)
        as_binary = binary_cross_entropy_with_logits(scores, targets == 1, reduction="none")
        np.testing.assert_allclose(value, as_binary, rtol=1e-12)


@pytest.mark.parametrize("together", [True, False])
def test_soft_margin_does_not_overflow(together: bool):
    scores, targets = np.float32([1000, -1000, -1000, 50, INF, -INF]), np.float32([-1, 1, -1, 1, 1, 1])

    def total(scores, targets):
        return soft_margin_loss(scores, targets, reduction="sum")

    parts = [slice(None)] if together else [slice(index, index + 1) for index in range(6)]
    for part in parts:
        value = soft_margin_loss(scores[part], targets[part], reduction="none")
        expected = np.float32([1000, 1000, 0, math.exp(-50), 0, INF])[part]
        np.testing.assert_allclose(value, expected, rtol=1e-6)
        gradients = jax.grad(total, (0, 1))(scores[part], targets[part])
        np.testing.assert_allclose(gradients[0], np.float32([1, -1, 0, 0, 0, -1])[part], atol=1e-12)
        np.testing.assert_allclose(gradients[1], np.float32([-1000, 1000, 0, 0, 0, INF])[part], atol=1e-12)


@pytest.mark.parametrize("bad", [0, 0.5, -2, INF, np.nan])
def test_targets_other_than_plus_minus_1_are_nan_and_reported_by_checkify(bad: float):
    scores, targets = jnp.array([1.0, 2.0]), jnp.array([1.0, bad])
    for array in (
        soft_margin_loss(scores, targets, reduction="none"),
        *jax.grad(lambda *arrays: soft_margin_loss(*arrays, reduction="sum"), (0, 1))(scores, targets),
    ):
        np.testing.assert_array_equal(np.isnan(array), [False, True])
    error, _ = checkify.checkify(soft_margin_loss)(scores, targets)
    assert f"targets: expected 1 or -1, got {float(bad)}" in error.get()


def test_targets_of_plus_minus_1_may_be_integers():
    scores = np.float32([0.5, -0.5])
    expected = soft_margin_loss(scores, np.float32([1, -1]))
    assert (
        soft_margin_loss(scores, np.array([1, -1])) == soft_margin_loss(scores, np.int8([1, -1])) == expected
    )


# Multilabel soft margin.


def test_multilabel_soft_margin_averages_over_the_classes():
    rng = np.random.RandomState(0)
    logits, targets, weight = rng.randn(4, 5, 3), rng.rand(4, 5, 3), rng.rand(5)
    sigmoid = 1 / (1 + np.exp(-logits))
    cross_entropies = -(targets * np.log(sigmoid) + (1 - targets) * np.log(1 - sigmoid))
    with jax.enable_x64(True):
        value = multilabel_soft_margin_loss(logits, targets, reduction="none")
        np.testing.assert_allclose(value, cross_entropies.mean(-1), rtol=1e-12)
        value = multilabel_soft_margin_loss(logits, targets, axis=1, weight=weight, reduction="none")
        np.testing.assert_allclose(value, (cross_entropies * weight[:, None]).mean(1), rtol=1e-12)
        value = multilabel_soft_margin_loss(logits, targets)
        np.testing.assert_allclose(value, binary_cross_entropy_with_logits(logits, targets), rtol=1e-12)


def test_multilabel_soft_margin_at_infinite_logits():
    logits, targets = np.float32([[INF, -INF], [INF, 0]]), np.float32([[1, 0], [0, 0]])
    value, weight = multilabel_soft_margin_loss(logits, targets, reduction="none"), np.float32([0, 2])
    np.testing.assert_array_equal(value, [0, INF])
    value = multilabel_soft_margin_loss(logits, targets, weight=weight, reduction="none")
    np.testing.assert_allclose(value, [0, math.log(2)], rtol=1e-6)


def test_class_weights_of_the_wrong_shape_raise():
    logits = np.zeros((4, 3))
    with pytest.raises(
        ValueError, match=r"weight must have one value for each class, shape \(3,\), got \(4,\)"
    ):
        multilabel_soft_margin_loss(logits, logits, weight=np.ones(4))
    with pytest.raises(ValueError, match=r"axis must be an axis of logits, got axis=2"):
        multilabel_soft_margin_loss(logits, logits, axis=2)
