"""Known faults of other loss libraries that no other test here covers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxloss

LOGITS = jnp.array([[2.0, -1.0, 0.5]])


@pytest.mark.parametrize("targets", [[0.0, 0.0, 0.0], [0.5, 0.0, 0.25], [1.0, 2.0, 0.0]])
def test_probabilities_that_do_not_sum_to_1_have_the_gradient_of_the_formula(targets):
    # Closed forms such as softmax - targets assume a sum of 1.
    targets = jnp.array([targets])

    def formula(logits, targets):
        return -jnp.sum(targets * jax.nn.log_softmax(logits))

    expected = jax.value_and_grad(formula, (0, 1))(LOGITS, targets)
    answer = jax.value_and_grad(jaxloss.cross_entropy, (0, 1))(LOGITS, targets)
    jax.tree.map(lambda *pair: np.testing.assert_allclose(*pair, rtol=1e-6, atol=1e-7), answer, expected)


def test_target_probabilities_have_a_gradient():
    targets = jax.nn.softmax(LOGITS[:, ::-1])
    gradient = jax.grad(jaxloss.cross_entropy, 1)(LOGITS, targets)
    np.testing.assert_allclose(gradient, -jax.nn.log_softmax(LOGITS), rtol=1e-6)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_half_precision_probability_near_1_keeps_its_complement(dtype):
    # The gradient at the label is -1.2e-4, but the probability rounds to 1 in both dtypes.
    logits = jnp.array([9.0, 0.0], dtype)
    gradient = jax.grad(jaxloss.cross_entropy)(logits, jnp.int32(0))
    expected = 1 / (1 + np.exp(9.0))
    rounding = float(jnp.finfo(dtype).eps)
    np.testing.assert_allclose(np.asarray(gradient, float), [-expected, expected], rtol=rounding)


def test_label_smoothing_is_finite_when_a_probability_underflows():
    loss, gradient = jax.value_and_grad(jaxloss.cross_entropy)(
        jnp.array([0.0, -500.0]), jnp.int32(0), label_smoothing=0.1
    )
    np.testing.assert_allclose(loss, 0.05 * 500, rtol=1e-6)
    np.testing.assert_allclose(gradient, [0.05, -0.05], rtol=1e-6)


@pytest.mark.parametrize(("p", "distance"), [(1, 7.0), (2, 5.0), (3, 91 ** (1 / 3))])
def test_triplet_distances_use_absolute_differences(p, distance):
    # A sum of signed powers would be negative for p = 1, and have no root for p = 3.
    anchors, positives, negatives = jnp.zeros(2), jnp.array([-3.0, 4.0]), jnp.array([0.0, 100.0])
    far = jaxloss.triplet_margin_loss(anchors, negatives, positives, p=p, eps=0)
    np.testing.assert_allclose(far, 1 + 100 - distance, rtol=1e-6)


def test_eps_is_added_to_the_difference_and_not_under_the_root():
    np.testing.assert_allclose(jaxloss.pairwise_distance(jnp.zeros(4), jnp.zeros(4), eps=0.5), 1, rtol=1e-6)


@pytest.mark.parametrize("loss", [jaxloss.multilabel_margin_loss, jaxloss.multi_margin_loss])
def test_the_mean_over_an_empty_batch_is_nan_not_uninitialized_memory(loss):
    targets = jnp.zeros((0, 3) if loss is jaxloss.multilabel_margin_loss else 0, jnp.int32)
    assert np.isnan(loss(jnp.zeros((0, 3)), targets))
    assert loss(jnp.zeros((0, 3)), targets, reduction="sum") == 0


@pytest.mark.parametrize("loss", [jaxloss.cross_entropy, jaxloss.nll_loss])
def test_negative_labels_do_not_index_from_the_end(loss):
    scores = jax.nn.log_softmax(LOGITS)
    assert loss(scores, jnp.array([-100]), reduction="sum") == 0
    assert np.isnan(loss(scores, jnp.array([-1])))


def test_a_masked_row_of_minus_infinities_has_gradient_zero():
    logits = jnp.concatenate([LOGITS, jnp.full((1, 3), -jnp.inf)])
    labels, where = jnp.array([0, 0]), jnp.array([True, False])
    gradient = jax.grad(jaxloss.cross_entropy)(logits, labels, where=where)
    np.testing.assert_array_equal(gradient[1], 0)
    np.testing.assert_allclose(gradient[:1], jax.grad(jaxloss.cross_entropy)(LOGITS, labels[:1]), rtol=1e-6)


def test_infinite_target_scores_leave_finite_margin_gradients():
    scores, labels = jnp.array([[jnp.inf, 0.0, 1.0], [-jnp.inf, 0.0, 1.0]]), jnp.array([0, 0])
    gradient = jax.grad(lambda scores: jaxloss.multi_margin_loss(scores, labels, reduction="sum"))(scores)
    np.testing.assert_allclose(gradient, [[0, 0, 0], [-2 / 3, 1 / 3, 1 / 3]], rtol=1e-6)
