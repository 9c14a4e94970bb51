"""Edge cases of ArcFace and CosFace: angles of 0 and π, extreme lengths, one class, labels, scales."""

import functools
import inspect
import math
from decimal import localcontext
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import checkify

import jaxloss
from jaxloss import arcface_loss, cosface_loss
from tests import formulas
from tests.catalogue import CASES as CASES  # registers the formulas
from tests.oracle import decimals

RNG = np.random.RandomState(0)
X, KERNEL, LABELS = RNG.randn(5, 3), RNG.randn(3, 7), np.array([6, 0, 3, 3, 1])
every_loss = pytest.mark.parametrize("loss", [arcface_loss, cosface_loss], ids=lambda loss: loss.__name__)


def answers(loss: Any, embeddings: Any, kernel: Any, targets: Any, **options: Any) -> tuple[Any, ...]:
    """Returns the losses of rows, each with its own options, and their gradients in row and kernel."""
    names = list(options)

    def one(row: Any, kernel: Any, label: Any, *numbers: Any) -> Any:
        return loss(row, kernel, label, **dict(zip(names, numbers, strict=True)))

    shared = (0, None, 0, *[0] * len(names))
    found = jax.jit(jax.vmap(jax.value_and_grad(one, (0, 1)), shared))(
        embeddings, kernel, targets, *options.values()
    )
    return found[0], *found[1]


def exact(loss: Any, embeddings: Any, kernel: Any, targets: Any, **options: Any) -> np.ndarray:
    """Returns the losses by their formula."""
    with localcontext(formulas.CONTEXT):
        losses = []
        for row, label, *numbers in zip(embeddings, targets, *options.values(), strict=True):
            arrays = {"embeddings": row, "kernel": kernel}
            arrays = {name: decimals(np.float64(array)) for name, array in arrays.items()}
            given = {name: float(number) for name, number in zip(options, numbers, strict=True)}
            found, *_ = formulas.evaluate_batch(loss.__name__, {**arrays, "targets": np.array(label)}, given)
            losses.append(float(found))
    return np.array(losses)


def test_defaults_match_the_specification():
    for loss, margin in ((arcface_loss, 0.5), (cosface_loss, 0.35)):
        parameters = inspect.signature(loss).parameters
        assert (parameters["margin"].default, parameters["scale"].default) == (margin, 64.0)


# The first class lies along the first axis, and each embedding has the given angle to it.
PLANE = np.float32([[2.0, -1.0, 0.5, 0.0], [0.0, 0.25, 1.5, -3.0]])
ANGLES = {
    "aligned": (0.0, 0.5),
    "nearly aligned": (0.05, 0.5),
    "acute": (0.5, 0.5),
    "just within": (math.pi - 0.501, 0.5),
    "just beyond": (math.pi - 0.499, 0.5),
    "nearly opposite": (math.pi - 0.05, 0.5),
    "opposite": (math.pi, 0.5),
    "no margin": (1.0, 0.0),
    "no margin, aligned": (0.0, 0.0),
    "no margin, opposite": (math.pi, 0.0),
    "widest margin": (1.0, math.pi / 2),
    "widest margin, aligned": (0.0, math.pi / 2),
    "widest margin, beyond": (2.0, math.pi / 2),
}


def at_angles() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    angles, margins = np.array([*ANGLES.values()]).T
    rows = 3 * np.stack([np.cos(angles), np.where(angles == math.pi, 0, np.sin(angles))], 1)
    return np.float32(rows), np.float32(margins), np.zeros(len(rows), int)


@every_loss
@pytest.mark.parametrize("scale", [4.0, 64.0, 1e4])
def test_every_angle_and_margin_in_float32(loss: Any, scale: float):
    rows, margins, labels = at_angles()
    given = {"margin": margins, "scale": np.full(len(rows), scale, np.float32)}
    value, of_rows, of_kernel = answers(loss, rows, PLANE, labels, **given)
    expected = exact(loss, rows, PLANE, labels, **given)
    # The absolute error of a cosine is the rounding error of 1; that of a small sine is larger by 1 / angle.
    np.testing.assert_allclose(value, expected, rtol=2e-6, atol=1e-6 * scale)
    with jax.enable_x64(True):
        wide = answers(loss, *(np.float64(a) for a in (rows, PLANE)), labels, **given)
    for name, ours, theirs in zip(("rows", "kernel"), (of_rows, of_kernel), wide[1:], strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-3, atol=1e-4 * scale, err_msg=name)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_derivatives_are_finite_for_embeddings_parallel_to_the_class(dtype: Any):
    """Some implementations divide by the sine of the angle, which is or rounds to 0 here."""
    angles = np.array([0.0, 1e-300, 1e-20, 1e-9, 1e-8, 1e-7, 1e-4, math.pi - 1e-7, math.pi])
    rows = np.stack([np.cos(angles), np.sin(angles)], 1).astype(dtype)

    def loss(row: jax.Array) -> jax.Array:
        return arcface_loss(row, PLANE.astype(dtype), jnp.int32(0))

    with jax.enable_x64(dtype is np.float64):
        both = jax.jit(jax.vmap(lambda row: (jax.grad(loss)(row), jax.hessian(loss)(row))))(rows)
        gradients, hessians = map(np.asarray, both)
    assert np.isfinite(gradients).all()
    assert np.isfinite(hessians).all()
    # The gradient of the angle has length 1 / |x| = 1, so that no gradient is longer than twice the scale.
    assert np.max(np.abs(gradients)) <= 2 * 64


@every_loss
def test_very_long_and_short_embeddings(loss: Any):
    # As in F.normalize, vectors shorter than 1e-12 are not scaled to unit length.
    lengths = np.array([1e20, 1.0, 1e-20, 1e-10, 3e-13])[:, None]
    rows, kernel = np.float32(X * lengths), np.float32(KERNEL * [1e20, 1.0, 1e-20, 1.0, 1.0, 1.0, 1e-13])
    given = {"scale": np.full(5, 8.0, np.float32)}
    value, *slopes = answers(loss, rows, kernel, LABELS, **given)
    np.testing.assert_allclose(value, exact(loss, rows, kernel, LABELS, **given), rtol=1e-5)
    with jax.enable_x64(True):
        _, *wide = answers(loss, np.float64(rows), np.float64(kernel), LABELS, **given)
    for ours, theirs in zip(map(np.float64, slopes), map(np.float64, wide), strict=True):
        size = np.max(np.abs(theirs), 1, keepdims=True)  # small for long vectors, large for short ones
        assert np.all(np.abs(ours - theirs) <= 1e-4 * size)


@every_loss
def test_zero_vectors_have_gradient_zero(loss: Any):
    rows, kernel = X.copy(), KERNEL.copy()
    rows[1], kernel[:, 3] = 0, 0
    value = loss(rows, kernel, LABELS, reduction="none")
    of_rows, of_kernel = jax.grad(loss, (0, 1))(rows, kernel, LABELS)
    np.testing.assert_allclose(value, exact(loss, np.float32(rows), np.float32(kernel), LABELS), rtol=1e-5)
    np.testing.assert_array_equal(of_rows[1], 0)
    np.testing.assert_array_equal(of_kernel[:, 3], 0)
    assert np.all(np.delete(of_rows, 1, 0) != 0)


@every_loss
def test_one_class_has_loss_zero(loss: Any):
    value, gradients = jax.value_and_grad(loss, (0, 1))(X, KERNEL[:, :1], np.zeros(5, int))
    assert value == 0
    jax.tree.map(lambda gradient: np.testing.assert_array_equal(gradient, 0), gradients)


@every_loss
def test_a_margin_of_0_gives_the_cross_entropy_of_cosines(loss: Any):
    with jax.enable_x64(True):
        unit_rows = X / np.linalg.norm(X, axis=1, keepdims=True)
        unit_kernel = KERNEL / np.linalg.norm(KERNEL, axis=0)
        found = loss(X, KERNEL, LABELS, margin=0.0, scale=5.0, reduction="none")
        plain = jaxloss.linear_cross_entropy(5 * unit_rows, unit_kernel, LABELS, reduction="none")
        np.testing.assert_allclose(found, plain, rtol=1e-12)


def test_other_classes_count_even_far_below_the_label_logit():
    # Relative to the label's logit before the margin, the exponential of the other, exp(800 - 1000), is 0.
    row, kernel = np.float32([1.0, 0.0]), np.float32([[1.0, 0.8], [0.0, 0.6]])
    given = {"margin": math.pi / 2, "scale": 1000.0}
    np.testing.assert_allclose(arcface_loss(row, kernel, 0, **given), 800, rtol=1e-6)
    np.testing.assert_allclose(cosface_loss(row, kernel, 0, margin=0.5, scale=1000.0), 300, rtol=1e-6)


@every_loss
def test_margin_and_scale_are_differentiable(loss: Any):
    with jax.enable_x64(True):
        mean = jax.jit(lambda options: loss(X, KERNEL, LABELS, **options))
        at = {"margin": 0.3, "scale": 10.0}
        slopes = jax.grad(mean)(at)
        for name in at:
            ends = [mean({**at, name: at[name] + h}) for h in (1e-5, -1e-5)]
            np.testing.assert_allclose(slopes[name], (ends[0] - ends[1]) / 2e-5, rtol=1e-6)


@every_loss
@pytest.mark.parametrize("label", [-1, -100, 7, 10**6])
def test_an_out_of_range_label_is_nan_and_reported_by_checkify(loss: Any, label: int):
    labels = np.array([6, label, 3, 3, 1])
    losses = loss(X, KERNEL, labels, reduction="none")
    np.testing.assert_array_equal(np.isnan(losses), labels == label)
    gradient = jax.grad(loss)(X, KERNEL, labels)
    assert np.isnan(gradient[1]).all()
    error, _ = checkify.checkify(functools.partial(loss, X, KERNEL))(labels)
    assert f"targets: expected class indices in [0, 7), got {label}" in error.get()
    hidden = loss(X, KERNEL, labels, where=labels != label)
    assert np.isfinite(hidden)


@every_loss
def test_invalid_calls_raise(loss: Any):
    with pytest.raises(
        ValueError, match=r"kernel must have shape \(H, V\).* embeddings \(5, 3\); for a tied"
    ):
        loss(X, KERNEL.T, LABELS)
    with pytest.raises(ValueError, match=r"shape of embeddings without its last axis, \(5,\), got .*\(4,\)"):
        loss(X, KERNEL, LABELS[:4])
    with pytest.raises(TypeError, match="targets must be integer class indices, got dtype float"):
        loss(X, KERNEL, LABELS.astype(float))
    with pytest.raises(ValueError, match="scale must be a finite number > 0, got 0"):
        loss(X, KERNEL, LABELS, scale=0.0)
    with pytest.raises(ValueError, match=f"{loss.__name__}: margin must be .*, got -0.1"):
        loss(X, KERNEL, LABELS, margin=-0.1)
    assert np.isnan(loss(X, KERNEL, LABELS, margin=jnp.float32(-0.1)))


def test_a_margin_in_degrees_raises():
    with pytest.raises(ValueError, match=r"margin must be an angle in \[0, π/2\], got 28.6"):
        arcface_loss(X, KERNEL, LABELS, margin=28.6)
    right = jnp.float32(math.pi / 2)  # rounded up
    assert np.isfinite(arcface_loss(X, KERNEL, LABELS, margin=right))


@pytest.mark.usefixtures("default_block_size")
def test_neither_logits_nor_normalized_kernel_are_materialized():
    shapes = jax.ShapeDtypeStruct((512, 256), jnp.float32), jax.ShapeDtypeStruct((256, 64_000), jnp.float32)
    labels = jax.ShapeDtypeStruct((512,), jnp.int32)
    program = jax.jit(jax.value_and_grad(arcface_loss, (0, 1))).lower(*shapes, labels).compile()
    assert program.memory_analysis().temp_size_in_bytes / 1e6 <= 30  # the logits are 131, the kernel 66
