"""Edge cases of contrastive losses: empty sums, masks, extreme lengths, labels, options."""

import inspect
from decimal import localcontext

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxloss
from jaxloss import info_nce_loss, nt_xent_loss, supervised_contrastive_loss
from jaxloss._core import pairs
from tests import formulas
from tests.catalogue import CASES as CASES  # registers the formulas
from tests.oracle import decimals

RNG = np.random.RandomState(0)
X, Y, LABELS = RNG.randn(6, 3), RNG.randn(6, 3), np.array([0, 1, 0, 7, 1, 1])
LOSSES = [(info_nce_loss, Y), (nt_xent_loss, Y), (supervised_contrastive_loss, LABELS)]
every_loss = pytest.mark.parametrize(("loss", "targets"), LOSSES, ids=[loss.__name__ for loss, _ in LOSSES])


def answer(loss, embeddings, targets, **options):
    """Returns the value of the mean and the gradient in the embeddings."""
    return jax.jit(jax.value_and_grad(lambda x: loss(x, targets, **options)))(jnp.asarray(embeddings))


@every_loss
def test_defaults_match_the_specification(loss, targets):
    parameters = inspect.signature(loss).parameters
    assert parameters["temperature"].default == (0.5 if loss is nt_xent_loss else 0.1)
    assert parameters["normalize"].default is True


@every_loss
def test_row_blocks_equal_all_rows_at_once(loss, targets, monkeypatch):
    with jax.enable_x64(True):
        whole = answer(inspect.unwrap(loss), X, targets)
        monkeypatch.setattr(pairs, "_at_once", lambda *_: 4)
        blocks = answer(inspect.unwrap(loss), X, targets)
    np.testing.assert_allclose(blocks[0], whole[0], rtol=1e-14)
    np.testing.assert_allclose(blocks[1], whole[1], rtol=1e-12, atol=1e-14)


@every_loss
@pytest.mark.parametrize("size", [1e-20, 1e20])
def test_very_long_and_short_embeddings(loss, targets, size):
    # As in F.normalize, vectors shorter than 1e-12 are not scaled to unit length.
    x = np.float32(size * X)
    value, gradient = answer(loss, x, targets)
    with localcontext(formulas.CONTEXT):
        arrays = {"embeddings": decimals(np.float64(x)), "targets": decimals(targets)}
        losses, weight, _ = formulas.evaluate_batch(loss.__name__, arrays, {})
        np.testing.assert_allclose(value, float(np.sum(losses) / np.sum(weight)), rtol=1e-5)
    with jax.enable_x64(True):
        _, exact = answer(loss, np.float64(x), targets)
    np.testing.assert_allclose(gradient, exact, rtol=1e-4, atol=1e-5 * np.max(np.abs(exact)))


@every_loss
def test_low_temperatures_neither_overflow_nor_underflow(loss, targets):
    value, gradient = answer(loss, np.float32(X), targets, temperature=0.01)
    with jax.enable_x64(True):
        exact = answer(loss, X, targets, temperature=0.01)
    assert value > 10
    np.testing.assert_allclose(value, exact[0], rtol=1e-5)
    np.testing.assert_allclose(gradient, exact[1], rtol=1e-4, atol=1e-4 * np.max(np.abs(exact[1])))


@every_loss
def test_a_zero_vector_has_gradient_zero(loss, targets):
    _, gradient = answer(loss, X * np.array([0, 1, 1, 1, 1, 1])[:, None], targets)
    np.testing.assert_array_equal(gradient[0], 0)
    assert np.all(gradient[1:] != 0)


@every_loss
def test_one_row(loss, targets):
    # The softmax has one candidate or none. The loss is 0 up to rounding, as XLA may compute a logit twice.
    total, weight = loss(X[:1], targets[:1], reduction="sum_and_weight")
    assert weight == (0 if loss is supervised_contrastive_loss else 1)
    np.testing.assert_allclose(total, 0, atol=1e-6)
    _, gradient = answer(loss, X[:1], targets[:1], reduction="sum")
    np.testing.assert_allclose(gradient, 0, atol=1e-6)


def test_labels_all_distinct_and_all_equal():
    total, weight = supervised_contrastive_loss(X, np.arange(6), reduction="sum_and_weight")
    assert (total, weight) == (0, 0)
    value, gradient = answer(supervised_contrastive_loss, X, np.arange(6))
    assert np.isnan(value)
    np.testing.assert_array_equal(gradient, 0)
    # If all labels are equal there are no negatives: a cross-entropy with uniform target probabilities.
    unit = X / np.linalg.norm(X, axis=1, keepdims=True)
    z = unit @ unit.T / 0.1
    off = ~np.eye(6, dtype=bool)
    expected = [np.log(np.exp(z[i, off[i]]).sum()) - z[i, off[i]].mean() for i in range(6)]
    losses = supervised_contrastive_loss(X, np.zeros(6, int), reduction="none")
    np.testing.assert_allclose(losses, expected, rtol=1e-5)


def test_labels_may_be_arbitrary_integers():
    wide = np.array([2**40, 2**41, 2**40, -1, 2**41, 2**41])
    few = np.array([0, 255, 0, 7, 255, 255], np.uint8)
    for labels in (wide, few):
        np.testing.assert_array_equal(
            supervised_contrastive_loss(X, labels), supervised_contrastive_loss(X, LABELS)
        )
    with pytest.raises(TypeError, match="targets must be integers, got dtype float32"):
        supervised_contrastive_loss(X, np.float32(LABELS))


@every_loss
def test_a_mask_of_shape_1_broadcasts_to_all_rows(loss, targets):
    found = loss(X, targets, where=np.ones(1, bool), reduction="none")
    np.testing.assert_allclose(found, loss(X, targets, reduction="none"), rtol=1e-5)


def test_masked_negatives_never_affect_value_or_gradient():
    negatives = RNG.randn(6, 4, 3)
    where = np.array([True, False, True, True, False, True])
    poisoned = np.where(where[:, None, None], negatives, np.nan)
    found = info_nce_loss(X, Y, negatives=poisoned, where=where, reduction="none")
    np.testing.assert_array_equal(found[~where], 0)
    kept = info_nce_loss(X[where], Y[where], negatives=negatives[where], reduction="none")
    np.testing.assert_allclose(found[where], kept, rtol=1e-6)
    slopes = jax.grad(lambda n: info_nce_loss(X, Y, negatives=n, where=where))(jnp.asarray(poisoned))
    np.testing.assert_array_equal(slopes[~where], 0)


def test_the_loss_without_negatives_is_zero():
    for negatives in (np.zeros((0, 3)), np.zeros((6, 0, 3))):
        value, gradient = answer(info_nce_loss, X, Y, negatives=negatives)
        assert value == 0
        np.testing.assert_array_equal(gradient, 0)


def test_temperature_is_differentiable():
    slope = jax.grad(lambda t: info_nce_loss(X, Y, temperature=t))(0.5)
    with jax.enable_x64(True):
        ends = [info_nce_loss(X, Y, temperature=0.5 + h) for h in (1e-4, -1e-4)]
        np.testing.assert_allclose(slope, (ends[0] - ends[1]) / 2e-4, rtol=1e-4)


def test_invalid_calls_raise():
    with pytest.raises(ValueError, match=r"embeddings must have shape \(N, D\), got shape \(3,\)"):
        info_nce_loss(X[0], Y[0])
    with pytest.raises(
        ValueError, match=r"negatives must have shape \(M, 3\) or \(6, M, 3\), got .*\(4, 2\)"
    ):
        info_nce_loss(X, Y, negatives=X[:4, :2])
    with pytest.raises(ValueError, match="symmetric must be False if negatives are given"):
        info_nce_loss(X, Y, negatives=X, symmetric=True)
    with pytest.raises(ValueError, match="temperature must be a number > 0, got 0"):
        nt_xent_loss(X, Y, temperature=0)
    with pytest.raises(TypeError, match="where must be boolean"):
        supervised_contrastive_loss(X, LABELS, where=np.ones(6, int))
    assert np.isnan(jaxloss.nt_xent_loss(X, Y, temperature=jnp.asarray(-1.0)))
