"""Ranking losses: blocks of pairs, ties, lists without relevant items, invalid targets."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxloss
from jaxloss.losses import ranking

LOSSES = ["softmax_ranking_loss", "listmle_loss", "pairwise_logistic_loss", "approx_ndcg_loss"]
every_loss = pytest.mark.parametrize("name", LOSSES)
RNG = np.random.RandomState(0)
SCORES, TARGETS = RNG.randn(3, 10).astype(np.float32), RNG.randint(0, 3, (3, 10)).astype(np.float32)
WHERE = RNG.rand(3, 10) < 0.7


def answer(name, scores, **options):
    """Returns the value of the mean and the gradient in the scores."""
    loss = jaxloss.__dict__[name].__wrapped__
    return jax.jit(jax.value_and_grad(lambda s: loss(s, TARGETS, **options)))(jnp.asarray(scores))


@pytest.mark.parametrize("name", LOSSES[2:])
def test_item_blocks_equal_all_items_at_once(name, monkeypatch):
    whole = answer(name, SCORES, where=WHERE)
    monkeypatch.setattr(ranking, "_AT_ONCE", 1)  # blocks of eight items, the last of two
    blocks = answer(name, SCORES, where=WHERE)
    np.testing.assert_allclose(blocks[0], whole[0], rtol=1e-6)
    np.testing.assert_allclose(blocks[1], whole[1], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", LOSSES[2:])
def test_pairs_of_long_lists_are_never_materialized(name):
    loss, shape = getattr(jaxloss, name), jax.ShapeDtypeStruct((8, 4096), jnp.float32)
    compiled = jax.jit(jax.value_and_grad(loss)).lower(shape, shape).compile()
    assert compiled.memory_analysis().temp_size_in_bytes < 0.15 * 8 * 4096 * 4096 * 4


@every_loss
def test_fully_masked_lists_do_not_count(name):
    loss = getattr(jaxloss, name)
    where = WHERE & np.array([[True], [False], [True]])
    total, weight = loss(SCORES, TARGETS, where=where, reduction="sum_and_weight")
    kept = [0, 2]
    expected = loss(SCORES[kept], TARGETS[kept], where=where[kept], reduction="sum_and_weight")
    np.testing.assert_allclose([total, weight], expected, rtol=1e-6)


def test_lists_without_relevant_items_have_weight_zero():
    for name in LOSSES[2:]:
        losses = getattr(jaxloss, name)(SCORES, 0 * TARGETS, reduction="sum_and_weight")
        np.testing.assert_array_equal(losses, [0, 0])
    value, slope = jax.value_and_grad(jaxloss.approx_ndcg_loss)(jnp.asarray(SCORES), 0 * TARGETS)
    assert np.isnan(value)
    np.testing.assert_array_equal(slope, 0)


def test_items_of_equal_relevance_keep_their_order():
    losses = jaxloss.listmle_loss(SCORES, 0 * TARGETS, reduction="none")
    tails = [[np.log(np.exp(row[i:].astype(float)).sum()) - row[i] for i in range(10)] for row in SCORES]
    np.testing.assert_allclose(losses, np.sum(tails, 1), rtol=1e-5)


@pytest.mark.parametrize("name", ["softmax_ranking_loss", "approx_ndcg_loss"])
def test_negative_relevance_is_nan(name):
    losses = getattr(jaxloss, name)(SCORES, TARGETS - np.eye(3, 10, dtype=np.float32) * 9, reduction="none")
    assert np.isnan(losses).all()


@every_loss
def test_nan_relevance_gives_nan(name):
    targets = np.where(np.eye(3, 10), np.nan, TARGETS)
    losses = getattr(jaxloss, name)(
        SCORES, targets, where=np.array([[True], [True], [False]]), reduction="none"
    )
    np.testing.assert_array_equal(np.isnan(losses), [True, True, False])


def test_approx_ndcg_at_low_temperature_equals_ndcg():
    loss = jaxloss.approx_ndcg_loss(SCORES[:1], TARGETS[:1], temperature=1e-4)
    gains = 2 ** TARGETS[0].astype(float) - 1
    discounts = 1 / np.log2(np.arange(2, 12))
    found, ideal = (
        np.sum(gains[order] * discounts) for order in (np.argsort(-SCORES[0]), np.argsort(-gains))
    )
    np.testing.assert_allclose(loss, 1 - found / ideal, rtol=1e-5)
