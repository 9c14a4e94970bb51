"""Edge cases of the CLIP and SigLIP losses."""

import inspect
from decimal import localcontext

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxloss import clip_loss, info_nce_loss, siglip_loss
from jaxloss._core import pairs
from tests import formulas
from tests.catalogue import CASES as CASES  # registers the formulas
from tests.oracle import decimals

RNG = np.random.RandomState(0)
X, Y = RNG.randn(5, 3), RNG.randn(5, 3)


def test_clip_loss_is_symmetric_info_nce():
    found = clip_loss(X, Y, logit_scale=4.0, normalize=True, reduction="none")
    expected = info_nce_loss(X, Y, temperature=0.25, symmetric=True, reduction="none")
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    np.testing.assert_allclose(clip_loss(X, Y, logit_scale=4.0), clip_loss(Y, X, logit_scale=4.0), rtol=1e-6)


def test_one_pair_has_loss_zero():
    total, weight = clip_loss(X[:1], Y[:1], logit_scale=100.0, reduction="sum_and_weight")
    assert (float(total), float(weight)) == (0.0, 1.0)


def test_the_scale_is_differentiable_and_the_bias_cancels():
    def loss(scale, bias):
        return clip_loss(X, Y, logit_scale=scale, logit_bias=bias)

    slopes = jax.grad(loss, (0, 1))(2.0, -10.0)
    with jax.enable_x64(True):
        expected = (loss(2.0 + 1e-4, 0.0) - loss(2.0 - 1e-4, 5.0)) / 2e-4
    np.testing.assert_allclose(slopes, [expected, 0], rtol=1e-4)


def test_options_outside_their_domain_raise_or_give_nan():
    with pytest.raises(ValueError, match="logit_scale must be a finite number, got inf"):
        clip_loss(X, Y, logit_scale=float("inf"))
    assert np.isnan(clip_loss(X, Y, logit_scale=jnp.asarray(np.nan)))
    assert np.isnan(clip_loss(X, Y, logit_scale=1.0, logit_bias=jnp.asarray(np.inf)))


def siglip(embeddings, targets, scale, bias, **options):
    """Returns the mean of `siglip_loss`, and its gradient in all four arguments."""

    def mean(embeddings, targets, scale, bias):
        loss = inspect.unwrap(siglip_loss)  # recompiled after the block size is patched
        return loss(embeddings, targets, logit_scale=scale, logit_bias=bias, **options)

    arguments = map(jnp.asarray, (embeddings, targets, scale, bias))
    return jax.jit(jax.value_and_grad(mean, (0, 1, 2, 3)))(*arguments)


def test_siglip_scale_and_bias_have_no_default():
    parameters = inspect.signature(siglip_loss).parameters
    empty = inspect.Parameter.empty
    assert [parameters[name].default for name in ("logit_scale", "logit_bias")] == [empty, empty]


def test_row_blocks_equal_all_rows_at_once(monkeypatch):
    with jax.enable_x64(True):
        whole = siglip(X, Y, 4.0, -2.0)
        monkeypatch.setattr(pairs, "_at_once", lambda *_: 2)
        blocks = siglip(X, Y, 4.0, -2.0)
        expected = siglip_loss(X, Y, logit_scale=4.0, logit_bias=-2.0)
    for found, array in zip(jax.tree.leaves(blocks), jax.tree.leaves(whole), strict=True):
        np.testing.assert_allclose(found, array, rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(whole[0], expected, rtol=1e-14)


@pytest.mark.parametrize(
    ("size", "scale", "bias"),
    [(1e-20, 10.0, -10.0), (1e20, 10.0, -10.0), (1.0, 1e-4, 80.0), (1.0, 1e4, -80.0), (1.0, -40.0, -1e4)],
)
def test_siglip_with_extreme_lengths_and_options(size, scale, bias):
    x, y = np.float32(size * X), np.float32(Y)
    value, gradients = siglip(x, y, scale, bias, normalize=True)
    with localcontext(formulas.CONTEXT):
        arrays = {"embeddings": decimals(np.float64(x)), "targets": decimals(np.float64(y))}
        options = {"logit_scale": scale, "logit_bias": bias, "normalize": True}
        losses, weight, _ = formulas.evaluate_batch("siglip_loss", arrays, options)
        np.testing.assert_allclose(value, float(np.sum(losses) / np.sum(weight)), rtol=1e-5)
    with jax.enable_x64(True):
        _, exact = siglip(np.float64(x), np.float64(y), scale, bias, normalize=True)
    for found, slope in zip(gradients, exact, strict=True):
        np.testing.assert_allclose(found, slope, rtol=1e-4, atol=1e-4 * np.max(np.abs(slope)))


def test_siglip_of_one_pair_keeps_full_precision():
    # In float32, log(1 + exp(z)) - z would be 0. One pair has no negatives.
    x = np.array([[0.6, 0.8]], np.float32)
    total, weight = siglip_loss(x, x, logit_scale=40.0, logit_bias=0.0, reduction="sum_and_weight")
    np.testing.assert_allclose(total, np.exp(-40.0), rtol=1e-5)
    assert weight == 1


def test_siglip_of_zero_vectors_and_of_all_masked_rows():
    zero = np.zeros((5, 3), np.float32)
    value, (of_embeddings, *_) = siglip(zero, Y, 10.0, -1.0, normalize=True)
    np.testing.assert_allclose(value, np.log1p(np.e) + 4 * np.log1p(np.exp(-1)), rtol=1e-6)
    np.testing.assert_array_equal(of_embeddings, 0)
    value, gradients = siglip(np.nan * X, Y, 10.0, -1.0, where=np.zeros(5, bool))
    assert np.isnan(value)
    for gradient in gradients:
        np.testing.assert_array_equal(gradient, 0)
