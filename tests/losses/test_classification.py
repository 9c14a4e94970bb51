"""Cross entropy and negative log-likelihood: limits, out-of-range labels, ignored positions, errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import checkify

from jaxloss import (
    cross_entropy,
    linear_cross_entropy,
    multi_margin_loss,
    multilabel_soft_margin_loss,
    nll_loss,
)

INF = np.inf
LOGITS = np.random.RandomState(0).randn(4, 5).astype(np.float32)
LOG_PROBS = np.asarray(jax.nn.log_softmax(LOGITS))
BAD = np.array([0, 5, -1, 4], np.int32)


def test_uniform_logits_have_loss_log_of_the_number_of_classes():
    np.testing.assert_allclose(cross_entropy(jnp.zeros((3, 10)), jnp.arange(3)), np.log(10), rtol=1e-6)


def test_the_class_axis_is_last_by_default():
    labels = np.array([[0, 1], [2, 0]], np.int32)
    logits = np.random.RandomState(0).randn(2, 2, 3).astype(np.float32)
    expected = cross_entropy(np.moveaxis(logits, -1, 1), labels, axis=1)
    np.testing.assert_allclose(cross_entropy(logits, labels), expected, rtol=1e-6)


def test_class_indices_equal_one_hot_probabilities():
    labels = np.array([0, 3, 2, 4], np.int32)
    weight = np.arange(1.0, 6, dtype=np.float32)
    for options in ({}, {"label_smoothing": 0.2}, {"weight": weight}):
        hard = cross_entropy(LOGITS, labels, **options, reduction="none")
        soft = cross_entropy(LOGITS, np.eye(5, dtype=np.float32)[labels], **options, reduction="none")
        np.testing.assert_allclose(hard, soft, rtol=1e-5)


@pytest.mark.parametrize(("loss", "scores"), [(cross_entropy, LOGITS), (nll_loss, LOG_PROBS)])
@pytest.mark.parametrize("weight", [None, np.arange(1.0, 6, dtype=np.float32)])
def test_an_out_of_range_label_is_nan_in_value_and_gradient(loss, scores, weight):
    wrong = np.array([False, True, True, False])
    losses = loss(scores, BAD, weight=weight, reduction="none")
    np.testing.assert_array_equal(np.isnan(losses), wrong)
    gradient = jax.grad(lambda scores: loss(scores, BAD, weight=weight, reduction="sum"))(scores)
    np.testing.assert_array_equal(np.isnan(gradient).any(1), wrong)
    assert np.isnan(loss(scores, BAD, weight=weight))
    assert np.isnan(jax.grad(loss)(scores, BAD, weight=weight)).any()


@pytest.mark.parametrize(("loss", "scores"), [(cross_entropy, LOGITS), (nll_loss, LOG_PROBS)])
def test_an_out_of_range_label_is_reported_by_checkify(loss, scores):
    for function in (loss, jax.jit(jax.grad(loss))):
        error, _ = checkify.checkify(function)(scores, BAD)
        assert "targets: expected class indices in [0, 5) or ignore_index=-100, got 5" in error.get()
    for options in ({"ignore_index": 5, "where": BAD != -1}, {"where": np.array([True, False, False, True])}):
        error, _ = checkify.checkify(lambda scores, options=options: loss(scores, BAD, **options))(scores)
        assert error.get() is None


def test_nan_in_an_ignored_position_does_not_affect_value_or_gradient():
    logits, labels = LOGITS.copy(), np.array([0, -100, 2, 3], np.int32)
    logits[1] = np.nan
    kept = np.array([0, 2, 3])
    value, gradient = jax.value_and_grad(cross_entropy)(logits, labels)
    np.testing.assert_allclose(value, cross_entropy(LOGITS[kept], labels[kept]), rtol=1e-6)
    np.testing.assert_array_equal(gradient[1], 0)
    assert np.isfinite(gradient).all()


def test_an_ignored_class_stays_in_the_softmax_denominator():
    logits = jnp.array([[0.0, 100.0]])
    np.testing.assert_allclose(cross_entropy(logits, jnp.array([0]), ignore_index=1), 100, rtol=1e-6)


def test_a_minus_infinity_logit_of_probability_zero_adds_nothing():
    logits = jnp.array([[0.0, -INF, 1.0]])
    targets = jnp.array([[0.5, 0.0, 0.5]])
    expected = cross_entropy(jnp.array([[0.0, 1.0]]), jnp.array([[0.5, 0.5]]))
    value, gradients = jax.value_and_grad(cross_entropy, (0, 1))(logits, targets)
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    assert np.isfinite(gradients[0]).all()
    assert gradients[1][0, 1] == INF
    weight = jnp.array([1.0, 0.0, 1.0])
    smoothed = cross_entropy(logits, jnp.array([0]), weight=weight, label_smoothing=0.1)
    assert np.isfinite(smoothed)


def test_label_smoothing_follows_the_formula():
    labels, weight, smoothing = np.array([0, 3, -100, 4]), np.arange(1.0, 6), 0.3
    with jax.enable_x64(True):
        log_probs = np.asarray(jax.nn.log_softmax(jnp.asarray(LOGITS, jnp.float64)))
        kept = np.array([0, 1, 3])
        right = -weight[labels[kept]] * log_probs[kept, labels[kept]]
        every = -(log_probs[kept] @ weight) / 5
        expected = ((1 - smoothing) * right + smoothing * every).sum() / weight[labels[kept]].sum()
        value = cross_entropy(LOGITS.astype(np.float64), labels, weight=weight, label_smoothing=smoothing)
    np.testing.assert_allclose(value, expected, rtol=1e-12)


@pytest.mark.parametrize("offset", [1e4, -1e4])
def test_a_large_common_offset_does_not_change_the_loss(offset):
    labels = np.arange(4, dtype=np.int32)
    for options in ({}, {"label_smoothing": 0.1}):
        shifted = cross_entropy(LOGITS.astype(np.float64).round(2) + offset, labels, **options)
        np.testing.assert_allclose(shifted, cross_entropy(LOGITS.round(2), labels, **options), rtol=1e-3)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((LOGITS, np.zeros(5, np.int32)), {}, r"\(4,\), got targets \(5,\).* would fit axis=0"),
        ((LOGITS, np.zeros((4, 1), np.int32)), {}, r"without the class axis, \(4,\), got targets \(4, 1\)"),
        ((LOGITS, np.zeros((4, 5), np.int32)), {}, r"without the class axis, \(4,\), got targets \(4, 5\)"),
        (
            (LOGITS, np.zeros(4, np.float32)),
            {},
            r"must have the shape of logits.*class indices must be integers",
        ),
        ((LOGITS, LOGITS), {"ignore_index": 2}, "ignore_index=2 needs integer targets, got dtype float32"),
        ((LOGITS, BAD), {"weight": np.ones(4)}, r"weight must have one value for each class, shape \(5,\)"),
        ((LOGITS, BAD), {"weight": np.ones((5, 1))}, r"weight must have one value for each class"),
        ((LOGITS, BAD), {"axis": 2}, r"axis must be an axis of logits, got axis=2"),
        ((np.float32(1), np.int32(0)), {}, r"axis must be an axis of logits, got axis=-1 for logits \(\)"),
        ((LOGITS, BAD), {"label_smoothing": 1.5}, r"label_smoothing must be a number in \[0, 1\], got 1.5"),
        ((LOGITS, BAD), {"where": np.ones((4, 5), bool)}, r"where must broadcast to shape \(4,\)"),
    ],
)
def test_mismatched_arguments_raise(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        cross_entropy(*arguments, **options)


@pytest.mark.parametrize(
    ("loss", "name"), [(cross_entropy, "logits"), (nll_loss, "log_probs")], ids=["cross_entropy", "nll_loss"]
)
def test_swapped_arguments_raise_with_a_remedy(loss, name):
    remedy = rf"; the first argument, {name}, has dtype int32: are the arguments swapped\?"
    with pytest.raises((TypeError, ValueError), match=remedy):
        loss(np.arange(4), LOGITS)
    with pytest.raises((TypeError, ValueError)) as error:
        loss(LOGITS, LOGITS[:2])
    assert "swapped" not in str(error.value)


def test_boolean_labels_raise():
    with pytest.raises(TypeError, match="targets must be integer class indices, got dtype bool"):
        cross_entropy(LOGITS, np.zeros(4, bool))


IGNORED = np.array([1, -100], np.int32)
WEIGHT = np.array([1.0, 2.0, 0.5], np.float32)


@pytest.mark.slow
@pytest.mark.parametrize("bad", [np.nan, INF, -INF])
@pytest.mark.parametrize("loss", [cross_entropy, nll_loss])
def test_non_finite_ignored_positions_affect_no_derivative(loss, bad):
    """Includes second derivatives and derivatives in options."""
    names = ["weight"] if loss is nll_loss else ["weight", "z_loss", "soft_cap"]
    scores = np.array([[0.1, -1.0, 0.3], [0.0, 0.0, 0.0]], np.float32)

    def derivatives(scores, smoothed):
        options = {"weight": WEIGHT, "z_loss": np.float32(0.1), "soft_cap": np.float32(2.0)}
        static = {"label_smoothing": 0.1} if smoothed else {}

        def f(scores, options):
            return loss(scores, IGNORED, **options, **static)

        found = []
        for given in ([], *([name] for name in names), names):
            chosen = {name: options[name] for name in given}
            slope = jax.grad(f, (0, 1))
            ones = jax.tree.map(np.ones_like, (scores, chosen))
            found.append((slope(scores, chosen), jax.jvp(slope, (scores, chosen), ones)[1]))
        return found

    poisoned = scores.copy()
    poisoned[1] = bad
    for smoothed in (False, True) if loss is cross_entropy else (False,):
        clean, found = derivatives(scores, smoothed), derivatives(poisoned, smoothed)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7), found, clean)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(clean))


def test_the_soft_cap_has_a_finite_derivative_with_a_minus_infinity_logit():
    def slope(logit):
        logits = np.array([[logit, 0.0, 1.0]], np.float32)
        return jax.grad(lambda cap: cross_entropy(logits, np.array([1]), soft_cap=cap))(5.0)

    np.testing.assert_allclose(slope(-INF), slope(-1e18), rtol=1e-6)


def test_a_minus_infinity_logit_of_weight_or_probability_zero_affects_no_gradient():
    logits = np.array([[-INF, 1.0, 0.0]], np.float32)
    weight, probs = np.ones(3, np.float32), np.array([[0.0, 0.5, 0.5]], np.float32)
    slope = jax.grad(lambda weight: cross_entropy(logits, probs, weight=weight))(weight)
    np.testing.assert_allclose(slope, [0, 0.5 * np.log1p(np.exp(-1)), 0.5 * np.log1p(np.exp(1))], rtol=1e-6)
    weight, probs = np.array([0, 1, 1], np.float32), np.array([[0.2, 0.4, 0.4]], np.float32)
    slope = jax.grad(lambda probs: cross_entropy(logits, probs, weight=weight))(probs)
    np.testing.assert_allclose(slope, [[0, np.log1p(np.exp(-1)), np.log1p(np.exp(1))]], rtol=1e-6)


@pytest.mark.parametrize("targets", [np.array([0]), np.array([[1.0, 0.0, 0.0]], np.float32)])
def test_full_label_smoothing_over_a_minus_infinity_logit_is_infinite(targets):
    logits = np.array([[-INF, 0.0, 1.0]], np.float32)
    assert cross_entropy(logits, targets, label_smoothing=1.0) == INF
    bias = jnp.asarray(logits[0])
    assert (
        linear_cross_entropy(jnp.zeros((1, 2)), jnp.zeros((2, 3)), targets, bias=bias, label_smoothing=1.0)
        == INF
    )


def test_labels_and_ignore_index_may_exceed_int32():
    logits = np.zeros((2, 3), np.float32)
    np.testing.assert_allclose(cross_entropy(logits, np.array([0, 1]), ignore_index=-(2**40)), np.log(3))
    labels = np.array([0, 2**32 - 100], np.uint32)  # -100 if read as int32
    assert np.isnan(cross_entropy(logits, labels, reduction="none")).tolist() == [False, True]
    assert cross_entropy(logits, labels, ignore_index=2**32 - 100, reduction="none")[1] == 0
    assert np.isnan(cross_entropy(logits, labels, ignore_index=2**31 - 1, reduction="none")[1])
    with pytest.raises(TypeError, match=r"ignore_index must be an integer, got 1\.5"):
        cross_entropy(logits, labels, ignore_index=1.5)


WEIGHTS = np.random.RandomState(1).rand(64).astype(np.float32)
LARGE = {
    "labels": (cross_entropy, {"weight": WEIGHTS, "label_smoothing": 0.1, "z_loss": 0.01}),
    "capped": (cross_entropy, {"label_smoothing": 0.1, "soft_cap": 2.0}),
    "probabilities": (cross_entropy, {"weight": WEIGHTS, "label_smoothing": 0.1, "z_loss": 0.01}),
    "nll": (nll_loss, {"weight": WEIGHTS}),
    "margins": (multi_margin_loss, {"weight": WEIGHTS, "p": 2}),
    "multilabel": (multilabel_soft_margin_loss, {"weight": WEIGHTS}),
}


@pytest.mark.slow
@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("kind", LARGE)
def test_blocked_evaluation_equals_small_batches(kind, axis):
    """Large inputs are processed in blocks of positions and classes."""
    loss, options = LARGE[kind]
    random = np.random.RandomState(0)
    scores = random.randn(40, 48, 64).astype(np.float32)
    if kind == "probabilities":
        targets = random.dirichlet(np.ones(64), (40, 48)).astype(np.float32)
    elif kind == "multilabel":
        targets = random.randint(2, size=scores.shape)
    else:
        targets = random.randint(64, size=(40, 48))
    few = jax.lax.map(
        lambda batch: loss(*batch, **options, reduction="none"),
        (jnp.asarray(scores).reshape(-1, 8, 64), jnp.asarray(targets).reshape(-1, 8, *targets.shape[2:])),
    ).reshape(40, 48)

    arrays = [np.moveaxis(array, -1, axis) if array.ndim == 3 else array for array in (scores, targets)]
    losses = loss(*arrays, **options, axis=axis, reduction="none")
    np.testing.assert_allclose(losses, few, rtol=1e-5, atol=1e-6)
    total, weight = loss(*arrays, **options, axis=axis, reduction="sum_and_weight")
    np.testing.assert_allclose(total, np.sum(few), rtol=1e-5)
    np.testing.assert_allclose(loss(*arrays, **options, axis=axis), total / weight, rtol=1e-5)
