"""Cox loss: ties, row order, batches without events, extreme scores, and invalid values."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxloss import cox_loss

RNG = np.random.RandomState(0)
SCORES = RNG.randn(12).astype(np.float32)
TIMES, EVENTS = RNG.randint(1, 5, 12).astype(np.float32), RNG.rand(12) < 0.6
every_rule = pytest.mark.parametrize("ties", ["efron", "breslow"])


@every_rule
def test_the_order_of_rows_does_not_matter(ties):
    order = RNG.permutation(12)
    losses = cox_loss(SCORES, TIMES, EVENTS, ties=ties, reduction="none")
    moved = cox_loss(SCORES[order], TIMES[order], EVENTS[order], ties=ties, reduction="none")
    np.testing.assert_allclose(moved, losses[order], rtol=1e-5, atol=1e-6)


@every_rule
def test_the_weight_is_the_number_of_events(ties):
    total, weight = cox_loss(SCORES, TIMES, EVENTS, ties=ties, reduction="sum_and_weight")
    assert float(weight) == EVENTS.sum()
    np.testing.assert_allclose(cox_loss(SCORES, TIMES, EVENTS, ties=ties), total / weight, rtol=1e-6)


@every_rule
def test_no_events_give_mean_nan_and_sum_zero(ties):
    nothing = np.zeros(12, bool)
    value, slope = jax.value_and_grad(lambda s: cox_loss(s, TIMES, nothing, ties=ties))(jnp.asarray(SCORES))
    assert np.isnan(value)
    np.testing.assert_array_equal(slope, 0)
    assert cox_loss(SCORES, TIMES, nothing, ties=ties, reduction="sum") == 0


@every_rule
def test_extreme_scores(ties):
    scores = jnp.asarray(np.where(np.arange(12) % 2, 1e4, -1e4), jnp.float32)

    def loss(scores):
        return cox_loss(scores, TIMES, EVENTS, ties=ties, reduction="sum")

    with jax.enable_x64(True):
        wide = jax.value_and_grad(loss)(scores.astype(float))
    value, slope = jax.value_and_grad(loss)(scores)
    np.testing.assert_allclose(value, wide[0], rtol=1e-6)
    np.testing.assert_allclose(slope, wide[1], rtol=1e-5, atol=1e-6)
    assert np.isfinite(jax.hessian(loss)(scores)).all()


def test_efron_and_breslow_agree_without_ties():
    times = RNG.permutation(12).astype(np.float32)
    efron, breslow = (cox_loss(SCORES, times, EVENTS, ties=ties) for ties in ("efron", "breslow"))
    np.testing.assert_allclose(efron, breslow, rtol=1e-6)
    longest = np.argmax(times)
    assert cox_loss(SCORES, times, EVENTS, reduction="none")[longest] == pytest.approx(0, abs=1e-6)


def test_invalid_values_are_nan_and_invalid_calls_raise():
    assert np.isnan(cox_loss(SCORES, np.where(np.arange(12) == 3, np.nan, TIMES), EVENTS))
    assert np.isnan(cox_loss(SCORES, TIMES, 2 * EVENTS.astype(int)))
    with pytest.raises(ValueError, match=r"scores must have shape \(N,\), got shape \(3, 4\)"):
        cox_loss(SCORES.reshape(3, 4), TIMES.reshape(3, 4), EVENTS.reshape(3, 4))
    with pytest.raises(ValueError, match="ties must be one of 'efron', 'breslow', got 'exact'"):
        cox_loss(SCORES, TIMES, EVENTS, ties="exact")
