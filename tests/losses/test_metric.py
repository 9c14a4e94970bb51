"""Edge cases of metric-learning losses: empty sums, masks, lengths, large exponents, options."""

import inspect
from decimal import localcontext

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxloss import circle_loss, multi_similarity_loss
from jaxloss._core import pairs
from tests import formulas
from tests.catalogue import CASES as CASES  # registers the formulas
from tests.oracle import decimals

RNG = np.random.RandomState(0)
X, LABELS = RNG.randn(6, 3), np.array([0, 1, 0, 7, 1, 1])

every_loss = pytest.mark.parametrize("loss", [circle_loss, multi_similarity_loss])


def answer(loss, embeddings, targets, **options):
    """Returns the value of the mean and the gradient in the embeddings."""
    return jax.jit(jax.value_and_grad(lambda x: loss(x, targets, **options)))(jnp.asarray(embeddings))


def formula(loss, embeddings, targets, **options):
    """Returns the mean by the formula."""
    with localcontext(formulas.CONTEXT):
        arrays = {"embeddings": decimals(np.float64(embeddings)), "targets": decimals(targets)}
        losses, weight, _ = formulas.evaluate_batch(loss.__name__, arrays, options)
        return float(np.sum(losses) / np.sum(weight))


def test_defaults_match_the_specification():
    def options(loss):
        parameters = inspect.signature(loss).parameters.values()
        return [parameter.default for parameter in parameters if parameter.kind == parameter.KEYWORD_ONLY]

    assert options(circle_loss) == [0.4, 80.0, True, None, "mean", None]
    assert options(multi_similarity_loss) == [2.0, 50.0, 0.5, True, None, "mean", None]


@every_loss
def test_row_blocks_equal_all_rows_at_once(loss, monkeypatch):
    with jax.enable_x64(True):
        whole = answer(inspect.unwrap(loss), X, LABELS)
        monkeypatch.setattr(pairs, "_at_once", lambda *_: 4)
        blocks = answer(inspect.unwrap(loss), X, LABELS)
        np.testing.assert_allclose(whole[0], formula(loss, X, LABELS), rtol=1e-12)
    np.testing.assert_allclose(blocks[0], whole[0], rtol=1e-14)
    np.testing.assert_allclose(blocks[1], whole[1], rtol=1e-12, atol=1e-14)


@every_loss
@pytest.mark.parametrize("size", [1e-20, 1e20])
def test_very_long_and_short_embeddings(loss, size):
    # As in F.normalize, vectors shorter than 1e-12 are not scaled to unit length.
    x = np.float32(size * X)
    value, gradient = answer(loss, x, LABELS)
    np.testing.assert_allclose(value, formula(loss, x, LABELS), rtol=1e-5)
    with jax.enable_x64(True):
        _, exact = answer(loss, np.float64(x), LABELS)
    np.testing.assert_allclose(gradient, exact, rtol=1e-4, atol=1e-5 * np.max(np.abs(exact)))


@pytest.mark.parametrize("size", [1e-4, 1e4])
@pytest.mark.parametrize(
    ("loss", "options"),
    [
        (circle_loss, ["gamma"]),
        (multi_similarity_loss, ["alpha", "beta"]),
    ],
)
def test_very_small_and_large_exponents(loss, options, size):
    given = dict.fromkeys(options, size)
    value, gradient = answer(loss, np.float32(X), LABELS, **given)
    np.testing.assert_allclose(value, formula(loss, np.float32(X), LABELS, **given), rtol=1e-5)
    with jax.enable_x64(True):
        _, exact = answer(loss, np.float64(np.float32(X)), LABELS, **given)
    np.testing.assert_allclose(gradient, exact, rtol=1e-4, atol=1e-4 * np.max(np.abs(exact)))


@every_loss
def test_a_zero_vector_has_gradient_zero(loss):
    _, gradient = answer(loss, X * np.array([0, 1, 1, 1, 1, 1])[:, None], LABELS, **_moderate_exponents(loss))
    np.testing.assert_array_equal(gradient[0], 0)
    assert np.all(np.delete(gradient, [0, 3], 0) != 0)


def _moderate_exponents(loss):
    return {"gamma": 2.0} if loss is circle_loss else {"beta": 2.0}


@every_loss
@pytest.mark.parametrize(
    ("rows", "labels"),
    [
        pytest.param(1, LABELS, id="one row"),
        pytest.param(6, np.arange(6), id="no positives"),
        pytest.param(6, np.zeros(6, int), id="no negatives"),
    ],
)
def test_without_positives_or_negatives(loss, rows, labels):
    x, labels = X[:rows], labels[:rows]
    (total, weight), (value, gradient) = (
        loss(x, labels, reduction="sum_and_weight"),
        answer(loss, x, labels),
    )
    if loss is circle_loss:
        assert (total, weight) == (0, 0)
        assert np.isnan(value)
        np.testing.assert_array_equal(gradient, 0)
    else:
        assert weight == rows
        np.testing.assert_allclose(value, formula(loss, x, labels), rtol=1e-5)
        assert np.all(np.isfinite(gradient))


@every_loss
def test_all_rows_masked(loss):
    nothing = np.zeros(6, bool)
    assert loss(X * np.nan, LABELS, where=nothing, reduction="sum_and_weight") == (0, 0)
    value, gradient = answer(loss, X * np.nan, LABELS, where=nothing)
    assert np.isnan(value)
    np.testing.assert_array_equal(gradient, 0)


def test_invalid_calls_raise():
    with pytest.raises(
        ValueError, match=r"targets must have the shape of embeddings .* \(6,\), got shape \(3,\)"
    ):
        circle_loss(X, LABELS[:3])
    with pytest.raises(TypeError, match="targets must be integers, got dtype float32"):
        multi_similarity_loss(X, np.float32(LABELS))
    with pytest.raises(ValueError, match="gamma must be a finite number > 0, got 0"):
        circle_loss(X, LABELS, gamma=0)
    with pytest.raises(ValueError, match="margin must be a finite number, got inf"):
        circle_loss(X, LABELS, margin=float("inf"))
    with pytest.raises(ValueError, match="alpha must be a finite number > 0, got -1"):
        multi_similarity_loss(X, LABELS, alpha=-1)
    assert np.isnan(multi_similarity_loss(X, LABELS, beta=jnp.asarray(0.0)))
