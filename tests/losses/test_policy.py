"""Policy losses: overflowing ratios, empty sequences, micro-batches, and the reference policy."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxloss import grpo_loss, ppo_loss
from jaxloss.training import create_train_state, train_step

RNG = np.random.RandomState(0)
LOG_PROBS, OLD = (jnp.asarray(-3 * RNG.rand(4, 5), jnp.float32) for _ in range(2))
ADVANTAGES = jnp.asarray(RNG.randn(4), jnp.float32)
WHERE = np.arange(5) < np.array([5, 2, 0, 3])[:, None]  # the third sequence is empty


def test_a_ratio_that_overflows():
    log_probs, old = jnp.array([0.0, 0.0, 0.0]), jnp.array([-100.0, -100.0, -100.0])
    advantages = jnp.array([2.0, 0.0, -2.0])
    losses = ppo_loss(log_probs, advantages, old, reduction="none")
    np.testing.assert_allclose(losses, [-2.4, 0, np.inf])
    slope = jax.vmap(jax.grad(ppo_loss))(log_probs, advantages, old)
    np.testing.assert_array_equal(slope, [0, 0, np.inf])
    curve = jax.vmap(jax.hessian(ppo_loss))(log_probs, advantages, old)
    np.testing.assert_array_equal(curve[:2], 0)


def test_nan_is_never_clipped():
    for bad in ((np.nan, 1.0, -1.0), (-1.0, np.nan, -1.0), (-1.0, 1.0, np.nan)):
        assert np.isnan(ppo_loss(*map(jnp.asarray, bad)))


@pytest.mark.parametrize("aggregate", ["sequence", "token", "length"])
def test_empty_sequences_do_not_count(aggregate):
    kept = np.array([0, 1, 3])
    options = {"aggregate": aggregate, "max_length": 8}
    whole = grpo_loss(LOG_PROBS, ADVANTAGES, OLD, where=WHERE, **options)
    part = grpo_loss(LOG_PROBS[kept], ADVANTAGES[kept], OLD[kept], where=WHERE[kept], **options)
    np.testing.assert_allclose(whole, part, rtol=1e-6)
    ratios = np.exp(np.asarray(LOG_PROBS - OLD, float))
    a = np.asarray(ADVANTAGES, float)[:, None]
    tokens = -np.minimum(ratios * a, np.clip(ratios, 0.8, 1.2) * a) * WHERE
    expected = {
        "sequence": np.mean(tokens[kept].sum(1) / [5, 2, 3]),
        "token": tokens.sum() / 10,
        "length": tokens.sum() / (3 * 8),
    }
    np.testing.assert_allclose(whole, expected[aggregate], rtol=1e-5)


@pytest.mark.parametrize("aggregate", ["sequence", "token", "length"])
def test_sums_and_weights_of_micro_batches_give_the_mean_of_the_whole(aggregate):
    def pair(rows):
        arrays = LOG_PROBS[rows], ADVANTAGES[rows], OLD[rows]
        return np.asarray(
            grpo_loss(*arrays, where=WHERE[rows], aggregate=aggregate, reduction="sum_and_weight")
        )

    total, weight = pair(slice(0, 1)) + pair(slice(1, 4))
    whole = grpo_loss(LOG_PROBS, ADVANTAGES, OLD, where=WHERE, aggregate=aggregate)
    np.testing.assert_allclose(total / weight, whole, rtol=1e-6)


@pytest.mark.parametrize("aggregate", ["sequence", "token"])
def test_a_step_over_micro_batches_equals_a_step_over_the_whole_batch(aggregate):
    def apply(params, inputs):
        return inputs * params[None]

    def loss(log_probs, targets, reduction="sum_and_weight"):
        return grpo_loss(log_probs, **targets, aggregate=aggregate, reduction=reduction)

    targets = {"advantages": ADVANTAGES, "old_log_probs": OLD, "where": jnp.asarray(WHERE)}
    steps = []
    for parts in (1, 2, 4):  # with four micro-batches, one is empty
        state = create_train_state((apply, jnp.ones(5)), optax.sgd(1.0))
        state, value = train_step(state, LOG_PROBS, targets, loss=loss, micro_batches=parts)
        steps.append((value, state.params))
    whole = jax.value_and_grad(lambda params: loss(LOG_PROBS * params, targets, "mean"))(jnp.ones((1, 5)))
    for value, params in steps:
        np.testing.assert_allclose(value, whole[0], rtol=1e-6)
        np.testing.assert_allclose(1 - params, whole[1][0], rtol=1e-5, atol=1e-6)


def test_a_sequence_ratio_is_the_geometric_mean_of_its_token_ratios():
    losses = grpo_loss(
        LOG_PROBS, ADVANTAGES, OLD, level="sequence", where=WHERE, epsilon=1.0, reduction="none"
    )
    gaps = np.where(WHERE, LOG_PROBS - OLD, 0).sum(1) / np.maximum(WHERE.sum(1), 1)
    a = np.asarray(ADVANTAGES)
    expected = -np.minimum(np.exp(gaps) * a, np.clip(np.exp(gaps), 0, 2) * a)
    np.testing.assert_allclose(losses, expected[:, None] * WHERE, rtol=1e-5)


def test_the_old_policy_defaults_to_the_stopped_current_one():
    slope = jax.grad(lambda x: grpo_loss(x, ADVANTAGES, aggregate="token", reduction="sum"))(LOG_PROBS)
    np.testing.assert_allclose(slope, np.broadcast_to(-ADVANTAGES[:, None], slope.shape), rtol=1e-6)


def test_the_kl_term_requires_a_reference_policy():
    assert np.isnan(grpo_loss(LOG_PROBS, ADVANTAGES, beta=0.1))
    assert np.isfinite(grpo_loss(LOG_PROBS, ADVANTAGES, beta=0.0))
    excluded = LOG_PROBS.at[:, 1].set(-jnp.inf)
    assert grpo_loss(excluded, ADVANTAGES, excluded, OLD, beta=0.1) == np.inf
    np.testing.assert_array_equal(
        jax.grad(grpo_loss)(excluded, ADVANTAGES, excluded, excluded, beta=0.1)[:, 1], 0
    )


def test_invalid_calls_raise():
    with pytest.raises(ValueError, match=r"log_probs must have shape \(B, T\), got shape \(5,\)"):
        grpo_loss(LOG_PROBS[0], ADVANTAGES[0])
    with pytest.raises(ValueError, match="level must be one of 'token', 'sequence', got 'word'"):
        grpo_loss(LOG_PROBS, ADVANTAGES, level="word")
    with pytest.raises(ValueError, match=r"must have the same shape.*advantages \(3,\)"):
        grpo_loss(LOG_PROBS, ADVANTAGES[:3])
