"""`ctc_loss` beyond the catalogue: sums over all paths, infinities, lengths, and invalid values."""

import itertools

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import checkify

from jaxloss import ctc_loss

INF = np.inf


def random_log_probs(*shape):
    """Returns random log-probabilities."""
    return jax.nn.log_softmax(jnp.asarray(np.random.RandomState(0).randn(*shape), jnp.float32))


def sum_over_paths(log_probs, labels, blank=0):
    """Returns the loss of one sample and its gradient, from a sum over all paths that spell the labels."""
    frames, classes = log_probs.shape
    total, slope = 0.0, np.zeros_like(log_probs)
    for path in itertools.product(range(classes), repeat=frames):
        if [label for label, _ in itertools.groupby(path) if label != blank] == list(labels):
            prob = np.exp(sum(log_probs[t, label] for t, label in enumerate(path)))
            total += prob
            slope[range(frames), path] -= prob
    return (-np.log(total), slope / total) if total else (INF, slope)


def single_loss(log_probs, labels, **options):
    """Returns the loss of one sample without padding."""
    lengths = (jnp.int32(len(log_probs)), jnp.int32(len(labels)))
    return ctc_loss(log_probs, jnp.asarray(labels, jnp.int32), *lengths, reduction="sum", **options)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("frames", "labels", "blank"),
    [
        (1, [1], 0),
        (3, [], 0),
        (4, [2], 0),
        (5, [1, 2], 0),
        (5, [1, 1], 0),
        (6, [2, 2, 1], 0),
        (6, [0, 1, 0, 1], 2),
        (5, [1, 1, 1], 0),
        (2, [1, 1], 0),
    ],
)
@pytest.mark.parametrize("kind", ["scores", "infinite"])
def test_losses_equal_a_sum_over_all_paths(frames, labels, blank, kind):
    rng = np.random.RandomState(frames)
    log_probs = rng.randn(frames, 3) - 2  # unnormalized: the gradient must be right there, too
    if kind == "infinite":
        log_probs[rng.rand(frames, 3) < 0.2] = -INF
    expected = sum_over_paths(log_probs, labels, blank)
    with jax.enable_x64(True):
        answer = jax.jit(jax.value_and_grad(lambda x: single_loss(x, labels, blank=blank)))(
            jnp.asarray(log_probs)
        )
    jax.tree.map(lambda ours, theirs: np.testing.assert_allclose(ours, theirs, rtol=1e-12), answer, expected)


def test_second_derivatives_are_finite_where_probabilities_are_0():
    log_probs = np.array([[0.0, -1.0, -INF], [-INF, -1.0, -0.5], [-0.1, -INF, -INF], [-1.0, -2.0, -0.5]])
    with jax.enable_x64(True):
        point = jnp.asarray(log_probs)

        def loss(x):
            return single_loss(x, [1, 2])

        hessian, reverse = jax.jit(lambda x: (jax.hessian(loss)(x), jax.jacrev(jax.grad(loss))(x)))(point)
        # Finite differences of the gradient; entries of -inf stay -inf.
        steps = 1e-6 * np.eye(log_probs.size).reshape(-1, *log_probs.shape)
        differences = [
            (sum_over_paths(log_probs + step, [1, 2])[1] - sum_over_paths(log_probs - step, [1, 2])[1]) / 2e-6
            for step in steps
        ]
    np.testing.assert_allclose(hessian, reverse, atol=1e-12)
    np.testing.assert_allclose(hessian, np.reshape(differences, hessian.shape), rtol=1e-6, atol=1e-9)


# Limits.

IMPOSSIBLE = {
    "too many labels": (np.zeros((2, 3)), [1, 2, 1]),
    "no room for a blank": (np.zeros((2, 3)), [1, 1]),
    "a label of probability 0": (np.array([[0.0, -INF, 0.0]] * 3), [1]),
    "a blank of probability 0": (np.array([[-INF, 0.0, 0.0]] * 3), [2, 2]),
    "all of probability 0": (np.full((3, 3), -INF), [1]),
    "no frames": (np.zeros((0, 3)), [1]),
}


@pytest.mark.parametrize("name", IMPOSSIBLE)
def test_an_impossible_alignment_is_infinite_with_gradient_zero(name):
    log_probs, labels = IMPOSSIBLE[name]

    def loss(log_probs):
        return single_loss(log_probs, labels)

    point = jnp.asarray(log_probs, jnp.float32)
    value, gradient, hessian = jax.jit(lambda x: (loss(x), jax.grad(loss)(x), jax.hessian(loss)(x)))(point)
    assert value == INF
    np.testing.assert_array_equal(gradient, 0)
    np.testing.assert_array_equal(hessian, 0)
    assert single_loss(point, labels, zero_infinity=True) == 0


def test_no_frames_and_no_labels_have_loss_zero():
    loss = single_loss(jnp.zeros((0, 3)), [])
    assert loss == 0
    assert not np.signbit(loss)


@pytest.mark.parametrize("zero_infinity", [False, True])
@pytest.mark.parametrize("scores", [[[-1, INF]], [[-1, -1], [-1, INF]], [[-1, INF], [-1, -1]]])
def test_an_infinite_score_is_nan(scores, zero_infinity):
    def loss(scores):
        return single_loss(scores, [1], zero_infinity=zero_infinity)

    assert all(np.isnan(array).all() for array in jax.value_and_grad(loss)(jnp.array(scores, jnp.float32)))


def test_an_impossible_sample_does_not_affect_the_others():
    log_probs = random_log_probs(3, 2, 3)
    targets, lengths = jnp.array([[1, 1, 1], [1, 2, 0]]), (jnp.array([3, 3]), jnp.array([3, 2]))
    alone = jax.value_and_grad(single_loss)(log_probs[:, 1], [1, 2])
    for options in ({}, {"zero_infinity": True}):
        losses = ctc_loss(log_probs, targets, *lengths, reduction="none", **options)
        np.testing.assert_allclose(losses, [0 if options else INF, alone[0]], rtol=1e-6)
        gradient = jax.grad(ctc_loss)(log_probs, targets, *lengths, reduction="sum", **options)
        np.testing.assert_array_equal(gradient[:, 0], 0)
        np.testing.assert_allclose(gradient[:, 1], alone[1], rtol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_rounding_never_makes_the_loss_negative(dtype):
    frames, classes = 60, 7
    for seed in range(20):
        rng = np.random.RandomState(seed)
        labels = rng.randint(1, classes, 15)
        path = np.stack([np.zeros_like(labels), labels, labels, np.zeros_like(labels)], -1).ravel()[:frames]
        # The first frame of each label may also be blank, so that the paths together have probability 1.
        sharp = rng.uniform(10, 40, (frames, 1)) * np.eye(classes)[path]
        sharp[1::4, 0] = sharp[1::4].max(-1) + rng.uniform(-1, 1, len(sharp[1::4]))
        log_probs = jax.nn.log_softmax(jnp.asarray(sharp, jnp.float32)).astype(dtype)
        assert 0 <= single_loss(log_probs, labels) < 0.5
    sure = jnp.log(jnp.eye(3)[jnp.array([0, 1, 0, 2])])
    assert single_loss(sure, [1, 2]) == 0
    np.testing.assert_array_equal(jax.grad(lambda x: single_loss(x, [1, 2]))(sure), -jnp.exp(sure))


def test_losses_of_unnormalized_scores_may_be_negative():
    # Three paths of score 0 each; as in PyTorch, scores are not normalized.
    np.testing.assert_allclose(single_loss(jnp.zeros((2, 2)), [1]), -np.log(3), rtol=1e-6)
    # The tolerance for negative rounding errors depends only on the frames of the sample.
    scores = jnp.full((100, 2), 0.125, jnp.bfloat16)
    assert ctc_loss(scores, jnp.zeros(0, int), 2, 0, reduction="sum") == -0.25


def test_long_sequences_keep_full_precision():
    targets = np.random.RandomState(1).randint(1, 6, (2, 90))
    lengths = jnp.array([400, 333]), jnp.array([90, 71])
    for dtype in ("bfloat16", "float32"):
        log_probs = jax.nn.log_softmax(3 * random_log_probs(400, 2, 6)).astype(dtype)
        value, gradient = jax.value_and_grad(ctc_loss)(
            log_probs, jnp.asarray(targets), *lengths, reduction="sum"
        )
        with jax.enable_x64(True):
            exact = jnp.asarray(np.asarray(log_probs, np.float64))
            truth, slope = jax.value_and_grad(ctc_loss)(
                exact, jnp.asarray(targets), *lengths, reduction="sum"
            )
        assert value.dtype == jnp.float32
        assert gradient.dtype == log_probs.dtype
        np.testing.assert_allclose(value, truth, rtol=1e-6)
        np.testing.assert_allclose(
            np.asarray(gradient, np.float64), slope, rtol=float(jnp.finfo(dtype).eps), atol=1e-4
        )


# Lengths, padding and concatenation.

LOG_PROBS = random_log_probs(7, 4, 5)
TARGETS = jnp.array([[1, 2, 3], [4, 4, 1], [2, 2, 2], [3, 1, 4]])
INPUT_LENGTHS, TARGET_LENGTHS = jnp.array([7, 5, 6, 0]), jnp.array([3, 2, 1, 0])
CONCATENATED = jnp.array([1, 2, 3, 4, 4, 2])


def answer(
    log_probs=LOG_PROBS,
    targets=TARGETS,
    input_lengths=INPUT_LENGTHS,
    target_lengths=TARGET_LENGTHS,
    **options,
):
    """Returns the losses and the gradient of their sum."""

    def total(log_probs):
        losses = ctc_loss(log_probs, targets, input_lengths, target_lengths, reduction="none", **options)
        return jnp.sum(losses), losses

    gradient, losses = jax.grad(total, has_aux=True)(log_probs)
    return losses, gradient


def assert_close(ours, theirs):
    jax.tree.map(lambda *pair: np.testing.assert_allclose(*pair, rtol=1e-6), ours, theirs)


def test_padding_never_affects_value_or_gradient():
    behind_frames = np.arange(7)[:, None, None] >= np.asarray(INPUT_LENGTHS)[None, :, None]
    behind_labels = np.arange(3)[None] >= np.asarray(TARGET_LENGTHS)[:, None]
    for bad in (np.nan, INF, -INF):
        log_probs = jnp.where(behind_frames, bad, LOG_PROBS)
        targets = jnp.where(behind_labels, 10**6, TARGETS)
        assert_close(answer(log_probs, targets), answer())
    np.testing.assert_array_equal(answer()[1][behind_frames[..., 0]], 0)


@pytest.mark.parametrize("reduction", ["none", "sum_and_weight"])
def test_concatenated_targets_equal_padded_ones(reduction):
    lengths = {"input_lengths": INPUT_LENGTHS, "target_lengths": TARGET_LENGTHS, "reduction": reduction}
    assert_close(ctc_loss(LOG_PROBS, CONCATENATED, **lengths), ctc_loss(LOG_PROBS, TARGETS, **lengths))
    where = jnp.array([True, False, True, True])
    assert_close(
        ctc_loss(LOG_PROBS, CONCATENATED, **lengths, where=where),
        ctc_loss(LOG_PROBS, TARGETS, **lengths, where=where),
    )


def test_gradients_of_concatenated_targets_equal_those_of_padded_ones():
    assert_close(answer(targets=CONCATENATED), answer())
    both = jax.vmap(answer)(
        jnp.stack([LOG_PROBS, LOG_PROBS[::-1]]),
        jnp.stack([CONCATENATED, CONCATENATED[::-1]]),
        jnp.stack([INPUT_LENGTHS] * 2),
        jnp.stack([TARGET_LENGTHS, TARGET_LENGTHS[::-1]]),
    )
    reverse = jnp.array([[0, 0, 0], [2, 0, 0], [4, 4, 0], [3, 2, 1]])
    second = answer(LOG_PROBS[::-1], reverse, INPUT_LENGTHS, TARGET_LENGTHS[::-1])
    assert_close(both, jax.tree.map(lambda *pair: jnp.stack(pair), answer(), second))


def test_concatenated_targets_with_more_labels_than_frames():
    # The second sample has 8 labels for 7 frames; the targets of the third must still be found.
    lengths = jnp.array([7, 7, 7, 7]), jnp.array([1, 8, 2, 0])
    targets = jnp.array([3, 1, 2, 1, 2, 1, 2, 1, 2, 2, 4])
    losses = ctc_loss(LOG_PROBS, targets, *lengths, reduction="none")
    assert losses[1] == INF
    np.testing.assert_allclose(losses[2], single_loss(LOG_PROBS[:, 2], [2, 4]), rtol=1e-6)


@pytest.mark.slow
def test_export_with_symbolic_numbers_of_samples_and_labels():
    sizes = jax.export.symbolic_shape("samples, labels")
    labels, lengths = (jax.ShapeDtypeStruct((size,), jnp.int32) for size in sizes[::-1])
    program = jax.export.export(jax.jit(jax.value_and_grad(ctc_loss)))(
        jax.ShapeDtypeStruct((5, sizes[0], 3), jnp.float32), labels, lengths, lengths
    )
    for lengths in ([2], [3, 1], [1, 0, 4]):
        labels = jnp.arange(sum(lengths)) % 2 + 1
        arguments = (
            random_log_probs(5, len(lengths), 3),
            labels,
            jnp.full(len(lengths), 5),
            jnp.array(lengths),
        )
        expected = jax.value_and_grad(ctc_loss)(*arguments)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 1e-5), program.call(*arguments), expected)


def test_a_batch_without_labels_or_samples():
    nothing = jnp.zeros(4, jnp.int32)
    expected = -jnp.sum(LOG_PROBS[..., 0], 0)
    for targets in (jnp.zeros((4, 0), jnp.int32), jnp.zeros(0, jnp.int32)):
        losses = ctc_loss(LOG_PROBS, targets, nothing + 7, nothing, reduction="none")
        np.testing.assert_allclose(losses, expected, rtol=1e-6)
    empty = LOG_PROBS[:, :0], TARGETS[:0], nothing[:0], nothing[:0]
    assert ctc_loss(*empty, reduction="sum") == 0
    assert np.isnan(ctc_loss(*empty))


def test_a_single_sample_accepts_python_integer_lengths():
    alone = ctc_loss(LOG_PROBS[:, 0], TARGETS[0], 7, 3)
    np.testing.assert_allclose(alone, answer()[0][0] / 3, rtol=1e-6)


# Invalid values.


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"targets": TARGETS.at[1, 0].set(5)}, r"targets: expected class indices in \[0, 5\), got 5"),
        ({"targets": TARGETS.at[1, 1].set(-1)}, r"targets: expected class indices in \[0, 5\), got -1"),
        ({"targets": CONCATENATED.at[4].set(5)}, r"targets: expected class indices in \[0, 5\), got 5"),
        (
            {"input_lengths": INPUT_LENGTHS.at[1].set(8)},
            r"input_lengths: expected lengths in \[0, 7\], got 8",
        ),
        (
            {"input_lengths": INPUT_LENGTHS.at[1].set(-1)},
            r"input_lengths: expected lengths in \[0, 7\], got -1",
        ),
        (
            {"target_lengths": TARGET_LENGTHS.at[1].set(4)},
            r"target_lengths: expected lengths in \[0, 3\], got 4",
        ),
        ({"target_lengths": TARGET_LENGTHS.at[1].set(-1)}, r"target_lengths: .* in \[0, 3\], got -1"),
    ],
)
def test_invalid_values_are_nan_and_reported_by_checkify(bad, message):
    losses, gradient = answer(**bad, zero_infinity=True)
    good_losses, good_gradient = answer(zero_infinity=True)
    others = jnp.array([0, 2, 3])
    assert np.isnan(losses[1])
    assert np.isnan(gradient[:, 1]).all()
    assert_close((losses[others], gradient[:, others]), (good_losses[others], good_gradient[:, others]))
    error, _ = checkify.checkify(answer)(**bad)
    with pytest.raises(checkify.JaxRuntimeError, match=message):
        error.throw()
    error, (masked, _) = checkify.checkify(answer)(**bad, where=jnp.arange(4) != 1)
    assert error.get() is None
    assert np.isfinite(masked).all()


def test_concatenated_targets_shorter_than_their_lengths_are_nan():
    lengths = jnp.array([3, 4, 1, 0])  # 8 labels, but only 6 are given
    losses, gradient = answer(targets=CONCATENATED, target_lengths=lengths)
    np.testing.assert_array_equal(np.isnan(losses), [False, True, True, False])
    np.testing.assert_array_equal(np.isnan(gradient).all((0, 2)), [False, True, True, False])
    error, _ = checkify.checkify(answer)(targets=CONCATENATED, target_lengths=lengths)
    assert "target_lengths: expected lengths >= 0 with the sum 6, got 4" in error.get()


@pytest.mark.parametrize("frames", [0, 3])
def test_invalid_lengths_are_nan_even_without_frames(frames):
    for length in (-1, 2, 2**31 - 1, -(2**31)):
        assert np.isnan(ctc_loss(jnp.zeros((frames, 3)), jnp.array([1]), frames, length, zero_infinity=True))


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        (
            {"log_probs": LOG_PROBS[0, 0]},
            ValueError,
            r"log_probs must have shape \(T, N, C\) or \(T, C\), got",
        ),
        (
            {"targets": TARGETS[:3]},
            ValueError,
            r"targets must have shape .* got targets \(3, 3\) and log_probs",
        ),
        ({"targets": TARGETS[None]}, ValueError, r"targets must have shape .* got targets \(1, 4, 3\)"),
        (
            {"log_probs": LOG_PROBS[:, 0]},
            ValueError,
            r"input_lengths must have one length .* \(\), got \(4,\)",
        ),
        (
            {"log_probs": LOG_PROBS.swapaxes(0, 1)},
            ValueError,
            r"input_lengths must .* shape \(7,\), got \(4,\); log_probs has axes \(time, sample, class\), "
            r"got shape \(4, 7, 5\)",
        ),
        ({"targets": TARGETS.astype(float)}, TypeError, "targets must be integers, got dtype float32"),
        (
            {"input_lengths": INPUT_LENGTHS.astype(float)},
            TypeError,
            "input_lengths must be integers, got dtype float32",
        ),
        ({"target_lengths": jnp.ones(4, bool)}, TypeError, "target_lengths must be integers, got dtype bool"),
        (
            {"target_lengths": jnp.int32(3)},
            ValueError,
            r"target_lengths must have one length .* \(4,\), got \(\)",
        ),
        ({"input_lengths": (7.0, 5, 6, 0)}, TypeError, "input_lengths must be integers, got dtype float32"),
        ({"blank": 5}, ValueError, r"blank must be a class in \[0, 5\), got 5"),
        ({"blank": -1}, ValueError, r"blank must be a class in \[0, 5\), got -1"),
        ({"blank": jnp.array(0)}, TypeError, "blank is static and must be a hashable Python value"),
    ],
)
def test_invalid_calls_raise(changed, error, message):
    with pytest.raises(error, match=message):
        answer(**changed)


# Memory.


@pytest.mark.parametrize(
    ("shape", "labels", "megabytes"), [((200, 32, 80), 40, 9), ((1000, 16, 80), 100, 51)]
)
def test_the_gradient_has_bounded_memory(shape, labels, megabytes):
    lengths = jax.ShapeDtypeStruct(shape[1:2], jnp.int32)
    compiled = (
        jax.jit(jax.value_and_grad(ctc_loss))
        .lower(
            jax.ShapeDtypeStruct(shape, jnp.float32),
            jax.ShapeDtypeStruct((shape[1], labels), jnp.int32),
            lengths,
            lengths,
        )
        .compile()
    )
    assert compiled.memory_analysis().temp_size_in_bytes <= megabytes * 1e6
    assert "scatter" not in compiled.as_text()
