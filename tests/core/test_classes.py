"""Log-sum-exp and picking a class, against NumPy, and what the compiler makes of them."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxloss import cross_entropy, multi_margin_loss, multilabel_soft_margin_loss, nll_loss
from jaxloss._core import classes as _softmax
from jaxloss._core.classes import SIMPLE, ClassAxis, log_sum_exp, pick, sum_of

LOGITS = np.random.RandomState(0).randn(4, 5, 3).astype(np.float32)
LABELS = np.random.RandomState(1).randint(0, 5, (4, 3)).astype(np.int32)
AXIS = ClassAxis(1, None)


def test_log_sum_exp_and_its_gradient():
    shift = AXIS.max(jnp.asarray(LOGITS))

    def total(logits):
        return jnp.sum(log_sum_exp(logits, shift, None, AXIS) + shift)

    exponentials = np.exp(LOGITS.astype(np.float64))
    np.testing.assert_allclose(total(LOGITS), np.log(exponentials.sum(1)).sum(), rtol=1e-6)
    np.testing.assert_allclose(
        jax.grad(total)(LOGITS), exponentials / exponentials.sum(1, keepdims=True), rtol=1e-5
    )


@pytest.mark.parametrize("size", [1, 3, 64, 128])
@pytest.mark.parametrize("shape", [(2, 700, 3), (2, 700), (2, 5, 300), (2, 128)])
def test_classes_are_summed_in_steps(shape, size, monkeypatch):
    size = min(size, shape[1])
    logits = np.random.RandomState(0).randn(*shape).astype(np.float32)
    monkeypatch.setattr(_softmax, "_step", lambda *_: size)
    in_steps = jax.jit(lambda logits: sum_of(jnp.exp, (logits,), AXIS, SIMPLE))
    assert "slice" in in_steps.lower(logits).as_text()
    np.testing.assert_allclose(in_steps(logits), np.exp(np.float64(logits)).sum(1), rtol=1e-6)


def test_a_weighted_sum_in_steps_has_the_derivatives_of_the_sum(monkeypatch):
    rng = np.random.RandomState(0)
    logits, weight, shift = rng.randn(2, 70, 3), rng.rand(1, 70, 1), rng.rand(2, 1, 3)
    monkeypatch.setattr(_softmax, "_step", lambda *_: 8)

    def total(logits, weight):
        sums = sum_of(
            lambda logits, shift, weight: weight * (shift - logits), (logits, shift, weight), AXIS, SIMPLE
        )
        return jnp.vdot(sums, np.arange(6.0).reshape(2, 3))

    with jax.enable_x64(True):
        value, gradients = jax.jit(jax.value_and_grad(total, (0, 1)))(logits, weight)
        of_position = np.arange(6.0).reshape(2, 1, 3)
        np.testing.assert_allclose(value, (of_position * weight * (shift - logits)).sum())
        np.testing.assert_allclose(gradients[0], -of_position * weight * np.ones_like(logits))
        np.testing.assert_allclose(
            gradients[1], (of_position * (shift - logits)).sum((0, 2), keepdims=True), 1e-12
        )


@pytest.mark.parametrize(
    ("shape", "is_weighted"),
    [
        ((4096, 1000), False),
        ((4096, 1000), True),
        ((64, 1000, 8), True),
        ((64, 4096, 8), False),
        ((8, 21, 64, 64), True),
        ((512, 3000), True),
        ((4, 80000), True),
    ],
)
def test_label_smoothing_writes_no_array_of_the_size_of_the_logits(shape, is_weighted):
    logits, labels, weight = (
        jax.ShapeDtypeStruct(shape, jnp.float32),
        jax.ShapeDtypeStruct((shape[0], *shape[2:]), jnp.int32),
        jax.ShapeDtypeStruct((shape[1],), jnp.float32) if is_weighted else None,
    )
    loss = functools.partial(cross_entropy, axis=1, label_smoothing=0.1)
    for function in (loss, jax.value_and_grad(loss)):
        lowered = jax.jit(function).lower(logits, labels, weight=weight)
        assert "slice" in lowered.as_text()
        assert lowered.compile().memory_analysis().temp_size_in_bytes <= 0.5 * 4 * math.prod(shape)


@pytest.mark.parametrize("loss", [cross_entropy, multi_margin_loss, multilabel_soft_margin_loss])
def test_losses_that_are_not_reduced_write_no_array_of_the_size_of_the_logits(loss):
    rng = np.random.RandomState(0)
    logits, weight, where = np.float32(rng.randn(300, 1000)), np.float32(rng.rand(1000)), rng.rand(300) < 0.8
    labels, probs = rng.randint(0, 1000, 300), np.float32(rng.dirichlet([1] * 1000, 300))
    targets = labels if loss is multi_margin_loss else probs
    lowered = jax.jit(functools.partial(loss, reduction="none")).lower(logits, targets, weight=weight)
    assert "slice" in lowered.as_text()
    assert lowered.compile().memory_analysis().temp_size_in_bytes <= 0.1 * logits.nbytes
    losses = loss(logits, targets, weight=weight, where=where, reduction="none")
    np.testing.assert_array_equal(losses != 0, where)
    total = loss(logits, targets, weight=weight, where=where, reduction="sum")
    np.testing.assert_allclose(np.sum(losses), total, rtol=1e-5)


@pytest.mark.parametrize(
    "shape",
    [(4096, 1000), (64, 1000, 8), (64, 4096, 8), (8, 21, 64, 64), (4, 100, 640), (512, 3000), (4, 80000)],
)
def test_logits_worth_it_are_summed_in_steps(shape):
    logits, shift = (
        jax.ShapeDtypeStruct(shape, jnp.float32),
        jax.ShapeDtypeStruct((shape[0], *shape[2:]), jnp.float32),
    )
    lowered = jax.jit(functools.partial(log_sum_exp, kept=None, classes=AXIS, are_stored=True)).lower(
        logits, shift
    )
    is_fast_at_once = shape == (4096, 1000) and jax.__version_info__ >= (0, 12)
    assert ("slice" in lowered.as_text()) != is_fast_at_once
    compiled = lowered.compile()
    assert compiled.memory_analysis().temp_size_in_bytes <= 0.25 * 4 * math.prod(shape)


def test_pick_and_its_gradient():
    expected = np.take_along_axis(LOGITS, LABELS[:, None], 1)[:, 0]
    np.testing.assert_array_equal(pick(jnp.asarray(LOGITS), jnp.asarray(LABELS), AXIS), expected)
    gradient = jax.grad(lambda scores: jnp.sum(pick(scores, jnp.asarray(LABELS), AXIS)))(LOGITS)
    np.testing.assert_array_equal(gradient, np.eye(5, dtype=np.float32)[LABELS].transpose(0, 2, 1))


def test_a_position_that_is_not_kept_has_no_gradient_even_at_nan():
    logits = jnp.array([[1.0, 2.0], [np.nan, 1.0]])
    shift, kept = jnp.array([2.0, 2.0]), jnp.array([True, False])
    axis = ClassAxis(1, None)
    gradient = jax.grad(lambda logits: jnp.sum(jnp.where(kept, log_sum_exp(logits, shift, kept, axis), 0)))(
        logits
    )
    np.testing.assert_array_equal(gradient[1], 0)


@pytest.mark.parametrize("axis_name", [None, "classes"])
@pytest.mark.parametrize("soft", [False, True])
def test_axis_name_within_vmap_is_the_split_class_axis(axis_name, soft):
    """A vmap with a named axis is `shard_map` on one device."""
    targets = jax.nn.softmax(jnp.asarray(LOGITS), 1) if soft else jnp.asarray(LABELS)
    expected = cross_entropy(LOGITS, targets, axis=1)
    if axis_name is None:
        value = cross_entropy(
            jnp.moveaxis(jnp.asarray(LOGITS), 1, 2), jnp.moveaxis(targets, 1, 2) if soft else targets
        )
    else:
        logits = jnp.asarray(LOGITS)[:, :4].reshape(4, 2, 2, 3)
        targets = targets[:, :4].reshape(4, 2, 2, 3) if soft else targets % 4
        expected = cross_entropy(LOGITS[:, :4], targets.reshape(4, 4, 3) if soft else targets, axis=1)
        value = jax.vmap(
            lambda logits, targets: cross_entropy(logits, targets, axis=1, axis_name="classes"),
            in_axes=(1, 1 if soft else None),
            axis_name="classes",
        )(logits, targets)
    np.testing.assert_allclose(value, jnp.broadcast_to(expected, jnp.shape(value)), rtol=1e-6)


def compiled_gradient(loss):
    logits, labels = jax.ShapeDtypeStruct((1024, 1000), jnp.float32), jax.ShapeDtypeStruct((1024,), jnp.int32)
    return jax.jit(jax.value_and_grad(loss)).lower(logits, labels).compile()


@pytest.mark.parametrize("loss", [cross_entropy, nll_loss])
def test_the_gradient_scatters_nothing_and_holds_no_temporary(loss):
    compiled = compiled_gradient(loss)
    assert " scatter(" not in compiled.as_text()
    assert compiled.memory_analysis().temp_size_in_bytes <= 0.02 * 4 * 1024 * 1000


def test_the_reader_of_compiled_programs_sees_a_scatter():
    def naive(logits, labels):
        return jnp.sum(jnp.take_along_axis(logits, labels[:, None], 1))

    assert " scatter(" in compiled_gradient(naive).as_text()
