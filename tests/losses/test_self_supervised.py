"""Edge cases of self-supervised losses: few rows, constant features, sharded rows, the DINO teacher."""

import functools
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxloss import barlow_twins_loss, dino_loss, vicreg_loss

RNG = np.random.RandomState(0)
X, Y = RNG.randn(6, 3), RNG.randn(6, 3)
LOSSES = [barlow_twins_loss, vicreg_loss]
every_loss = pytest.mark.parametrize("loss", LOSSES, ids=[loss.__name__ for loss in LOSSES])


def answer(loss, embeddings, targets, **options):
    """Returns the value, and the gradients in both views."""
    return jax.jit(jax.value_and_grad(lambda x, y: loss(x, y, **options), (0, 1)))(embeddings, targets)


def test_too_few_rows_give_nan_with_gradient_zero():
    where = np.arange(6) == 2
    for loss, rows in ((barlow_twins_loss, 0), (vicreg_loss, 0), (vicreg_loss, 1)):
        for value, gradients in (
            answer(loss, X[:rows], Y[:rows]),
            answer(loss, X, Y, where=where if rows else ~where & where),
        ):
            assert np.isnan(value)
            for gradient in gradients:
                np.testing.assert_array_equal(gradient, 0)
    value, gradients = answer(barlow_twins_loss, X[:1], Y[:1])  # one row has no variance: correlations are 0
    assert value == 3
    np.testing.assert_array_equal(gradients, 0)


@every_loss
def test_constant_features_have_finite_derivatives_without_eps(loss):
    constant = np.stack([np.where(np.arange(3) == 1, 2.0, view) for view in (X, Y)])

    def f(both):
        return loss(both[0], both[1], eps=0.0)

    with jax.enable_x64(True):
        gradient, hessian = jax.jit(lambda both: (jax.grad(f)(both), jax.hessian(f)(both)))(constant)
    assert np.isfinite(hessian).all()
    if loss is barlow_twins_loss:
        np.testing.assert_array_equal(gradient[..., 1], 0)
        kept = [0, 2]
        rest = barlow_twins_loss(constant[0][:, kept], constant[1][:, kept], eps=0.0)
        np.testing.assert_allclose(f(constant), 1 + rest, rtol=1e-6)


@every_loss
def test_features_far_from_zero_keep_full_precision(loss):
    # In float32, sums of squares near 1000² keep few digits of a variance of 1.
    near = np.float32([X, Y])
    far = near + np.float32([[[1000.0, -500.0, 0.0]]])
    near = far - np.float32([[[1000.0, -500.0, 0.0]]])  # rounded like `far`
    value, gradients = answer(loss, *far)
    expected, slopes = answer(loss, *near)
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    np.testing.assert_allclose(gradients, slopes, rtol=1e-3, atol=1e-4 * np.max(np.abs(slopes)))


def test_an_overflowing_variance_gives_nan():
    x = np.float32(X) * np.float32([1e20, 1, 1])
    value, (gradient, _) = answer(barlow_twins_loss, x, np.float32(Y))
    assert np.isnan(value)
    assert np.isnan(gradient).all()


@every_loss
def test_views_of_different_dtypes_are_widened(loss):
    x = jnp.asarray(X, jnp.bfloat16)
    value, gradients = answer(loss, x, jnp.asarray(Y, jnp.float32))
    np.testing.assert_allclose(value, loss(x.astype(jnp.float32), jnp.asarray(Y, jnp.float32)), rtol=1e-6)
    assert [gradient.dtype for gradient in gradients] == [jnp.bfloat16, jnp.float32]


@every_loss
def test_options_are_differentiable_and_validated(loss):
    with jax.enable_x64(True):
        slope = jax.grad(lambda eps: loss(X, Y, eps=eps))(0.1)
        ends = [loss(X, Y, eps=0.1 + step) for step in (1e-6, -1e-6)]
        np.testing.assert_allclose(slope, (ends[0] - ends[1]) / 2e-6, rtol=1e-6)
    with pytest.raises(ValueError, match="eps must be a number >= 0, got -1"):
        loss(X, Y, eps=-1)
    with pytest.raises(ValueError, match=r"embeddings must have shape \(N, D\), got shape \(3,\)"):
        loss(X[0], Y[0])
    assert np.isnan(loss(X, Y, lambda_param=jnp.asarray(-1.0)))


@pytest.mark.slow
def test_rows_sharded_over_devices_equal_one_device():
    done = subprocess.run(
        [sys.executable, __file__],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "JAX_NUM_CPU_DEVICES": "4", "PJRT_NPROC": "32", "PYTHONPATH": "."},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (0, "checked\n"), done.stdout + done.stderr


def check_devices() -> None:
    """Compares losses of rows on four devices, one of which has only masked rows, with one device."""
    mesh = jax.make_mesh((4,), ("rows",), axis_types=(jax.sharding.AxisType.Auto,))
    split = jax.sharding.PartitionSpec("rows")
    x, y = (jnp.asarray(RNG.randn(8, 3)) for _ in range(2))
    where = jnp.array([0, 1, 1, 1, 0, 0, 1, 1], bool)
    for loss in LOSSES:
        for check_vma in (True, False):

            def sharded(x, y, loss=loss, check_vma=check_vma):
                return jax.shard_map(
                    lambda x, y, where: loss(x, y, where=where, axis_name="rows"),
                    mesh=mesh,
                    in_specs=(split, split, split),
                    out_specs=jax.sharding.PartitionSpec(),
                    check_vma=check_vma,
                )(x, y, where)

            def product(x, y, f):
                return jax.jvp(jax.value_and_grad(f, (0, 1)), (x, y), (jnp.cos(x), jnp.sin(y)))

            found = jax.jit(product, static_argnums=2)(x, y, sharded)
            expected = product(x, y, functools.partial(loss, where=where))
            for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
                np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-12)
    print("checked")


# DINO.

STUDENT, TEACHER = RNG.randn(4, 3, 5), RNG.randn(2, 3, 5)


def test_teacher_center_and_teacher_temperature_have_gradient_zero():
    def loss(student, teacher, center, temperature):
        return dino_loss(student, teacher, center=center, teacher_temperature=temperature)

    center = RNG.randn(5)
    slopes = jax.grad(loss, (0, 1, 2, 3))(STUDENT, TEACHER, center, 0.04)
    assert [bool(np.any(slope)) for slope in slopes] == [True, False, False, False]
    moved = dino_loss(STUDENT, TEACHER - center)
    np.testing.assert_allclose(dino_loss(STUDENT, TEACHER, center=center), moved, rtol=1e-5)


def test_pairs_of_the_same_view_are_left_out():
    with jax.enable_x64(True):
        q = jax.nn.softmax(TEACHER / 0.04)
        log_p = jax.nn.log_softmax(STUDENT / 0.1)
        pairs = [(s, t) for s in range(4) for t in range(2) if s != t]
        expected = np.mean([-np.sum(q[t] * log_p[s], -1) for s, t in pairs], 0)
        np.testing.assert_allclose(dino_loss(STUDENT, TEACHER, reduction="none"), expected, rtol=1e-12)
    with pytest.raises(
        ValueError, match="logits and targets must have two different views, got 1 and 1 views"
    ):
        dino_loss(STUDENT[:1], TEACHER[:1])
    assert np.isfinite(dino_loss(STUDENT[:1], TEACHER))


def test_outputs_excluded_by_student_and_teacher_equal_removed_ones():
    excluded = np.arange(5) == 1
    student, teacher = (np.where(excluded, -np.inf, views) for views in (STUDENT, TEACHER))
    value, (slope, temperature) = jax.value_and_grad(
        lambda x, t: dino_loss(x, teacher, student_temperature=t), (0, 1)
    )(student, 0.5)
    kept = dino_loss(STUDENT[..., ~excluded], TEACHER[..., ~excluded], student_temperature=0.5)
    np.testing.assert_allclose(value, kept, rtol=1e-6)
    np.testing.assert_array_equal(slope[..., 1], 0)
    assert np.isfinite(temperature)


def test_mismatched_view_shapes_raise():
    with pytest.raises(ValueError, match=r"logits and targets must have shapes \(S, N, K\) and \(T, N, K\)"):
        dino_loss(STUDENT, TEACHER[:, :2])
    with pytest.raises(ValueError, match=r"center must have one value for each class, shape \(5,\)"):
        dino_loss(STUDENT, TEACHER, center=np.zeros(3))


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    check_devices()
