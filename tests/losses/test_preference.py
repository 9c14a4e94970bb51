"""Preference losses: extreme values, impossible answers, options, and use with `linear_log_probs`."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxloss
from jaxloss import bradley_terry_loss, dpo_loss, kto_loss, orpo_loss, simpo_loss

CHOSEN, REJECTED, REFERENCE = jnp.array([-1.0, -4.0]), jnp.array([-2.0, -3.0]), jnp.array([-1.5, -3.5])


@pytest.mark.parametrize(
    "kind", ["sigmoid", "robust", "hinge", "ipo", "apo_zero", "apo_down", "nca_pair", "sppo_hard"]
)
def test_extreme_preferences_have_finite_derivatives(kind):
    far = jnp.array([[-1e4, 0.0], [0.0, -1e4], [-3.0, -3.0]], jnp.float32)

    @jax.vmap
    def derivatives(pair):
        def loss(pair):
            return dpo_loss(pair[0], pair[1], -1.0, -2.0, kind=kind)

        return loss(pair), jax.grad(loss)(pair), jax.hessian(loss)(pair)

    assert all(np.isfinite(part).all() for part in jax.jit(derivatives)(far))


def test_only_some_kinds_accept_label_smoothing():
    with pytest.raises(ValueError, match=r"label_smoothing must be 0 for kind 'hinge', got 0\.1"):
        dpo_loss(CHOSEN, REJECTED, REFERENCE, REFERENCE, kind="hinge", label_smoothing=0.1)
    with pytest.raises(ValueError, match=r"label_smoothing must be a number in \[0, 0\.5\), got 0\.5"):
        dpo_loss(CHOSEN, REJECTED, REFERENCE, REFERENCE, label_smoothing=0.5)
    with pytest.raises(ValueError, match=r"kind must be one of 'sigmoid', 'robust', .*, got 'dpo'"):
        dpo_loss(CHOSEN, REJECTED, REFERENCE, REFERENCE, kind="dpo")


def test_label_smoothing_of_an_infinite_preference():
    # With label smoothing one of the two terms is infinite, however small its weight.
    reward = jnp.array([jnp.inf, -jnp.inf])
    assert (
        dpo_loss(reward, 0 * CHOSEN, 0 * CHOSEN, 0 * CHOSEN, label_smoothing=0.25, reduction="none")
        == jnp.inf
    ).all()
    np.testing.assert_array_equal(
        dpo_loss(reward, 0 * CHOSEN, 0 * CHOSEN, 0 * CHOSEN, reduction="none"), [0, np.inf]
    )


def test_log_probs_of_minus_infinity_in_both_models_cancel():
    nothing = jnp.array([-jnp.inf, -1.0])
    value, slope = jax.value_and_grad(lambda x: dpo_loss(x, REJECTED, nothing, REFERENCE, beta=0.5))(nothing)
    np.testing.assert_allclose(
        value, dpo_loss(0 * CHOSEN, REJECTED, 0 * CHOSEN, REFERENCE, beta=0.5), rtol=1e-6
    )
    assert slope[0] == 0
    assert slope[1] != 0


def test_simpo_gamma_is_the_unscaled_margin():
    gaps = 2.0 * (CHOSEN - REJECTED) - 0.5
    np.testing.assert_allclose(
        simpo_loss(CHOSEN, REJECTED, gamma=0.5), np.mean(np.log1p(np.exp(-gaps))), rtol=1e-6
    )


def test_orpo_at_probability_one():
    # The odds of probability 1 are infinite; the gradient is its limit.
    slopes = jax.vmap(jax.grad(orpo_loss, (0, 1)))(
        jnp.array([0.0, 0.0, -1e-7]), jnp.array([-1.0, 0.0, -1e-7])
    )
    odds = np.exp(-1) / (1 - np.exp(-1))
    np.testing.assert_allclose(slopes[0][:2], [-1 - 0.1 * odds, -1], rtol=1e-6)
    np.testing.assert_allclose(slopes[1][:2], [0, 0], atol=1e-6)
    assert np.isfinite(slopes).all()
    assert np.isnan(orpo_loss(jnp.array([0.1]), jnp.array([-1.0])))
    assert np.isnan(orpo_loss(jnp.array([-1.0]), jnp.array([0.1])))


def test_the_kto_kl_is_stopped_and_clamped_at_zero():
    targets = jnp.array([True, False])
    assert jax.grad(lambda kl: kto_loss(CHOSEN, targets, REFERENCE, kl=kl))(0.5) == 0
    below, zero = (kto_loss(CHOSEN, targets, REFERENCE, kl=kl) for kl in (-0.5, 0.0))
    assert below == zero
    assert np.isnan(kto_loss(CHOSEN, jnp.array([2, 0]), REFERENCE))


def test_reward_margins_broadcast():
    scores = jnp.ones((2, 3))
    rows = bradley_terry_loss(scores, 0 * scores, margin=jnp.array([0.0, 1.0, 2.0]), reduction="none")
    np.testing.assert_allclose(rows, np.log1p(np.exp([[-1.0, 0.0, 1.0]] * 2)), rtol=1e-6)
    with pytest.raises(ValueError, match=r"margin must broadcast to shape \(2, 3\), got shape \(2,\)"):
        bradley_terry_loss(scores, scores, margin=jnp.ones(2))


def test_dpo_of_linear_log_probs_equals_dpo_of_logits():
    rng = np.random.RandomState(0)
    hidden = jnp.asarray(rng.randn(2, 3, 5, 4), jnp.float32)  # chosen and rejected, of 3 pairs of 5 tokens
    kernel = jnp.asarray(rng.randn(4, 9), jnp.float32)
    labels, where = jnp.asarray(rng.randint(0, 9, (2, 3, 5))), jnp.asarray(rng.rand(2, 3, 5) < 0.7)

    def from_hidden(kernel):
        tokens = jaxloss.linear_log_probs(hidden, kernel, labels, where=where).log_prob
        return dpo_loss(*jnp.sum(tokens, -1), jnp.zeros(3), jnp.zeros(3))

    def from_logits(kernel):
        log_probs = jax.nn.log_softmax(hidden @ kernel)
        tokens = jnp.take_along_axis(log_probs, labels[..., None], -1)[..., 0]
        return dpo_loss(*jnp.sum(jnp.where(where, tokens, 0), -1), jnp.zeros(3), jnp.zeros(3))

    found, expected = (jax.value_and_grad(loss)(kernel) for loss in (from_hidden, from_logits))
    np.testing.assert_allclose(found[0], expected[0], rtol=1e-5)
    np.testing.assert_allclose(found[1], expected[1], rtol=1e-4, atol=1e-6)
