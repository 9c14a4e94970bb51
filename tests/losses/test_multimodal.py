"""Losses of pairs from two encoders at their edges."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxloss import clip_loss, info_nce_loss

RNG = np.random.RandomState(0)
X, Y = RNG.randn(5, 3), RNG.randn(5, 3)


def test_clip_is_symmetric_info_nce():
    found = clip_loss(X, Y, logit_scale=4.0, normalize=True, reduction="none")
    expected = info_nce_loss(X, Y, temperature=0.25, symmetric=True, reduction="none")
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    np.testing.assert_allclose(clip_loss(X, Y, logit_scale=4.0), clip_loss(Y, X, logit_scale=4.0), rtol=1e-6)


def test_one_pair_has_loss_zero():
    total, weight = clip_loss(X[:1], Y[:1], logit_scale=100.0, reduction="sum_and_weight")
    assert (float(total), float(weight)) == (0.0, 1.0)


def test_the_scale_is_learned_and_the_bias_cancels():
    def loss(scale, bias):
        return clip_loss(X, Y, logit_scale=scale, logit_bias=bias)

    slopes = jax.grad(loss, (0, 1))(2.0, -10.0)
    with jax.enable_x64(True):
        expected = (loss(2.0 + 1e-4, 0.0) - loss(2.0 - 1e-4, 5.0)) / 2e-4
    np.testing.assert_allclose(slopes, [expected, 0], rtol=1e-4)


def test_options_outside_their_domain():
    with pytest.raises(ValueError, match="logit_scale must be a finite number, got inf"):
        clip_loss(X, Y, logit_scale=float("inf"))
    assert np.isnan(clip_loss(X, Y, logit_scale=jnp.asarray(np.nan)))
    assert np.isnan(clip_loss(X, Y, logit_scale=1.0, logit_bias=jnp.asarray(np.inf)))
