"""Losses of a last layer without materialized logits, beyond the catalogue."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import checkify

import jaxloss

FEATURES, CLASSES = 4, 23


def draw(*leading: int, classes: int = CLASSES, probs: bool = False, dtype: Any = float) -> dict[str, Any]:
    """Returns hidden features, a layer with bias, class weights and targets; the first label is ignored."""
    keys = iter(jax.random.split(jax.random.key(0), 6))
    labels = jax.random.randint(next(keys), leading, 0, classes)
    targets = jax.nn.softmax(jax.random.normal(next(keys), (*leading, classes))).astype(dtype)
    return {
        "hidden": (2 * jax.random.normal(next(keys), (*leading, FEATURES))).astype(dtype),
        "kernel": jax.random.normal(next(keys), (FEATURES, classes)).astype(dtype),
        "bias": jax.random.normal(next(keys), (classes,)).astype(dtype),
        "weight": jax.random.uniform(next(keys), (classes,)).astype(dtype),
        "targets": targets if probs else labels.at[(0,) * len(leading)].set(-100),
    }


def linear(arrays: dict[str, Any], **options: Any) -> Any:
    return jaxloss.linear_cross_entropy(**arrays, **options)


def plain(arrays: dict[str, Any], **options: Any) -> Any:
    """Computes the same loss from materialized logits."""
    hidden, kernel, bias, *others = (arrays[name] for name in ("hidden", "kernel", "bias", "targets"))
    logits = jnp.dot(hidden, kernel)
    logits = logits + jnp.broadcast_to(bias, logits.shape)
    return jaxloss.cross_entropy(logits, *others, weight=arrays["weight"], **options)


def everything(loss: Any, arrays: dict[str, Any], **options: Any) -> Any:
    """Returns value, gradient, jvp, and Hessian-vector products by both orders of differentiation."""
    moved = {name: array for name, array in arrays.items() if jnp.issubdtype(array.dtype, jnp.floating)}
    direction = jax.tree.map(jnp.cos, moved)

    def f(moved: dict[str, Any]) -> jax.Array:
        losses = loss({**arrays, **moved}, reduction="none", **options)
        return jnp.sum(losses * jnp.arange(1.0, 1 + losses.size, dtype=losses.dtype).reshape(losses.shape))

    def slope(moved: dict[str, Any]) -> jax.Array:
        return jax.jvp(f, (moved,), (direction,))[1]

    @jax.jit
    def derivatives(moved: dict[str, Any]) -> Any:
        forward_over_reverse = jax.jvp(jax.grad(f), (moved,), (direction,))
        along = jax.tree.reduce(jnp.add, jax.tree.map(jnp.vdot, forward_over_reverse[0], direction))
        return f(moved), forward_over_reverse, along, slope(moved), jax.grad(slope)(moved)

    return derivatives(moved)


OPTIONS = {"label_smoothing": 0.2, "z_loss": 0.1, "soft_cap": 3.0}


@pytest.mark.slow
@pytest.mark.parametrize("probs", [False, True], ids=["labels", "probs"])
@pytest.mark.parametrize(
    ("shape", "classes", "options"),
    [((2, 3), CLASSES, {}), ((2, 3), CLASSES, OPTIONS), ((7, 2), 5, OPTIONS)],
    ids=["class-loop", "class-loop-options", "position-loop-options"],
)
def test_derivatives_equal_those_of_the_plain_form(
    shape: tuple[int, ...], classes: int, options: dict[str, Any], probs: bool
):
    """The loop runs over the longer axis, and its last block overlaps the one before."""
    with jax.enable_x64(True):
        arrays = draw(*shape, classes=classes, probs=probs)
        ours, theirs = (everything(loss, arrays, **options) for loss in (linear, plain))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-12), ours, theirs)


def test_the_test_sizes_span_several_blocks():
    arrays = draw(2, 3)
    assert "while" in str(jax.make_jaxpr(linear)(arrays)) or "scan" in str(jax.make_jaxpr(linear)(arrays))


@pytest.mark.parametrize("reduction", ["mean", "sum", "sum_and_weight"])
def test_reductions_equal_those_of_the_plain_form(reduction: str):
    with jax.enable_x64(True):
        arrays, where = draw(2, 3), jnp.array([[True, True, False], [True, True, True]])
        options = {"reduction": reduction, "where": where, "z_loss": 0.1, "label_smoothing": 0.1}
        np.testing.assert_allclose(linear(arrays, **options), plain(arrays, **options), rtol=1e-12)


def test_vmap_over_one_argument_equals_a_loop():
    with jax.enable_x64(True):
        arrays = draw(3)
        grad = jax.grad(lambda arrays: linear(arrays, label_smoothing=0.1), allow_int=True)
        for name in ("hidden", "kernel", "targets"):
            pair = [arrays[name], jnp.roll(arrays[name], 1, -1)]
            looped = [grad({**arrays, name: array}) for array in pair]
            axes = {other: 0 if other == name else None for other in arrays}
            mapped = jax.vmap(grad, in_axes=(axes,))({**arrays, name: jnp.stack(pair)})
            for other in arrays.keys() - {"targets"}:
                expected = [gradients[other] for gradients in looped]
                np.testing.assert_allclose(mapped[other], expected, rtol=1e-10, atol=1e-13, err_msg=other)


def test_sums_and_weights_of_uneven_parts_give_the_mean_of_the_whole():
    with jax.enable_x64(True):
        arrays = draw(11)
        layer = {name: arrays[name] for name in ("kernel", "bias", "weight")}

        def of_parts(layer: dict[str, Any]) -> jax.Array:
            total = weight = jnp.zeros(())
            for part in (slice(0, 2), slice(2, 3), slice(3, 11)):
                rows = {name: arrays[name][part] for name in ("hidden", "targets")}
                sums = linear({**layer, **rows}, reduction="sum_and_weight")
                total, weight = total + sums[0], weight + sums[1]
            return total / weight

        ours = jax.value_and_grad(of_parts)(layer)
        whole = jax.value_and_grad(lambda layer: linear({**arrays, **layer}))(layer)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-15), ours, whole)


# Numbers at their limits.


@pytest.mark.parametrize(("positions", "classes"), [(64, 300), (300, 64)])
def test_bfloat16_gradients_are_as_accurate_as_the_plain_form(positions: int, classes: int):
    arrays = draw(positions, classes=classes, dtype=jnp.bfloat16)
    layer = {name: arrays.pop(name) for name in ("hidden", "kernel", "bias")}
    arrays["weight"] = jnp.ones(classes)

    def gradients(loss: Any, layer: dict[str, Any]) -> Any:
        return jax.jit(jax.grad(lambda layer: loss({**arrays, **layer})))(layer)

    ours, theirs = gradients(linear, layer), gradients(plain, layer)
    with jax.enable_x64(True):
        arrays = {name: jnp.asarray(np.asarray(array)) for name, array in arrays.items()}
        truth = gradients(plain, {name: jnp.asarray(np.asarray(a, float)) for name, a in layer.items()})
        truth = jax.tree.map(np.asarray, truth)
    for name, true in truth.items():
        assert ours[name].dtype == jnp.bfloat16
        error, allowed = (np.linalg.norm(np.asarray(a[name], float) - true) for a in (ours, theirs))
        assert error <= allowed, name


@pytest.mark.parametrize("loss", ["linear", "plain"])
def test_the_gradient_of_bfloat16_weights_is_rounded_once(loss: str):
    """The terms of the label and of all classes nearly cancel."""
    arrays = draw(32, classes=5, dtype=jnp.float32)
    weight = arrays.pop("weight").astype(jnp.bfloat16)

    def gradient(weight: jax.Array) -> jax.Array:
        function = {"linear": linear, "plain": plain}[loss]
        return jax.grad(lambda w: function({**arrays, "weight": w}, label_smoothing=0.3))(weight)

    expected = np.asarray(gradient(weight.astype(jnp.float32)))
    found = np.asarray(gradient(weight), np.float32)
    np.testing.assert_allclose(found, expected, rtol=0.51 * float(jnp.finfo(jnp.bfloat16).eps), atol=1e-7)


def test_padding_classes_with_bias_minus_infinity_does_not_change_the_loss():
    with jax.enable_x64(True):
        arrays = draw(5)
        missing = {"kernel": ((0, 0), (0, 17)), "bias": (0, 17), "weight": (0, 17)}
        padded = arrays | {name: jnp.pad(arrays[name], width) for name, width in missing.items()}
        padded["bias"] = padded["bias"].at[CLASSES:].set(-jnp.inf)
        grad = jax.value_and_grad(lambda layer, rest: linear({**rest, "kernel": layer}), argnums=0)
        value, gradient = grad(padded.pop("kernel"), padded)
        expected, expected_gradient = grad(arrays.pop("kernel"), arrays)
        np.testing.assert_allclose(value, expected, rtol=1e-12)
        np.testing.assert_allclose(gradient[:, :CLASSES], expected_gradient, rtol=1e-10, atol=1e-14)
        np.testing.assert_array_equal(gradient[:, CLASSES:], 0)


def test_a_first_block_of_minus_infinities_equals_the_plain_form():
    with jax.enable_x64(True):
        arrays = draw(5)
        arrays["targets"] = jnp.full(5, CLASSES - 1)
        arrays["bias"] = arrays["bias"].at[:15].set(-jnp.inf)
        ours, theirs = (
            jax.value_and_grad(lambda h, loss=loss: loss({**arrays, "hidden": h}))(arrays["hidden"])
            for loss in (linear, plain)
        )
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10), ours, theirs)


def test_all_logits_minus_infinity_give_nan():
    arrays = draw(2)
    arrays["bias"] = jnp.full(CLASSES, -jnp.inf)
    assert np.isnan(linear(arrays))
    assert np.isnan(plain(arrays))


def test_large_logits_keep_full_precision():
    arrays = draw(3)
    arrays["hidden"] = jnp.zeros_like(arrays["hidden"])
    arrays["bias"] = jnp.full(CLASSES, 1e6)
    ln_classes = np.full(3, np.log(CLASSES), np.float32)
    found = jaxloss.linear_log_probs(**{n: a for n, a in arrays.items() if n != "weight"})
    np.testing.assert_allclose(-found.log_prob[1:], ln_classes[1:], rtol=1e-6)
    np.testing.assert_allclose(found.entropy[1:], ln_classes[1:], rtol=1e-6)
    assert found.log_prob[0] == 0


@pytest.mark.parametrize("probs", [False, True], ids=["labels", "probs"])
def test_masked_and_ignored_positions_never_affect_value_or_gradient(probs: bool):
    arrays, where = draw(4, probs=probs), jnp.array([True, False, True, True])
    poisoned = {**arrays, "hidden": arrays["hidden"].at[1].set(jnp.nan)}
    if probs:
        poisoned["targets"] = arrays["targets"].at[1].set(jnp.nan)
    else:
        poisoned["targets"] = arrays["targets"].at[1].set(10**6)
        poisoned["hidden"] = poisoned["hidden"].at[0].set(jnp.inf)  # ignored
    grad = jax.value_and_grad(lambda layer, rest: linear({**rest, **layer}, where=where, z_loss=0.1))
    ours, expected = (
        grad({name: given[name] for name in ("hidden", "kernel", "bias")}, given)
        for given in (poisoned, arrays)
    )
    jax.tree.map(np.testing.assert_array_equal, ours, expected)


# Errors.


@pytest.mark.parametrize("label", [-1, CLASSES, 10**6])
def test_an_out_of_range_label_is_nan_and_reported_by_checkify(label: int):
    arrays = draw(3)
    arrays["targets"] = arrays["targets"].at[1].set(label)
    value, gradient = jax.value_and_grad(lambda h: linear({**arrays, "hidden": h}))(arrays["hidden"])
    assert np.isnan(value)
    assert np.isnan(gradient[1]).all()
    error, _ = checkify.checkify(linear)(arrays)
    assert f"expected class indices in [0, {CLASSES}) or ignore_index=-100, got {label}" in error.get()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"kernel": jnp.ones((CLASSES, FEATURES))},
            r"kernel must have shape \(H, V\).* got kernel \(23, 4\) .*; for a tied embedding, pass its",
        ),
        ({"kernel": jnp.ones((5, CLASSES))}, r"kernel must have .* kernel \(5, 23\) and hidden \(3, 4\)\n"),
        ({"kernel": jnp.ones((FEATURES, 0))}, r"kernel must have .* V > 0, .* got kernel \(4, 0\)"),
        ({"bias": jnp.ones(7)}, r"bias must have one value for each class, shape \(23,\), got \(7,\)"),
        ({"weight": jnp.ones(7)}, r"weight must have one value for each class, shape \(23,\), got \(7,\)"),
        (
            {"targets": jnp.zeros(2, int)},
            r"targets must have the shape of hidden without its last axis, \(3,\), got targets \(2,\)",
        ),
        ({"targets": jnp.ones(3)}, r"class probabilities and must have shape \(3, 23\), got \(3,\)"),
    ],
)
def test_mismatched_shapes_raise(change: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=rf"(?s){message}"):
        linear({**draw(3), **change})


@pytest.mark.parametrize(
    ("option", "number"), [("z_loss", -1.0), ("soft_cap", 0.0), ("label_smoothing", 2.0)]
)
def test_options_outside_their_domain_raise(option: str, number: float):
    with pytest.raises(ValueError, match=f"linear_cross_entropy: {option} must be"):
        linear(draw(3), **{option: number})


def test_ignore_index_requires_integer_targets():
    with pytest.raises(ValueError, match="ignore_index=3 needs integer targets"):
        linear(draw(3, probs=True), ignore_index=3)


# Log-probabilities.


@pytest.mark.parametrize("probs", [False, True], ids=["labels", "probs"])
def test_log_probs_equal_those_of_the_plain_form(probs: bool):
    with jax.enable_x64(True):
        arrays = draw(2, 3, probs=probs)
        del arrays["weight"]

        def expected(arrays: dict[str, Any]) -> tuple[jax.Array, ...]:
            logits = jnp.dot(arrays["hidden"], arrays["kernel"])
            logits = 2 * jnp.tanh((logits + jnp.broadcast_to(arrays["bias"], logits.shape)) / 2)
            log_probs, targets = jax.nn.log_softmax(logits), arrays["targets"]
            chosen = targets if probs else jax.nn.one_hot(targets, CLASSES, dtype=float)
            entropy = -jnp.sum(jnp.exp(log_probs) * log_probs, -1)
            found = jnp.sum(chosen * log_probs, -1), jax.nn.logsumexp(logits, -1), entropy
            return found if probs else tuple(array.at[0, 0].set(0) for array in found)

        ours = functools.partial(jaxloss.linear_log_probs, soft_cap=2.0)
        moved = {name: arrays[name] for name in ("hidden", "kernel", "bias")}
        for index, cotangent in enumerate((1.0, 2.0, 3.0)):
            values = [
                jax.jit(
                    jax.value_and_grad(
                        lambda m, f=f, i=index, c=cotangent: c * jnp.sum(f({**arrays, **m})[i])
                    )
                )(moved)
                for f in (lambda arrays: ours(**arrays), expected)
            ]
            jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-10, atol=1e-13), *values)


def test_a_minus_infinity_logit_adds_nothing_to_the_entropy():
    arrays = draw(2)
    del arrays["weight"]
    arrays["bias"] = jnp.full(CLASSES, -jnp.inf).at[:2].set(0.0)
    arrays["hidden"] = jnp.zeros_like(arrays["hidden"])
    arrays["targets"] = jnp.array([0, 5])
    found = jaxloss.linear_log_probs(**arrays)
    np.testing.assert_allclose(found.entropy, np.full(2, np.log(2)), rtol=1e-6)
    np.testing.assert_allclose(found.log_prob, [-np.log(2), -np.inf], rtol=1e-6)

    def entropies(layer: dict[str, Any]) -> jax.Array:
        return jaxloss.linear_log_probs(**{**arrays, **layer}).entropy

    # Nor to its derivatives; the second derivative is -1/4 at equal probabilities.
    layer = {name: arrays[name] for name in ("hidden", "kernel", "bias")}
    gradients = jax.grad(lambda layer: jnp.sum(entropies(layer)))(layer)
    jax.tree.map(lambda gradient: np.testing.assert_allclose(gradient, 0, atol=1e-7), gradients)
    hessian = jax.hessian(lambda bias: entropies({"bias": bias})[0])(arrays["bias"])
    expected = np.zeros((CLASSES, CLASSES))
    expected[:2, :2] = [[-0.25, 0.25], [0.25, -0.25]]
    np.testing.assert_allclose(hessian, expected, atol=1e-6)


# Memory, as reported by the compiler.


def megabytes(function: Any, classes: int, positions: int = 4096) -> float:
    """Returns the temporary memory, in MB, of a function of hidden, kernel and labels."""
    shapes = {"hidden": (positions, 512), "kernel": (512, classes), "targets": (positions,)}
    types = {"targets": jnp.int32}
    arguments = [jax.ShapeDtypeStruct(s, types.get(name, jnp.float32)) for name, s in shapes.items()]
    compiled = jax.jit(function).lower(*arguments).compile()
    return compiled.memory_analysis().temp_size_in_bytes / 1e6


@pytest.mark.parametrize(
    ("classes", "forward", "with_gradient"), [(32_000, 27, 30), (128_256, 50, 60), (50_257, 32, 40)]
)
@pytest.mark.usefixtures("default_block_size")
def test_the_logits_are_never_materialized(classes: int, forward: float, with_gradient: float):
    def loss(*arguments: jax.Array) -> jax.Array:
        return jaxloss.linear_cross_entropy(*arguments)

    assert megabytes(loss, classes) <= forward
    assert megabytes(jax.value_and_grad(loss, (0, 1)), classes) <= with_gradient


@pytest.mark.usefixtures("default_block_size")
def test_the_logits_of_a_few_positions_are_materialized():
    gradient = jax.value_and_grad(jaxloss.linear_cross_entropy, (0, 1))
    assert megabytes(gradient, 32_000, positions=128) <= 18  # the logits are 16; blocks would take 37


@pytest.mark.usefixtures("default_block_size")
def test_forward_derivatives_materialize_neither_logits_nor_a_second_kernel():
    def product(*arguments: jax.Array) -> Any:
        point, labels = arguments[:2], arguments[2]
        return jax.jvp(
            jax.grad(lambda h, k: jaxloss.linear_cross_entropy(h, k, labels), (0, 1)), point, point
        )

    assert megabytes(product, 32_000) <= 60  # a kernel is 66, the logits are 524


def test_materialized_logits_would_be_detected():
    def loss(hidden: jax.Array, kernel: jax.Array, labels: jax.Array) -> jax.Array:
        return jaxloss.cross_entropy(jnp.dot(hidden, kernel), labels)

    assert megabytes(loss, 32_000) >= 524
