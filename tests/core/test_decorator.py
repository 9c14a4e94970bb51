"""The decorator: a compiled loss remains a plain function and validates its options."""

import functools
import inspect
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import checkify

import jaxloss
from jaxloss._core.decorator import compiled, fraction, not_negative, positive


@compiled(
    static=("reduction", "share"), domains={"scale": positive, "shift": not_negative, "share": fraction}
)
def toy_loss(predictions, targets, *, scale=1.0, shift=0.0, share=0.0, reduction="mean"):
    """Toy loss."""
    return jnp.float32(scale) * (predictions - targets) + shift + share


ONE = jnp.float32(1.0)


def test_name_signature_and_docstring_are_preserved():
    assert toy_loss.__name__ == "toy_loss"
    assert toy_loss.__doc__ == "Toy loss."
    assert list(inspect.signature(toy_loss).parameters)[:3] == ["predictions", "targets", "scale"]


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [
        ((ONE, ONE), {"reducton": "sum"}),
        ((ONE, ONE), {"sclae": 2.0}),
        ((ONE,), {}),
        ((ONE, ONE, ONE), {}),
        ((ONE, ONE), {"targets": ONE}),
    ],
)
def test_a_call_with_wrong_arguments_raises_the_usual_python_message(args, kwargs):
    with pytest.raises(TypeError) as theirs:
        inspect.unwrap(toy_loss)(*args, **kwargs)
    with pytest.raises(TypeError) as ours:
        toy_loss(*args, **kwargs)
    assert str(ours.value) == str(theirs.value)


@pytest.mark.parametrize(
    ("option", "number"),
    [
        ("scale", 0),
        ("scale", -1.5),
        ("scale", np.float32(-1)),
        ("scale", float("nan")),
        ("shift", -1),
        ("share", 1.01),
    ],
)
def test_a_number_outside_its_domain_raises(option, number):
    with pytest.raises(ValueError, match=f"toy_loss: {option} must be a number .*, got {number}"):
        toy_loss(ONE, ONE, **{option: number})


@pytest.mark.parametrize("value", [None, "large", 1j, [1.0]])
@pytest.mark.parametrize("option", ["scale", "shift"])
def test_an_option_that_is_not_a_number_raises(option, value):
    message = f"toy_loss: {option} must be a number >=? 0, got {re.escape(repr(value))}"
    with pytest.raises(TypeError, match=message):
        toy_loss(ONE, ONE, **{option: value})


def test_a_number_outside_its_domain_raises_under_an_outer_jit():
    with pytest.raises(ValueError, match="scale must be a number > 0, got 0"):
        jax.jit(lambda x: toy_loss(x, x, scale=0))(ONE)


def test_a_traced_number_outside_its_domain_becomes_nan():
    slope = jax.grad(lambda x, scale: toy_loss(x, ONE, scale=scale))
    assert np.isnan(toy_loss(ONE, ONE, scale=jnp.float32(-1)))
    assert np.isnan(jax.jit(slope)(ONE, -1.0))
    assert jax.jit(slope)(ONE, 2.0) == 2


def test_a_traced_number_outside_its_domain_is_reported_by_checkify():
    error, _ = checkify.checkify(jax.jit(toy_loss))(ONE, ONE, scale=-3.0)
    assert "scale: expected a number > 0, got -3.0" in error.get()


@pytest.mark.parametrize(
    "two", [2, 2.0, np.float64(2), np.int64(2), jnp.int32(2), jnp.bfloat16(2), True + True]
)
def test_numbers_of_every_kind_are_accepted(two):
    assert toy_loss(3 * ONE, ONE, scale=two) == 4
    assert jax.jit(lambda two: toy_loss(3 * ONE, ONE, scale=jnp.asarray(two, jnp.float32)))(two) == 4


def test_a_traced_number_outside_its_domain_has_gradient_nan():
    assert np.isnan(jax.grad(lambda scale: toy_loss(ONE, ONE, scale=scale))(jnp.float32(-1)))


@pytest.mark.parametrize("kind", [np.asarray, lambda number: number, lambda number: np.full(2, number)])
@pytest.mark.parametrize("dtype", [np.int64, np.uint64])
def test_64_bit_integers_do_not_wrap_around(dtype, kind):
    large = kind(dtype(2**32 + 5))
    for _ in range(2):
        assert jaxloss.mse_loss(large, np.zeros(large.shape)) == np.float32(2**32 + 5) ** 2
        assert jaxloss.mse_loss(np.zeros(large.shape), targets=kind(dtype(5))) == 25
    labels = np.broadcast_to(large, 2)
    assert np.isnan(jaxloss.cross_entropy(np.zeros((2, 9), np.float32), labels, reduction="none")).all()
    with jax.enable_x64(True):
        assert jaxloss.mse_loss(large, np.zeros(large.shape)) == (2.0**32 + 5) ** 2
        assert np.isnan(jaxloss.cross_entropy(np.zeros((2, 9)), labels))


def test_declared_sequence_arguments_accept_lists_of_integers():
    @compiled(static=(), sequences=("lengths",))
    def total(values, lengths):
        return jnp.sum(jnp.asarray(lengths)) + values

    assert total(1, [2, 3]) == total(1, lengths=(2, 3)) == jax.jit(lambda n: total(1, [n, 3]))(2) == 6
    assert total(1, []) == 1


def test_memory_mapped_64_bit_labels_do_not_wrap_around(tmp_path):
    labels = np.memmap(tmp_path / "labels", np.int64, "w+", shape=(2,))
    labels[:] = [2**32 + 1, 1]
    assert np.isnan(jaxloss.cross_entropy(np.eye(2), labels, reduction="none")).tolist() == [True, False]


def test_nan_labels_cast_to_int64_are_out_of_range():
    with np.errstate(invalid="ignore"):
        labels = np.array([0.0, np.nan]).astype(np.int64)
    losses = jaxloss.cross_entropy(np.eye(2), labels, reduction="none")
    np.testing.assert_array_equal(np.isnan(losses), [False, True])


def test_a_static_numpy_number_does_not_promote_the_result():
    with jax.enable_x64(True):
        assert toy_loss(ONE, ONE, share=np.float64(0.5)).dtype == jnp.float32


def test_an_array_for_a_scalar_option_raises():
    with pytest.raises(ValueError, match=r"scale must be a number > 0, got float32\[2\]"):
        toy_loss(ONE, ONE, scale=jnp.ones(2))


def test_a_prng_key_for_an_option_raises():
    with pytest.raises(ValueError, match=r"scale must be a number > 0, got key<fry>\[\]"):
        toy_loss(ONE, ONE, scale=jax.random.key(0))


@pytest.mark.parametrize("value", ["text", {1}, object(), np.array(["a"]), np.array([object()])])
def test_a_value_that_is_not_an_array_raises(value):
    with pytest.raises(TypeError, match=r"targets must (be an array, got|hold real numbers, got dtype) "):
        toy_loss(ONE, value)


@pytest.mark.parametrize("value", [jnp.float32(0.5), np.ones(2), ["mean"], {"mean": 1}, {1}])
def test_an_array_for_a_static_argument_raises_with_a_remedy(value):
    with pytest.raises(TypeError, match="toy_loss: reduction is static and must be a hashable Python value"):
        toy_loss(ONE, ONE, reduction=value)
    remedy = r"got a traced value; pass a Python number \(bind it with functools\.partial outside of jit\)"
    with pytest.raises(TypeError, match=rf"share is static.*{remedy}"):
        jax.jit(lambda share: toy_loss(ONE, ONE, share=share))(0.5)


def test_traced_options_can_be_swept_and_learned_without_recompiling():
    traces = []

    @compiled(static=("reduction",), domains={"scale": positive})
    def counted(predictions, targets, *, scale=1.0, reduction="mean"):
        traces.append(reduction)
        return scale * predictions - targets

    for scale in (0.5, 1.5, 2.5):
        counted(ONE, ONE, scale=scale)
    assert traces == ["mean"]
    np.testing.assert_allclose(
        jax.vmap(lambda s: toy_loss(3 * ONE, ONE, scale=s))(jnp.arange(1.0, 4)), [2, 4, 6]
    )
    assert jax.grad(lambda s: toy_loss(3 * ONE, ONE, scale=s))(2.0) == 2


def test_options_bind_with_partial_and_pass_through_transforms():
    criterion = jax.tree_util.Partial(functools.partial(toy_loss, share=0.5), scale=jnp.float32(2))
    assert jax.jit(lambda criterion, x: criterion(x, ONE))(criterion, 3 * ONE) == 4.5


def test_an_ordinary_call_runs_a_single_python_frame():
    """Counts Python frames instead of measuring the overhead over `jit`, which would be noisy."""
    toy_loss(ONE, ONE, reduction="sum")
    frames = []
    sys.setprofile(lambda frame, event, _: frames.append(frame.f_code.co_name) if event == "call" else None)
    try:
        toy_loss(ONE, ONE, reduction="sum")
    finally:
        sys.setprofile(None)
    assert frames == ["wrapper"]
