"""Edge cases of linear distillation: equal layers, masked vocabularies, large logits, memory."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxloss
from jaxloss import linear_distillation_loss

RNG = np.random.RandomState(0)
CLASSES = 23  # several blocks, the last of which overlaps the one before
ARRAYS = {
    "hidden": RNG.randn(4, 3),
    "kernel": RNG.randn(3, CLASSES),
    "teacher_hidden": RNG.randn(4, 2),
    "teacher_kernel": RNG.randn(2, CLASSES),
    "bias": RNG.randn(CLASSES),
    "teacher_bias": RNG.randn(CLASSES),
}


def plain(
    hidden: Any,
    kernel: Any,
    teacher_hidden: Any,
    teacher_kernel: Any,
    bias: Any,
    teacher_bias: Any,
    temperature: Any = 1.0,
    **options: Any,
) -> Any:
    """Computes the same loss from materialized logits."""

    def log_probs(hidden: Any, kernel: Any, bias: Any) -> Any:
        logits = jnp.dot(hidden, kernel)
        return jax.nn.log_softmax((logits + jnp.broadcast_to(bias, logits.shape)) / temperature)

    student, teacher = (
        log_probs(hidden, kernel, bias),
        log_probs(teacher_hidden, teacher_kernel, teacher_bias),
    )
    losses = jaxloss.kl_div(student, teacher, log_target=True, reduction="none")
    return temperature**2 * jaxloss.reduce(jnp.sum(losses, -1), **options)


@pytest.mark.parametrize("positions", [4, 60])
def test_values_and_gradients_equal_the_plain_form(positions: int):
    """The loop runs over classes or over positions."""
    with jax.enable_x64(True):
        arrays = {
            name: jnp.asarray(np.resize(array, (positions, array.shape[1])) if "hidden" in name else array)
            for name, array in ARRAYS.items()
        }
        arrays["temperature"] = jnp.asarray(2.5)
        ours, theirs = (
            jax.jit(jax.value_and_grad(lambda arrays, loss=loss: loss(**arrays)))(arrays)
            for loss in (linear_distillation_loss, plain)
        )
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-13), ours, theirs)


def test_equal_layers_have_loss_and_gradient_zero():
    layer = {name: np.float32(ARRAYS[name]) for name in ("hidden", "kernel", "bias")}

    def loss(layer: Any) -> jax.Array:
        return linear_distillation_loss(
            **layer,
            teacher_hidden=ARRAYS["hidden"],
            teacher_kernel=ARRAYS["kernel"],
            teacher_bias=ARRAYS["bias"],
        )

    value, gradients = jax.value_and_grad(loss)(layer)
    np.testing.assert_allclose(value, 0, atol=1e-6)
    jax.tree.map(lambda gradient: np.testing.assert_allclose(gradient, 0, atol=1e-6), gradients)


def test_stopping_the_teacher_gradient_keeps_the_student_gradient():
    def frozen(arrays: Any) -> jax.Array:
        fixed = {name: jax.lax.stop_gradient(arrays[name]) for name in arrays if "teacher" in name}
        return linear_distillation_loss(**{**arrays, **fixed})

    arrays = jax.tree.map(jnp.asarray, ARRAYS)
    gradients, whole = (
        jax.grad(f)(arrays) for f in (frozen, lambda arrays: linear_distillation_loss(**arrays))
    )
    for name in arrays:
        expected = jnp.zeros_like(whole[name]) if "teacher" in name else whole[name]
        np.testing.assert_allclose(gradients[name], expected, rtol=1e-5, atol=1e-7)


def with_bias(**changes: Any) -> dict[str, Any]:
    """Returns arrays whose biases are -inf at some classes."""
    biases = {name: ARRAYS[name].copy() for name in changes}
    for name, places in changes.items():
        biases[name][places] = -np.inf
    return {**ARRAYS, **biases}


def test_classes_excluded_by_both_equal_removed_classes():
    with jax.enable_x64(True):
        # This includes the whole first block.
        places = np.arange(CLASSES) < 13
        arrays = with_bias(bias=places, teacher_bias=places)
        kept = {name: a if "hidden" in name else a[..., 13:] for name, a in ARRAYS.items()}
        both = [
            jax.value_and_grad(lambda moved, given=given: linear_distillation_loss(**{**given, **moved}))(
                {**{name: given[name] for name in ("hidden", "teacher_hidden")}, "temperature": 2.0}
            )
            for given in (arrays, kept)
        ]
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-14), *both)


def test_a_class_excluded_by_one_layer_only():
    # Excluded by the teacher alone, a class adds nothing; by the student alone, the loss is infinite.
    possible = linear_distillation_loss(**with_bias(teacher_bias=[3, 20]), reduction="none")
    assert np.isfinite(possible).all()
    np.testing.assert_allclose(
        possible, plain(**with_bias(teacher_bias=[3, 20]), reduction="none"), rtol=2e-5
    )
    np.testing.assert_array_equal(
        linear_distillation_loss(**with_bias(bias=[3]), reduction="none"), np.full(4, np.inf)
    )


def test_all_logits_minus_infinity_give_nan():
    for name in ("bias", "teacher_bias"):
        assert np.isnan(linear_distillation_loss(**with_bias(**{name: np.ones(CLASSES, bool)})))


def test_large_logits_keep_full_precision():
    arrays = {name: np.round(np.float32(array)) for name, array in ARRAYS.items()}  # shifts are exact
    far = {name: arrays[name] + shift for name, shift in (("bias", 2**20), ("teacher_bias", -(2**20)))}
    losses, shifted = (
        linear_distillation_loss(**{**arrays, **change}, reduction="none") for change in ({}, far)
    )
    assert np.all(losses > 0.1)
    np.testing.assert_allclose(shifted, losses, rtol=1e-6)


def test_layers_may_differ_in_dtype():
    arrays = {name: jnp.asarray(array, jnp.bfloat16) for name, array in ARRAYS.items()}
    wide = {name: jnp.asarray(array, jnp.float32) for name, array in arrays.items()}
    mixed = {name: arrays[name] if "teacher" in name else wide[name] for name in arrays}
    value, gradients = jax.value_and_grad(lambda arrays: linear_distillation_loss(**arrays))(mixed)
    assert value.dtype == jnp.float32
    assert {name: array.dtype for name, array in gradients.items()} == {n: a.dtype for n, a in mixed.items()}
    np.testing.assert_allclose(value, linear_distillation_loss(**wide), rtol=1e-6)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"teacher_hidden": np.ones((3, 2))},
            r"teacher_hidden must have the shape of hidden except for the last axis, got .* \(3, 2\)",
        ),
        (
            {"teacher_kernel": np.ones((2, 5))},
            r"teacher_kernel must have as many classes as kernel, got .* \(2, 5\) and kernel \(3, 23\)",
        ),
        (
            {"teacher_kernel": np.ones((9, CLASSES))},
            r"teacher_kernel must have .* for teacher_hidden of shape",
        ),
        ({"kernel": ARRAYS["kernel"].T}, r"kernel must have .*; for a tied embedding, pass its transpose"),
        (
            {"teacher_bias": np.ones(7)},
            r"teacher_bias must have one value for each class, shape \(23,\), got",
        ),
        ({"temperature": 0.0}, "linear_distillation_loss: temperature must be a finite number > 0, got 0"),
    ],
)
def test_invalid_calls_raise(change: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=rf"(?s){message}"):
        linear_distillation_loss(**{**ARRAYS, **change})


@pytest.mark.usefixtures("default_block_size")
def test_the_logits_are_never_materialized():
    shapes = [(2048, 256), (256, 32_000), (2048, 128), (128, 32_000)]
    arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    gradient = jax.value_and_grad(linear_distillation_loss, (0, 1, 2, 3))
    program = jax.jit(gradient).lower(*arguments).compile()
    assert program.memory_analysis().temp_size_in_bytes / 1e6 <= 30  # those of each layer are 262
