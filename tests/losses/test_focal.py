"""Focal losses: limits, special cases, differentiable options, and invalid input."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import checkify

from jaxloss import asymmetric_loss, cross_entropy, sigmoid_focal_loss, softmax_focal_loss

INF = np.inf
LABELS = np.array([0, 2, 1, -100])


def _logits(*shape):
    return np.random.RandomState(0).randn(*shape) * 3


@pytest.mark.parametrize("reduction", ["none", "mean", "sum", "sum_and_weight"])
def test_softmax_focal_loss_with_gamma_0_is_cross_entropy(reduction):
    options = {"weight": np.array([0.5, 2.0, 1.0]), "reduction": reduction}
    with jax.enable_x64(True):
        found = softmax_focal_loss(_logits(4, 3), LABELS, gamma=0.0, **options)
        chex.assert_trees_all_close(found, cross_entropy(_logits(4, 3), LABELS, **options), rtol=1e-12)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 3.0])
def test_softmax_focal_loss_of_two_classes_is_sigmoid_focal_loss_of_their_difference(gamma):
    logits, labels = _logits(6, 2), np.array([0, 1, 0, 1, 1, 0])
    with jax.enable_x64(True):
        expected = sigmoid_focal_loss(logits[:, 1] - logits[:, 0], labels, gamma=gamma, alpha=None)
        np.testing.assert_allclose(softmax_focal_loss(logits, labels, gamma=gamma), expected, rtol=1e-12)


def test_confident_positions_keep_full_precision():
    # With two other classes, 1 - p is 2 exp(-gap) / (1 + 2 exp(-gap)); float32 rounds p to 1 from 18 on.
    gaps = np.arange(5.0, 40.0, 5)
    logits = np.stack([gaps, 0 * gaps, 0 * gaps], -1)
    miss = 2 * np.exp(-gaps) / (1 + 2 * np.exp(-gaps))
    options = {"gamma": 0.5, "reduction": "none"}
    found = softmax_focal_loss(logits.astype(np.float32), np.zeros(7, int), **options)
    np.testing.assert_allclose(found, np.sqrt(miss) * -np.log1p(-miss), rtol=1e-5)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
@pytest.mark.parametrize(
    ("logits", "loss", "slope"),
    [
        ([INF, 0.0, 1.0], 0, [0, 0, 0]),
        ([0.0, -INF, -INF], 0, [0, 0, 0]),
        ([0.0], 0, [0]),
        ([-INF, 0.0, 0.0], INF, [-1, 0.5, 0.5]),
        ([-1e4, 1e4, 0.0], 2e4, [-1, 1, 0]),
        ([1e4, -1e4, 0.0], 0, [0, 0, 0]),
    ],
)
def test_softmax_focal_loss_at_extreme_logits(gamma, logits, loss, slope):
    function = functools.partial(softmax_focal_loss, targets=np.array(0), gamma=gamma)
    found, gradient = jax.value_and_grad(function)(np.float32(logits))
    np.testing.assert_allclose(found, loss, atol=1e-30)
    np.testing.assert_allclose(gradient, slope, atol=1e-30)
    if loss < INF:
        assert np.isfinite(jax.hessian(function)(np.float32(logits))).all()


def test_asymmetric_loss_of_equal_gammas_without_clip_is_sigmoid_focal_loss():
    logits, targets = _logits(6), np.array([0, 1, 0.3, 0.7, 1, 0])
    with jax.enable_x64(True):
        for gamma in (0.0, 0.5, 2.0):
            ours = functools.partial(asymmetric_loss, gamma_neg=gamma, gamma_pos=gamma, clip=0.0)
            theirs = functools.partial(sigmoid_focal_loss, gamma=gamma, alpha=None)
            for derivative in (lambda f: f, jax.grad, jax.hessian):
                found, expected = (derivative(f)(logits, targets) for f in (ours, theirs))
                np.testing.assert_allclose(found, expected, rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("gamma_neg", [0.0, 0.5, 4.0])
def test_a_clipped_negative_has_zero_loss_and_derivatives(gamma_neg):
    function = functools.partial(asymmetric_loss, targets=0.0, gamma_neg=gamma_neg)
    for logit in np.float32([-3, -30, -1e4, -INF]):  # sigmoid(-3) = 0.047
        for derivative in (lambda f: f, jax.grad, jax.hessian):
            assert derivative(function)(logit) == 0


def test_the_loss_of_a_wrong_positive_is_unbounded():
    found = jax.value_and_grad(asymmetric_loss)(np.float32(-30), np.float32(1))
    np.testing.assert_allclose(found, (30, -1), rtol=1e-6)
    assert asymmetric_loss(np.float32(-INF), np.float32(1)) == INF


def test_stop_focus_gradient_treats_the_focus_as_a_constant():
    logit = 0.7
    with jax.enable_x64(True):
        yes = 1 / (1 + np.exp(-logit))
        no = 1 - yes + 0.05
        frozen = functools.partial(asymmetric_loss, stop_focus_gradient=True)
        np.testing.assert_allclose(frozen(logit, 0.0), asymmetric_loss(logit, 0.0), rtol=1e-12)
        expected = (1 - no) ** 4 * yes * (1 - yes) / no
        np.testing.assert_allclose(jax.grad(frozen)(logit, 0.0), expected, rtol=1e-12)
        np.testing.assert_allclose(jax.grad(frozen)(logit, 1.0), -((1 - yes) ** 2), rtol=1e-12)
        slope = jax.grad(lambda gamma: frozen(logit, 0.0, gamma_neg=gamma))(4.0)
        assert slope == 0


def test_exponents_and_clip_are_differentiable():
    with jax.enable_x64(True):

        def loss(options):
            targets = np.array([0.0, 1.0, 0.4])
            return asymmetric_loss(np.array([0.7, -0.2, 0.3]), targets, **options)

        options = {"gamma_neg": 2.0, "gamma_pos": 0.5, "clip": 0.1}
        found = jax.grad(loss)(options)
        for name, step in (("gamma_neg", 1e-6), ("gamma_pos", 1e-6), ("clip", 1e-6)):
            ahead, behind = (loss(options | {name: options[name] + sign * step}) for sign in (1, -1))
            np.testing.assert_allclose(found[name], (ahead - behind) / (2 * step), rtol=1e-6)


@pytest.mark.parametrize(
    ("loss", "first", "targets", "expected"),
    [
        (
            softmax_focal_loss,
            np.ones((2, 3), np.float32),
            np.array([0, 3]),
            "targets: expected class indices",
        ),
        (asymmetric_loss, np.ones(2, np.float32), np.float32([0, 1.5]), "targets: expected probabilities"),
    ],
)
def test_invalid_targets_are_nan_and_reported_by_checkify(loss, first, targets, expected):
    losses = loss(first, targets, reduction="none")
    np.testing.assert_array_equal(np.isnan(losses), [False, True])
    gradient = jax.grad(lambda first: loss(first, targets, reduction="sum"))(first)
    np.testing.assert_array_equal(np.isnan(gradient).reshape(2, -1).all(1), [False, True])
    error, _ = checkify.checkify(loss)(first, targets)
    assert expected in error.get()


@pytest.mark.parametrize(
    ("loss", "option", "bad"),
    [
        (softmax_focal_loss, "gamma", -0.5),
        (asymmetric_loss, "gamma_neg", -0.5),
        (asymmetric_loss, "gamma_pos", -0.5),
        (asymmetric_loss, "clip", 1.0),
        (asymmetric_loss, "clip", -0.1),
    ],
)
def test_options_outside_their_domain_raise(loss, option, bad):
    arrays = (np.ones((1, 2)), np.zeros(1, int)) if loss is softmax_focal_loss else (np.ones(1), np.ones(1))
    with pytest.raises(ValueError, match=f"{option} must be a number"):
        loss(*arrays, **{option: bad})
    assert np.isnan(loss(*arrays, **{option: jnp.float32(bad)}))
