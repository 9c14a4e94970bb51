"""Edge cases of distillation losses: excluded classes, beta of 0 and 1, differentiable options."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxloss
from jaxloss import distillation_loss, jensen_shannon_loss

INF = np.inf
RNG = np.random.RandomState(0)
X, Y = RNG.randn(4, 5) * 2, RNG.randn(4, 5) * 2
# Row by row, class 0 is excluded by both, by the student, by the teacher, and by neither.
STUDENT = np.array([[-INF, 0.0, 1.0], [-INF, 0.5, 1.0], [1.0, 0.0, 2.0], [0.5, 1.0, 2.0]])
TEACHER = np.array([[-INF, 2.0, 0.0], [1.0, 0.0, 2.0], [-INF, 0.5, 1.0], [0.5, 1.0, 2.0]])
TEACHER_DIVERGES, STUDENT_DIVERGES = 1, 2  # rows where KL(teacher || student), or the reverse, is infinite


def probabilities(logits):
    odds = np.exp(logits - np.max(logits, -1, keepdims=True))
    return odds / odds.sum(-1, keepdims=True)


def divergence(probs, others):
    """Returns KL(probs || others), with 0 · log 0 = 0."""
    terms = np.zeros_like(probs)
    np.log(probs, out=terms, where=probs > 0)
    logs = np.where(others > 0, np.log(np.where(others > 0, others, 1)), -INF)
    return np.sum(np.where(probs > 0, probs * (terms - np.where(probs > 0, logs, 0)), 0), -1)


@pytest.fixture(scope="module")
def derivatives():
    """Returns losses, gradients and Hessians of the rows in both arguments, for each beta and for KL."""

    def of_row(both, beta):
        return jensen_shannon_loss(both[0], both[1], beta=beta, reduction="sum")

    def kl(both):
        return distillation_loss(both[0], both[1], reduction="sum")

    with jax.enable_x64(True):
        both, betas = np.stack([STUDENT, TEACHER], 1), np.array([0, 0.25, 0.5, 1])
        of_betas = jax.vmap(jax.vmap(value_gradient_hessian(of_row), (0, None)), (None, 0))
        found = jax.jit(of_betas)(both, betas), jax.jit(jax.vmap(value_gradient_hessian(kl)))(both)
        return jax.device_get(found)


def value_gradient_hessian(function):
    def derivatives(both, *options):
        return tuple(d(function)(both, *options) for d in (lambda f: f, jax.grad, jax.hessian))

    return derivatives


def test_losses_with_minus_infinity_logits_equal_the_formula(derivatives):
    s, t = probabilities(STUDENT), probabilities(TEACHER)
    of_betas, kl = derivatives
    mixed = [beta * divergence(t, m) + (1 - beta) * divergence(s, m) for beta, m in mixtures(s, t)]
    expected = [divergence(t, s), *mixed, divergence(s, t)]
    np.testing.assert_allclose(of_betas[0], expected, rtol=1e-12, atol=1e-15)
    np.testing.assert_allclose(kl[0], divergence(t, s), rtol=1e-12, atol=1e-15)
    infinite = [(0, TEACHER_DIVERGES), (3, STUDENT_DIVERGES)]
    assert [tuple(place) for place in np.argwhere(np.isinf(of_betas[0]))] == infinite
    assert of_betas[0][0, 3] == kl[0][3] == 0  # equal distributions


def mixtures(s, t):
    return [(beta, beta * t + (1 - beta) * s) for beta in (0.25, 0.5)]


def test_derivatives_are_finite_where_the_loss_is_finite(derivatives):
    of_betas, kl = derivatives
    for values, *higher in (of_betas, kl):
        for derivative in higher:
            finite = np.isfinite(derivative).reshape(*values.shape, -1).all(-1)
            np.testing.assert_array_equal(finite, np.isfinite(values))
    # A class that both exclude has gradient 0.
    np.testing.assert_array_equal(of_betas[1][:, 0, :, 0], 0)
    np.testing.assert_array_equal(kl[1][0, :, 0], 0)


def test_beta_0_and_1_give_the_two_divergences_and_their_derivatives(derivatives):
    of_betas, kl = derivatives
    finite = np.isfinite(kl[0])
    for ours, theirs in zip(of_betas, kl, strict=True):
        np.testing.assert_allclose(ours[0][finite], theirs[finite], rtol=1e-12, atol=1e-14)
    with jax.enable_x64(True):
        turned = jensen_shannon_loss(Y, X, beta=1.0, reduction="none")
        np.testing.assert_allclose(turned, distillation_loss(X, Y, reduction="none"), rtol=1e-12)


def test_gradients_are_finite_when_only_the_student_excludes_a_class():
    # The loss is infinite, but its student gradient is finite, in reverse and in forward mode.
    student, teacher = STUDENT[TEACHER_DIVERGES], TEACHER[TEACHER_DIVERGES]
    expected = probabilities(student) - probabilities(teacher)
    for loss in (distillation_loss, lambda x, y: jensen_shannon_loss(x, y, beta=0.0)):
        np.testing.assert_allclose(jax.grad(loss)(student, teacher), expected, rtol=1e-5)
        _, tangent = jax.jvp(lambda x, f=loss: f(x, teacher), (student,), (np.arange(3.0),))
        np.testing.assert_allclose(tangent, expected @ np.arange(3.0), rtol=1e-5)


def test_temperature_and_beta_are_differentiable():
    def total(temperature, beta):
        mixed = jensen_shannon_loss(STUDENT, TEACHER, beta=beta, temperature=temperature)
        return mixed + distillation_loss(X, Y, temperature=temperature)

    with jax.enable_x64(True):
        slopes = jax.grad(total, (0, 1))(1.5, 0.25)
        steps = [(1e-6, 0), (0, 1e-6)]
        ends = [(total(1.5 + a, 0.25 + b) - total(1.5 - a, 0.25 - b)) / 2e-6 for a, b in steps]
        np.testing.assert_allclose(slopes, ends, rtol=1e-8)
        hessian = jax.hessian(lambda o: total(o[0], o[1]))(jnp.array([1.5, 0.25]))
        slope = jax.grad(total, (0, 1))
        ends = [np.subtract(slope(1.5 + a, 0.25 + b), slope(1.5 - a, 0.25 - b)) / 2e-6 for a, b in steps]
        np.testing.assert_allclose(hessian, ends, rtol=1e-6)
        for end in (0.0, 1.0):
            assert jax.grad(lambda beta: jensen_shannon_loss(X, Y, beta=beta))(end) == 0


def test_the_mean_equals_batchmean_of_kl_div():
    log_probs = (jax.nn.log_softmax(array / 2) for array in (X, Y))
    expected = 4 * jaxloss.kl_div(*log_probs, log_target=True, reduction="batchmean")
    np.testing.assert_allclose(distillation_loss(X, Y, temperature=2.0), expected, rtol=1e-5)


def test_logits_far_apart_neither_overflow_nor_vanish():
    far = np.float32([[300.0, 0.0, -300.0]])
    near = np.float32([[-300.0, 0.0, 300.0]])
    assert distillation_loss(far, near) == 600
    np.testing.assert_allclose(jensen_shannon_loss(far, near), np.log(2), rtol=1e-6)
    for beta in (1e-30, 0.25):
        value, slopes = jax.value_and_grad(jensen_shannon_loss, (0, 1))(far, near, beta=beta)
        entropy = -beta * np.log(beta) - (1 - beta) * np.log1p(-beta)
        np.testing.assert_allclose(value, entropy, rtol=1e-5, atol=2e-30)
        assert np.isfinite(slopes).all()


def test_invalid_calls_raise():
    with pytest.raises(ValueError, match=r"logits and targets must have the same shape, got logits \(4, 5\)"):
        distillation_loss(X, Y[:, :4])
    with pytest.raises(ValueError, match=r"logits must have at least one class, got logits \(4, 0\)"):
        jensen_shannon_loss(X[:, :0], Y[:, :0])
    with pytest.raises(ValueError, match=r"beta must be a number in \[0, 1\], got 1.5"):
        jensen_shannon_loss(X, Y, beta=1.5)
    with pytest.raises(ValueError, match="temperature must be a number > 0, got 0"):
        distillation_loss(X, Y, temperature=0)
    assert np.isnan(jensen_shannon_loss(X, Y, beta=jnp.asarray(-0.5)))
    assert np.isnan(distillation_loss(X, Y, temperature=jnp.asarray(0.0)))
