"""Conversion, dtypes, shapes and masks of arguments, and their errors."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxloss
from jaxloss._core import arguments


@pytest.mark.parametrize(
    ("dtypes", "expected"),
    [
        (["float16", "bfloat16"], "float32"),
        (["bfloat16", "float32"], "float32"),
        (["float32", "float64"], "float64"),
        (["int32", "float32"], "float32"),
        (["int64", "bfloat16"], "float32"),
        (["float8_e4m3fn"], "float32"),
        (["int32", "bool"], "float64"),
    ],
)
def test_arithmetic_is_float32_or_wider(dtypes, expected):
    with jax.enable_x64(True):
        arrays = [jnp.ones(2, jnp.dtype(dtype)) for dtype in dtypes]
        assert arguments.arithmetic_dtype(*arrays) == expected
        assert {array.dtype for array in arguments.widened(*arrays)} == {jnp.dtype(expected)}


def test_python_numbers_follow_the_arrays():
    with jax.enable_x64(True):
        assert arguments.values(a=jnp.float32(1), b=2.0)[1].dtype == jnp.float32
        assert arguments.values(a=1.0, b=2)[0].dtype == jnp.float64
    assert arguments.values(a=1, b=True)[1].dtype == jnp.float32


@pytest.mark.parametrize("value", [[1.0], (1.0, 2.0), None, "text", {"a": 1.0}, 1j])
def test_a_value_that_is_not_an_array_raises(value):
    with pytest.raises(TypeError, match=f"targets must be an array, got {type(value).__name__}"):
        arguments.as_array("targets", value)


@pytest.mark.parametrize("value", [jnp.ones(2, jnp.complex64), jax.random.key(0)])
def test_a_dtype_other_than_real_numbers_raises(value):
    with pytest.raises(TypeError, match="targets must hold real numbers, got dtype"):
        arguments.as_array("targets", value)


def test_unequal_shapes_raise_and_both_are_named():
    with pytest.raises(ValueError, match=r"a and b must have the same shape, got a \(3, 1\) and b \(3,\)"):
        arguments.agree(a=jnp.ones((3, 1)), b=jnp.ones(3))
    with pytest.raises(ValueError, match=r"a, b and c .*got a \(2,\), b \(2,\) and c \(\)"):
        arguments.agree(a=jnp.ones(2), b=jnp.ones(2), c=1.0)


@pytest.mark.parametrize("shape", [(), (3,), (1, 3), (2, 1), (2, 3)])
def test_broadcastable_shapes_are_accepted(shape):
    assert arguments.broadcastable("weight", jnp.ones(shape), jnp.ones((2, 3))).ndim == 2


@pytest.mark.parametrize("shape", [(2,), (3, 2), (1, 2, 3), (0,)])
def test_broadcasting_never_changes_the_target_shape(shape):
    with pytest.raises(ValueError, match=r"weight must broadcast to shape \(2, 3\)"):
        arguments.broadcastable("weight", jnp.ones(shape), jnp.ones((2, 3)))


def test_masks_must_be_boolean():
    assert arguments.mask(None, jnp.ones(2)) is None
    assert arguments.mask(np.array([True]), jnp.ones((2, 3))).shape == (1, 1)
    assert arguments.mask(np.array([True]), jnp.ones((2, 4, 3)), [1]).shape == (1, 1)
    with pytest.raises(
        TypeError,
        match=r"must be boolean, got dtype int32; pass `where != 0`, or for weights use jaxloss\.reduce\(w",
    ):
        arguments.mask(jnp.ones(2, jnp.int32), jnp.ones(2))


@pytest.mark.parametrize(
    ("call", "remedy"),
    [
        (lambda: jaxloss.mse_loss(np.ones((3, 1)), np.ones(3)), "pass predictions[..., 0]"),
        (lambda: jaxloss.mse_loss(np.ones(3), np.ones((3, 1))), "pass targets[..., 0]"),
        (
            lambda: jaxloss.binary_cross_entropy_with_logits(np.ones((2, 3, 1)), np.ones((2, 3))),
            "pass logits[..., 0]",
        ),
        (
            lambda: arguments.agree(a=np.ones((3, 1)), b=np.ones((3, 1)), c=np.ones(3)),
            "a[..., 0] and b[..., 0]",
        ),
        (
            lambda: jaxloss.mse_loss(np.ones((2, 4)), np.ones((2, 4)), weight=np.ones((2, 4, 1))),
            "weight[..., 0]",
        ),
        (
            lambda: jaxloss.quantile_loss(
                np.ones((2, 3)), np.ones((2, 1)), quantiles=np.array([0.1, 0.5, 0.9])
            ),
            "pass targets[..., 0]",
        ),
        (lambda: jaxloss.cross_entropy(np.ones((4, 5)), np.zeros((4, 1), int)), "pass targets[..., 0]"),
        (
            lambda: jaxloss.cross_entropy(
                np.ones((2, 4, 5)), np.zeros((2, 4), int), where=np.ones((2, 4, 1), bool)
            ),
            "pass where[..., 0]",
        ),
    ],
)
def test_an_extra_last_axis_of_size_1_raises_with_a_remedy(call, remedy):
    with pytest.raises(ValueError, match=rf"; .*{re.escape(remedy)}(\n|$)"):
        call()


@pytest.mark.parametrize("shape", [(1, 3), (3, 2), (3, 1, 1), ()])
def test_other_shapes_have_no_remedy_for_an_extra_axis(shape):
    for first, second in ((jnp.ones(3), jnp.ones(shape)), (jnp.ones(shape), jnp.ones(3))):
        with pytest.raises(ValueError, match=r"got a \(.*\) and b \([^;]*\)$"):
            arguments.agree(a=first, b=second)
    with pytest.raises(ValueError, match=r"got a \(\) and b \(\)$"):
        arguments.agree_except_last_axis(a=1.0, b=1.0)


def test_fill_masked_replaces_masked_values():
    hidden = arguments.fill_masked(jnp.array([True, False]), jnp.array([1.0, np.nan], jnp.bfloat16), 0.5)
    np.testing.assert_array_equal(hidden, jnp.array([1.0, 0.5], jnp.bfloat16), strict=True)


@pytest.mark.parametrize(
    ("label", "dtype", "expected"),
    [
        (127, "int8", 127),
        (200, "uint8", 200),
        (-5, "int16", -5),
        (2**31 - 1, "uint32", 2**31 - 1),
        (2**31, "uint32", 2**31 - 1),
        (2**32 - 1, "uint32", 2**31 - 1),
    ],
)
def test_indices_of_any_integer_dtype_become_int32(label, dtype, expected):
    widened = arguments.index_array("targets", jnp.full(1, label, jnp.dtype(dtype)))
    np.testing.assert_array_equal(widened, np.array([expected], np.int32), strict=True)


NATIVE = np.arange(6, dtype=np.float32).reshape(2, 3)


@pytest.mark.parametrize("dtype", [">f4", ">f8", ">i4", ">i2", ">u2", ">f2"])
def test_big_endian_arrays_are_converted(dtype):
    double = jaxloss.mse_loss(NATIVE, NATIVE.astype(dtype) + np.asarray(1, dtype))
    assert double == 1
    labels = np.array([2, 0])
    scores = NATIVE.astype(np.dtype(dtype).newbyteorder("="))
    for _ in range(2):  # before and after a native call has compiled
        ours = jaxloss.cross_entropy(scores.astype(dtype), labels.astype(">i4"))
        np.testing.assert_array_equal(ours, jaxloss.cross_entropy(scores, labels))


def test_a_numpy_masked_array_raises():
    masked = np.ma.array(NATIVE, mask=NATIVE > 2)
    jaxloss.mse_loss(NATIVE, NATIVE)
    for arrays in ((masked, NATIVE), (NATIVE, masked)):
        with pytest.raises(TypeError, match="must be an array, got a NumPy masked array; pass its mask as"):
            jaxloss.mse_loss(*arrays)


class ArrayLike:
    def __jax_array__(self):
        return jnp.asarray(NATIVE)


@pytest.mark.parametrize("make", [nnx.Param, nnx.Variable, lambda array: ArrayLike()])
def test_values_that_jax_converts_to_arrays_are_accepted(make):
    made = make(jnp.asarray(NATIVE))
    assert jaxloss.mse_loss(made, NATIVE) == jaxloss.mse_loss(NATIVE, targets=made) == 0
    assert jax.jit(lambda: jaxloss.mse_loss(made, NATIVE + 1))() == 1


def test_a_gradient_with_respect_to_a_variable_is_a_variable():
    gradient = jax.grad(lambda made: jaxloss.mse_loss(made, NATIVE + 1))(nnx.Param(jnp.asarray(NATIVE)))
    np.testing.assert_allclose(gradient[...], -2 / 6)


class Tensor:
    """A stand-in for torch.Tensor."""


Tensor.__module__ = "torch"


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (Tensor(), r"got torch.Tensor; pass predictions.detach\(\).cpu\(\).numpy\(\)"),
        ([1.0], r"got list; pass jax.numpy.asarray\(predictions\)"),
        ("text", "got str"),
        (np.array(["a"]), "predictions must hold real numbers, got dtype <U1"),
        (np.array([None]), "predictions must hold real numbers, got dtype object"),
    ],
)
def test_invalid_arguments_are_named_with_a_remedy(value, message):
    with pytest.raises(TypeError, match=message):
        jaxloss.mse_loss(value, NATIVE)


def test_integer_one_hot_labels_raise_with_a_remedy():
    with pytest.raises(ValueError, match="make one-hot targets floating-point, or take their argmax"):
        jaxloss.cross_entropy(NATIVE, np.eye(2, 3, dtype=int))


@pytest.mark.parametrize("axis", [-3, 2])
def test_an_axis_out_of_range_raises(axis):
    with pytest.raises(
        ValueError, match=rf"axis must be an axis of logits, got axis={axis} for logits \(2, 3\)"
    ):
        arguments.canonical_axis(axis, "logits", (2, 3))


@pytest.mark.parametrize("axis", [None, 1.0, (0, 1), "last"])
def test_an_axis_that_is_not_an_integer_raises(axis):
    with pytest.raises(TypeError, match=f"axis must be an integer, got {re.escape(repr(axis))}"):
        arguments.canonical_axis(axis, "logits", (2, 3))


@pytest.mark.parametrize("loss", [jaxloss.cross_entropy, jaxloss.multi_margin_loss])
def test_scores_with_zero_classes_raise(loss):
    with pytest.raises(ValueError, match=r"must have at least one class, got .* \(2, 0\) with axis=-1"):
        loss(jnp.zeros((2, 0)), jnp.zeros(2, int))
