"""Distances, embedding losses and margin ranking, beyond the catalogue."""

import copy
import functools
import pickle

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import checkify

import jaxloss

INF = np.inf
RNG = np.random.RandomState(0)
X1, X2 = RNG.randn(2, 4, 3, 2)
SIGN_LOSSES = (jaxloss.hinge_embedding_loss, jaxloss.margin_ranking_loss, jaxloss.cosine_embedding_loss)


def arguments_with_target(loss, bad, dtype):
    """Returns arguments of a loss, the last of which are targets with one invalid value."""
    first = 2 if loss is jaxloss.hinge_embedding_loss else 3
    shape = (3, 2) if loss is jaxloss.cosine_embedding_loss else (3,)
    return [jnp.ones(shape)] * (first - 1) + [jnp.array([1, bad, -1], dtype)]


# Distances.


@pytest.mark.parametrize("axis", [0, 1, 2, -1, -2])
@pytest.mark.parametrize("p", [0, 0.5, 1, 1.5, 2, 3, 3.5, 50, INF])
def test_pairwise_distance_equals_the_p_norm(p, axis):
    with jax.enable_x64(True):
        ours = jaxloss.pairwise_distance(jnp.asarray(X1), jnp.asarray(X2), p=p, axis=axis, eps=0.1)
        kept = jaxloss.pairwise_distance(jnp.asarray(X1), jnp.asarray(X2), p=p, axis=axis, keepdim=True)
    # The p-norm by its formula.
    difference = np.abs(X1 - X2 + 0.1)
    if p == 0:
        theirs = np.sum(difference != 0, axis)
    else:
        theirs = np.max(difference, axis) if p == INF else np.sum(difference**p, axis) ** (1 / p)
    np.testing.assert_allclose(ours, theirs, rtol=1e-12)
    assert kept.shape == np.sum(X1, axis, keepdims=True).shape


@pytest.mark.parametrize("p", [0, 0.5, 1, 1.5, 2, 3, INF])
def test_distance_of_equal_vectors_has_derivative_0(p):
    def distance(x):
        return jaxloss.pairwise_distance(x, jnp.ones(3), p=p, eps=0)

    for derivative in (jax.grad, jax.jacfwd, jax.hessian, lambda f: jax.jacrev(jax.grad(f))):
        np.testing.assert_array_equal(jax.jit(derivative(distance))(jnp.ones(3)), 0)


@pytest.mark.parametrize("p", [0.5, 3, 7.5, 40])
@pytest.mark.parametrize("scale", [1e-30, 1e-5, 1e30, 1e37])
def test_powers_neither_overflow_nor_underflow(p, scale):
    x = jnp.array([3.0, -1.0, 2.0])
    value, slope = jax.value_and_grad(jaxloss.pairwise_distance)(x, jnp.zeros(3), p=p, eps=0)
    scaled = jax.value_and_grad(jaxloss.pairwise_distance)(scale * x, jnp.zeros(3), p=p, eps=0)
    np.testing.assert_allclose(scaled[0] / scale, value, rtol=1e-5)
    np.testing.assert_allclose(scaled[1], slope, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("axis", [0, 1, -1])
def test_cosine_similarity_equals_its_formula(axis):
    with jax.enable_x64(True):
        ours = jaxloss.cosine_similarity(jnp.asarray(X1), jnp.asarray(X2), axis=axis)
    theirs = (X1 * X2).sum(axis) / np.sqrt((X1**2).sum(axis) * (X2**2).sum(axis))
    np.testing.assert_allclose(ours, theirs, rtol=1e-12)


def test_gradients_pass_through_the_clamp_on_the_norm():
    # As in PyTorch. If the clamp stopped the gradient, the first would be (2, 0).
    x1, x2 = jnp.array([0.1, 0.2]), jnp.array([3.0, 0.0])
    value, slopes = jax.value_and_grad(jaxloss.cosine_similarity, (0, 1))(x1, x2, eps=0.5)
    np.testing.assert_allclose(value, 0.2, rtol=1e-6)
    np.testing.assert_allclose(slopes[0], [1.82111456, -0.35777088], rtol=1e-6)
    np.testing.assert_allclose(slopes[1], [0, 0.13333333], atol=1e-7)


def test_the_cosine_of_a_zero_vector_is_zero():
    value, slope = jax.value_and_grad(jaxloss.cosine_similarity)(jnp.zeros(2), jnp.array([3.0, 4.0]))
    assert value == 0
    np.testing.assert_allclose(slope, [0.6e8, 0.8e8], rtol=1e-6)


@pytest.mark.parametrize("scale", [1e-6, 1e-4, 1e18])
def test_cosine_similarity_does_not_depend_on_vector_length(scale):
    x1, x2 = jnp.array([1.0, 2.0, 2.0]), jnp.array([2.0, -1.0, 2.0])
    value, slope = jax.value_and_grad(jaxloss.cosine_similarity)(x1, x2)
    scaled_value, scaled_slope = jax.value_and_grad(jaxloss.cosine_similarity)(scale * x1, x2)
    np.testing.assert_allclose(scaled_value, value, rtol=1e-6)
    np.testing.assert_allclose(scale * scaled_slope, slope, rtol=1e-5, atol=1e-7)


def test_an_overflowing_square_gives_nan():
    x1, x2 = jnp.full(3, 1e20), jnp.ones(3)
    for loss in (jaxloss.cosine_similarity, lambda x1, x2: jaxloss.cosine_embedding_loss(x1, x2, 1)):
        value, slopes = jax.value_and_grad(loss, (0, 1))(x1, x2)
        assert np.isnan(value)
        assert np.isnan(slopes).all()


def cosines_and_slopes(x1, x2, eps):
    x1, x2 = np.float64(x1), np.float64(x2)
    length1, length2 = (np.linalg.norm(x, axis=-1, keepdims=True) for x in (x1, x2))
    clamped1, clamped2 = np.maximum(length1, eps), np.maximum(length2, eps)
    cosine = (x1 * x2).sum(-1, keepdims=True) / (clamped1 * clamped2)
    unit1, unit2 = (x / np.where(length == 0, 1, length) for x, length in ((x1, length1), (x2, length2)))
    towards2, towards1 = x2 / clamped2, x1 / clamped1
    return cosine[..., 0], (towards2 - cosine * unit1) / clamped1, (towards1 - cosine * unit2) / clamped2


@jax.jit
def cosines_and_pulled(x1, x2, eps):
    value, pull = jax.vjp(lambda x1, x2: jaxloss.cosine_similarity(x1, x2, eps=eps), x1, x2)
    return value, *pull(jnp.ones_like(value))


pair_by_pair = jax.jit(jax.vmap(cosines_and_pulled, (0, 0, None)))
with_each_eps = jax.jit(jax.vmap(cosines_and_pulled, (None, None, 0)))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("eps", [1e-8, 2.0, 1e12])
@pytest.mark.parametrize("scale", [None, 0, 1e-13, 1e4, 1e12])
def test_one_tiny_or_huge_vector_among_many(scale, eps, dtype):
    rng = np.random.default_rng(0)
    x1, x2 = rng.normal(size=(2, 64, 64)).astype("float32")
    if scale is not None:
        x1[5] *= np.float32(scale)
    with jax.enable_x64(dtype == "float64"):
        arrays = jnp.asarray(x1, dtype), jnp.asarray(x2, dtype)
        results = [
            cosines_and_pulled(*arrays, eps),
            pair_by_pair(*arrays, eps),
            [result[0] for result in with_each_eps(*arrays, jnp.asarray([eps, 1.0], dtype))],
        ]
    tolerance = 2e-6 if dtype == "float32" else 1e-13
    smallest = float(jnp.finfo(dtype).tiny)
    expected = cosines_and_slopes(x1, x2, eps)
    for result in results:
        for ours, theirs in zip(result, expected, strict=True):
            largest = np.abs(theirs).max(-1, keepdims=True)
            within = np.abs(np.float64(ours) - theirs) <= tolerance * largest + 2 * smallest
            assert within.all()


def test_derivatives_of_many_vectors_equal_those_of_small_batches():
    rng = np.random.default_rng(0)
    x1, x2, tangent1, tangent2 = jnp.asarray(rng.normal(size=(4, 64, 64)), jnp.float32)

    def second(x1, x2, tangents):
        def slope(x1, x2):
            return jax.grad(lambda *xs: jnp.sum(jnp.sin(jaxloss.cosine_similarity(*xs))), (0, 1))(x1, x2)

        return jax.jvp(slope, (x1, x2), tangents)[1]

    together = second(x1, x2, (tangent1, tangent2))
    alone = [
        second(x1[i : i + 4], x2[i : i + 4], (tangent1[i : i + 4], tangent2[i : i + 4]))
        for i in range(0, 64, 4)
    ]
    for ours, theirs in zip(together, zip(*alone, strict=True), strict=True):
        np.testing.assert_allclose(ours, jnp.concatenate(theirs), rtol=1e-4, atol=1e-8)
    pairs = jax.vmap(lambda x: jax.vmap(lambda y: jaxloss.cosine_similarity(x, y))(x2))
    expected = cosines_and_slopes(np.float32(x1)[:, None], np.float32(x2)[None], 1e-8)[0]
    np.testing.assert_allclose(jax.jit(pairs)(x1), expected, atol=1e-6)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_distances_are_float32(dtype):
    x = jnp.asarray([3e-4, 4e-4], dtype)
    for distance, expected in ((jaxloss.cosine_similarity, 1), (jaxloss.pairwise_distance, 0)):
        value, slope = jax.value_and_grad(distance)(x, x)
        assert value.dtype == jnp.float32
        assert slope.dtype == dtype
        np.testing.assert_allclose(value, expected, atol=2e-6)


def test_vectors_of_size_0_have_distance_and_similarity_zero():
    x = jnp.zeros((2, 0))
    np.testing.assert_array_equal(jaxloss.cosine_similarity(x, x), [0, 0])
    for p in (0, 1, 2, 3, INF):
        np.testing.assert_array_equal(jaxloss.pairwise_distance(x, x, p=p), [0, 0])


@pytest.mark.parametrize("distance", [jaxloss.pairwise_distance, jaxloss.cosine_similarity])
def test_a_distance_is_a_plain_function_and_validates_its_arguments(distance):
    assert pickle.loads(pickle.dumps(distance)) is distance
    assert copy.deepcopy(distance) is distance
    x = jnp.ones((3, 2))
    with pytest.raises(
        ValueError, match=r"x1 and x2 must have the same shape, got x1 \(3, 2\) and x2 \(2,\)"
    ):
        distance(x, x[0])
    with pytest.raises(ValueError, match="axis must be an axis of x1, got axis=2"):
        distance(x, x, axis=2)
    with pytest.raises(ValueError, match="eps must be a number >= 0, got -1"):
        distance(x, x, eps=-1)
    with pytest.raises(TypeError, match="x1 must be an array, got list"):
        distance([1.0], x)
    assert np.isnan(distance(x, x, eps=jnp.float32(-1))).all()


def test_an_invalid_order_p_raises():
    x = jnp.ones((3, 2))
    with pytest.raises(ValueError, match="pairwise_distance: p must be a number >= 0, got -2"):
        jaxloss.pairwise_distance(x, x, p=-2)
    with pytest.raises(TypeError, match="p is static and must be a hashable Python value"):
        jaxloss.triplet_margin_loss(x, x, x, p=jnp.float32(2))


# Targets of 1 and -1.


@pytest.mark.parametrize("dtype", ["float32", "int32", "int8"])
@pytest.mark.parametrize("bad", [0, 2, -3])
@pytest.mark.parametrize("loss", SIGN_LOSSES)
def test_targets_other_than_plus_minus_1_are_nan_in_value_and_gradient(loss, bad, dtype):
    arguments = arguments_with_target(loss, bad, dtype)
    np.testing.assert_array_equal(np.isnan(loss(*arguments, reduction="none")), [False, True, False])
    for transform in (lambda f: f, jax.jit):
        slope = transform(jax.grad(lambda *a: loss(*a, reduction="sum")))(*arguments)
        assert np.isnan(slope[1]).all()
        assert np.isfinite(slope[::2]).all()
    error, _ = checkify.checkify(loss)(*arguments)
    assert f"targets: expected 1 or -1, got {bad}" in error.get()
    where = jnp.array([True, False, True])
    assert np.isfinite(loss(*arguments, where=where))
    assert checkify.checkify(loss)(*arguments, where=where)[0].get() is None


@pytest.mark.parametrize("bad", [1 + 1.2e-7, -1 + 6e-8, 0.5, -1e-30, 1e30, INF, np.nan])
@pytest.mark.parametrize("loss", SIGN_LOSSES)
def test_targets_close_to_plus_minus_1_are_nan(loss, bad):
    arguments = arguments_with_target(loss, bad, jnp.float32)
    np.testing.assert_array_equal(np.isnan(loss(*arguments, reduction="none")), [False, True, False])
    one = [argument[1:2] for argument in arguments]  # XLA simplifies single elements differently
    assert np.isnan(loss(*one))
    assert np.isnan(jax.grad(loss)(*one)).all()


@pytest.mark.parametrize("loss", SIGN_LOSSES)
def test_a_margin_must_be_a_finite_number(loss):
    arguments = arguments_with_target(loss, 1, jnp.float32)
    with pytest.raises(ValueError, match="margin must be a finite number, got inf"):
        loss(*arguments, margin=INF)
    with pytest.raises(ValueError, match=r"margin must be a finite number, got float32\[3\]"):
        loss(*arguments, margin=jnp.ones(3))
    value, slope = jax.value_and_grad(loss)(*arguments, margin=jnp.float32(np.nan))
    assert np.isnan(value)
    assert np.isnan(slope[2]).all()


def test_cosine_embedding_loss_does_not_depend_on_vector_length():
    x, y = jnp.array([1.0, 2.0, 2.0]), jnp.array([2.0, -1.0, 2.0])
    value, slope = jax.value_and_grad(jaxloss.cosine_embedding_loss)(x, y, 1)
    for scale in (1e-2, 1e4, 1e10, 1e18):
        scaled = jax.value_and_grad(jaxloss.cosine_embedding_loss)(scale * x, scale * y, 1)
        np.testing.assert_allclose(scaled[0], value, rtol=1e-6)
        np.testing.assert_allclose(scale * scaled[1], slope, rtol=1e-5, atol=1e-7)
    assert np.isnan(jaxloss.cosine_embedding_loss(1e20 * x, 1e-10 * y, 1))


def test_one_dimensional_embeddings_of_equal_sign_have_loss_near_zero():
    x = jnp.linspace(0.1, 5, 50)[:, None]
    losses = jaxloss.cosine_embedding_loss(x, 3.3 * x, jnp.ones(50), reduction="none")
    np.testing.assert_allclose(losses, 0, atol=4 * np.finfo(np.float32).eps)


def test_targets_of_the_wrong_shape_raise():
    x = jnp.ones((3, 2))
    with pytest.raises(ValueError, match=r"targets must have the shape .* \(3,\), got shape \(3, 1\)"):
        jaxloss.cosine_embedding_loss(x, x, jnp.ones((3, 1)))
    with pytest.raises(ValueError, match="embeddings1 and embeddings2 must have an axis of features"):
        jaxloss.cosine_embedding_loss(1.0, 1.0, 1)
    with pytest.raises(ValueError, match="targets must have the same shape, got scores1"):
        jaxloss.margin_ranking_loss(x, x, x[0])


# Triplets.


def test_triplet_loss_equals_a_loop():
    anchors, positives, negatives = RNG.randn(3, 5, 4)
    with jax.enable_x64(True):
        for swap in (False, True):
            ours = jaxloss.triplet_margin_loss(
                *map(jnp.asarray, (anchors, positives, negatives)), p=3, eps=0.2, swap=swap, reduction="none"
            )
            for i, (a, p, n) in enumerate(zip(anchors, positives, negatives, strict=True)):
                near, far, other = (
                    sum(abs(u + 0.2) ** 3 for u in v) ** (1 / 3) for v in (a - p, a - n, p - n)
                )
                expected = max(0, 1 + near - (min(far, other) if swap else far))
                np.testing.assert_allclose(ours[i], expected, rtol=1e-12)


@pytest.mark.parametrize("loss", [jaxloss.triplet_margin_loss, jaxloss.triplet_margin_with_distance_loss])
def test_a_triplet_margin_must_be_positive(loss):
    triplets = [jnp.asarray(array, jnp.float32) for array in RNG.randn(3, 2, 4)]
    for margin in (0, -1.0):
        with pytest.raises(ValueError, match="margin must be a number > 0"):
            loss(*triplets, margin=margin)
    value, slope = jax.value_and_grad(loss)(*triplets, margin=jnp.float32(-1))
    assert np.isnan(value)
    assert np.isnan(slope).all()
    error, _ = checkify.checkify(loss)(*triplets, margin=jnp.float32(-1))
    assert "margin: expected a number > 0, got -1" in error.get()


def test_the_distance_is_pairwise_distance_by_default():
    triplets = [jnp.asarray(array, jnp.float32) for array in RNG.randn(3, 5, 4)]
    plain, given = jaxloss.triplet_margin_loss, jaxloss.triplet_margin_with_distance_loss
    expected = plain(*triplets, swap=True)
    np.testing.assert_allclose(given(*triplets, swap=True), expected, rtol=1e-6)
    named = given(*triplets, swap=True, distance_function=jaxloss.pairwise_distance)
    np.testing.assert_allclose(named, expected, rtol=1e-6)


def test_a_custom_distance_is_masked_and_differentiable():
    def distance(x, y, scale):
        assert x.dtype == jnp.float32
        return scale * jnp.sqrt(jnp.sum((x - y) ** 2, (1, 2)))  # its gradient is infinite where x = y

    def loss(scale, images, where):
        return jaxloss.triplet_margin_with_distance_loss(
            *images, distance_function=lambda x, y: distance(x, y, scale), where=where
        )

    images = jnp.asarray(RNG.randn(3, 4, 2, 2), jnp.bfloat16).at[:, 1].set(jnp.nan)
    where = jnp.array([True, False, True, True])
    kept = jnp.asarray(np.asarray(images)[:, [0, 2, 3]])
    value, slopes = jax.value_and_grad(loss, (0, 1))(jnp.float32(2), images, where)
    expected, expected_slopes = jax.value_and_grad(loss, (0, 1))(jnp.float32(2), kept, None)
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    np.testing.assert_allclose(slopes[0], expected_slopes[0], rtol=1e-6)
    assert slopes[1].dtype == jnp.bfloat16
    np.testing.assert_array_equal(slopes[1][:, 1], 0)
    np.testing.assert_array_equal(slopes[1][:, ::2], expected_slopes[1][:, :2])


@pytest.mark.parametrize(
    ("distance", "error", "message"),
    [
        (lambda x, y: x - y, None, None),
        (lambda x, y: jnp.sum(x - y, 0), ValueError, r"first axes of anchors \(3, 2\), got \(2,\)"),
        (lambda x, y: jnp.sum(x - y, 1, keepdims=True), ValueError, r"got \(3, 1\)"),
        (lambda x, y: [1.0], TypeError, "distances must be an array, got list"),
    ],
)
def test_return_values_of_a_distance_function(distance, error, message):
    x = jnp.ones((3, 2))
    if error is None:
        losses = jaxloss.triplet_margin_with_distance_loss(
            x, x, x, distance_function=distance, reduction="none"
        )
        np.testing.assert_array_equal(losses, np.ones((3, 2)))
    else:
        with pytest.raises(error, match=message):
            jaxloss.triplet_margin_with_distance_loss(x, x, x, distance_function=distance)


@pytest.mark.parametrize("loss", [jaxloss.triplet_margin_loss, jaxloss.triplet_margin_with_distance_loss])
def test_scalar_triplets_raise(loss):
    with pytest.raises(ValueError, match=r"must (have|be) an axis"):
        loss(1.0, 1.0, 1.0)


# Many vectors.


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize(
    ("loss", "count"),
    [
        (jaxloss.cosine_embedding_loss, 2),
        (jaxloss.triplet_margin_loss, 3),
        (functools.partial(jaxloss.triplet_margin_loss, p=1, swap=True), 3),
    ],
)
def test_masking_many_rows_equals_slicing_them(loss, count, dtype):
    rng = np.random.RandomState(0)
    where = rng.rand(700) < 0.8
    vectors = [jnp.asarray(rng.randn(700, 130), dtype) for _ in range(count)]
    poisoned = [jnp.where(where[:, None], array, jnp.asarray(np.nan, dtype)) for array in vectors]
    targets = [np.sign(np.float32(rng.randn(700)))] if count == 2 else []
    value_and_gradients = jax.value_and_grad(loss, range(count))
    value, gradients = value_and_gradients(*(array[where] for array in vectors + targets))
    np.testing.assert_allclose(loss(*poisoned, *targets, where=where), value, rtol=1e-6)
    masked_value, masked_gradients = value_and_gradients(*poisoned, *targets, where=where)
    np.testing.assert_allclose(masked_value, value, rtol=1e-6)
    for found, expected in zip(masked_gradients, gradients, strict=True):
        np.testing.assert_array_equal(found[~where], 0)
        found, expected = (np.float32(array) for array in (found[where], expected))
        np.testing.assert_allclose(found, expected, rtol=float(jnp.finfo(dtype).eps), atol=1e-8)


@pytest.mark.parametrize("distance", [jaxloss.pairwise_distance, jaxloss.cosine_similarity])
def test_export_with_a_symbolic_number_of_vectors(distance):
    def total(x1, x2):
        return jnp.sum(distance(x1, x2))

    vectors = jax.ShapeDtypeStruct(jax.export.symbolic_shape("vectors, 7"), jnp.float32)
    program = jax.export.export(jax.jit(jax.value_and_grad(total, (0, 1))))(vectors, vectors)
    for count in (3, 1000):
        x1, x2 = (jnp.asarray(np.random.RandomState(i).randn(count, 7), jnp.float32) for i in (0, 1))
        found, expected = program.call(x1, x2), jax.value_and_grad(total, (0, 1))(x1, x2)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 1e-5, 1e-6), found, expected)


# Memory.


@pytest.mark.parametrize(
    ("loss", "inputs"), [(jaxloss.cosine_embedding_loss, "xxr"), (jaxloss.triplet_margin_loss, "xxx")]
)
def test_row_gradients_allocate_no_full_size_temporary(loss, inputs):
    # A CPU allocates one forward and with a mask; TPU and GPU allocate none, which the benchmarks check.
    shapes = {"x": (2048, 128), "r": (2048,)}
    arrays = [jax.ShapeDtypeStruct(shapes[kind], jnp.float32) for kind in inputs]
    compiled = jax.jit(jax.value_and_grad(loss, (0, 1))).lower(*arrays).compile()
    assert compiled.memory_analysis().temp_size_in_bytes <= 0.15 * 4 * 2048 * 128
