"""`rnnt_loss` beyond the catalogue: sums over all paths, infinities, lengths, and invalid values."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import checkify

from jaxloss import rnnt_loss
from tests.cases.transducer import paths

INF = np.inf


def sum_over_paths(logits, labels, blank=0):
    """Returns the loss of one sample and its gradient, from a sum over all paths that emit the labels."""
    with np.errstate(divide="ignore"):
        log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    likelihood, slope = 0.0, np.zeros_like(logits)
    for path in paths(list(labels), len(logits), blank):
        prob = np.exp(sum(log_probs[step] for step in path))
        likelihood += prob
        for t, u, emitted in path:
            slope[t, u] += prob * np.exp(log_probs[t, u])
            slope[t, u, emitted] -= prob
    return (-np.log(likelihood), slope / likelihood) if likelihood else (INF, slope)


@jax.jit
def answer(logits, targets, input_lengths, target_lengths):
    """Returns the losses and the gradient of their sum."""

    def total(logits):
        losses = rnnt_loss(logits, targets, input_lengths, target_lengths, reduction="none")
        return jnp.sum(losses), losses

    gradient, losses = jax.grad(total, has_aux=True)(logits)
    return losses, gradient


LENGTHS = np.array([(frames, labels) for frames in range(1, 5) for labels in range(5)])


@pytest.mark.parametrize("kind", ["scores", "infinite"])
def test_losses_equal_a_sum_over_all_paths(kind):
    rng = np.random.RandomState(0)
    logits, targets = rng.randn(len(LENGTHS), 4, 5, 3), rng.randint(1, 3, (len(LENGTHS), 4))
    if kind == "infinite":  # never of all classes
        logits[..., 1:][rng.rand(len(LENGTHS), 4, 5, 2) < 0.3] = -INF
    with jax.enable_x64(True):
        losses, gradient = answer(jnp.asarray(logits), jnp.asarray(targets), *jnp.asarray(LENGTHS.T))
    assert np.isinf(losses).any() == (kind == "infinite")
    for i, (frames, count) in enumerate(LENGTHS):
        loss, slope = sum_over_paths(logits[i, :frames, : count + 1], targets[i, :count])
        np.testing.assert_allclose(losses[i], loss, rtol=1e-12)
        np.testing.assert_allclose(gradient[i, :frames, : count + 1], slope, rtol=1e-10, atol=1e-14)
        np.testing.assert_array_equal(gradient[i, frames:], 0)
        np.testing.assert_array_equal(gradient[i, :, count + 1 :], 0)


def test_second_derivatives_are_finite_where_probabilities_are_0():
    logits = np.random.RandomState(0).randn(2, 2, 3)
    logits[0, 0, 1] = logits[1, 1, 2] = -INF
    with jax.enable_x64(True):

        def loss(x):
            return rnnt_loss(x[None], jnp.array([[1]]), [2], [1], reduction="sum")

        hessian, reverse = jax.jit(lambda x: (jax.hessian(loss)(x), jax.jacrev(jax.grad(loss))(x)))(logits)
        # Finite differences of the gradient; entries of -inf stay -inf.
        steps = 1e-6 * np.eye(logits.size).reshape(-1, *logits.shape)
        differences = [
            (sum_over_paths(logits + step, [1])[1] - sum_over_paths(logits - step, [1])[1]) / 2e-6
            for step in steps
        ]
    np.testing.assert_allclose(hessian, reverse, atol=1e-12)
    np.testing.assert_allclose(hessian, np.reshape(differences, hessian.shape), rtol=1e-6, atol=1e-9)


def test_long_sequences_keep_full_precision():
    rng = np.random.RandomState(1)
    targets, lengths = rng.randint(1, 6, (2, 40)), (jnp.array([150, 111]), jnp.array([40, 33]))
    scores = 3 * rng.randn(2, 150, 41, 6)
    scores[1] *= 3000  # probabilities round to 0 or 1 in float32
    for dtype in ("bfloat16", "float32"):
        logits = jnp.asarray(scores, dtype)
        losses, gradient = answer(logits, jnp.asarray(targets), *lengths)
        with jax.enable_x64(True):
            exact = jnp.asarray(np.asarray(logits, np.float64))
            truth, slope = answer(exact, jnp.asarray(targets), *lengths)
        assert losses.dtype == jnp.float32
        assert gradient.dtype == logits.dtype
        np.testing.assert_allclose(losses, truth, rtol=1e-6)
        np.testing.assert_allclose(
            np.asarray(gradient, np.float64)[0], slope[0], rtol=float(jnp.finfo(dtype).eps), atol=1e-4
        )
        assert np.isfinite(gradient).all()


def test_many_impossible_steps_do_not_give_nan():
    logits, targets = np.zeros((2, 30, 7, 4)), jnp.array([[1, 2, 1, 2, 1, 2]] * 2)
    logits[0, :20, 1:, :3] = logits[0, :20, 0, 1] = -INF  # 20 frames allow only blanks, of probability 1/3
    logits[1, ..., :3] = -INF  # neither blank nor labels are possible
    losses, gradient = answer(jnp.asarray(logits), targets, jnp.array([30, 30]), jnp.array([6, 6]))
    later = rnnt_loss(logits[:1, 20:], targets[:1], [10], [6])
    np.testing.assert_allclose(losses[0], 20 * np.log(3) + later, rtol=1e-6)
    assert np.isfinite(gradient[0]).all()
    assert losses[1] == INF
    np.testing.assert_array_equal(gradient[1], 0)


def test_rounding_never_makes_the_loss_negative():
    # The labels are certain, but not the frames that emit them.
    rng = np.random.RandomState(0)
    logits = np.zeros((20, 30, 6, 2), np.float32)
    logits[:, :, :5, 1] = rng.uniform(-1, 3, (20, 30, 5))
    logits[:, -1, :5, 1] = 60  # the last frame emits the remaining ones
    logits[:, :, 5, 0] = 60
    losses, _ = answer(jnp.asarray(logits), jnp.ones((20, 5), int), jnp.full(20, 30), jnp.full(20, 5))
    assert ((losses >= 0) & (losses < 1e-5)).all()


# Lengths, labels and masks.

LOGITS = jnp.asarray(np.random.RandomState(2).randn(4, 5, 4, 6), jnp.float32)
TARGETS = jnp.array([[1, 2, 3], [4, 4, 1], [2, 2, 2], [3, 1, 5]])
INPUT_LENGTHS, TARGET_LENGTHS = jnp.array([5, 3, 4, 1]), jnp.array([3, 2, 1, 0])
ARGUMENTS = {
    "logits": LOGITS,
    "targets": TARGETS,
    "input_lengths": INPUT_LENGTHS,
    "target_lengths": TARGET_LENGTHS,
}


def test_padding_never_affects_value_or_gradient():
    behind = np.arange(5)[None, :, None] >= np.asarray(INPUT_LENGTHS)[:, None, None]
    behind = behind | (np.arange(4)[None, None] > np.asarray(TARGET_LENGTHS)[:, None, None])
    behind_labels = np.arange(3)[None] >= np.asarray(TARGET_LENGTHS)[:, None]
    losses, gradient = answer(**ARGUMENTS)
    np.testing.assert_array_equal(gradient[behind], 0)
    for bad in (np.nan, INF, -INF):
        logits = jnp.where(behind[..., None], bad, LOGITS)
        targets = jnp.where(behind_labels, 10**6, TARGETS)
        poisoned = answer(logits, targets, INPUT_LENGTHS, TARGET_LENGTHS)
        jax.tree.map(np.testing.assert_array_equal, poisoned, (losses, gradient))


def test_lengths_may_be_lists_or_tuples():
    expected = rnnt_loss(**ARGUMENTS)
    assert rnnt_loss(LOGITS, TARGETS, [5, 3, 4, 1], (3, 2, 1, 0)) == expected
    # The log-softmax of log-probabilities leaves them unchanged.
    normalised = rnnt_loss(jax.nn.log_softmax(LOGITS), TARGETS, INPUT_LENGTHS, TARGET_LENGTHS)
    np.testing.assert_allclose(normalised, expected, rtol=1e-6)


def test_a_negative_blank_is_counted_from_the_last_class():
    for blank in (-1, -6):
        found = rnnt_loss(LOGITS, TARGETS % 5, INPUT_LENGTHS, jnp.zeros(4, int), blank=blank)
        expected = rnnt_loss(LOGITS, TARGETS % 5, INPUT_LENGTHS, jnp.zeros(4, int), blank=blank + 6)
        assert found == expected


def test_the_loss_without_labels_sums_the_blanks():
    lengths = jnp.array([5, 3, 4, 1]), jnp.zeros(4, int)
    losses = rnnt_loss(LOGITS[:, :, :1], TARGETS[:, :0], *lengths, reduction="none")
    blanks = -jax.nn.log_softmax(LOGITS)[:, :, 0, 0]
    expected = [jnp.sum(blanks[i, :length]) for i, length in enumerate(INPUT_LENGTHS)]
    np.testing.assert_allclose(losses, expected, rtol=1e-6)


def test_no_frames_or_samples_give_nan():
    nothing = rnnt_loss(LOGITS[:, :0], TARGETS, jnp.zeros(4, int), TARGET_LENGTHS, reduction="none")
    assert np.isnan(nothing).all()
    masked = rnnt_loss(
        LOGITS[:, :0], TARGETS, jnp.zeros(4, int), TARGET_LENGTHS, where=False, reduction="sum"
    )
    assert masked == 0
    empty = LOGITS[:0], TARGETS[:0], INPUT_LENGTHS[:0], TARGET_LENGTHS[:0]
    assert np.isnan(rnnt_loss(*empty))
    assert rnnt_loss(*empty, reduction="sum") == 0


# Invalid values.

_OF_CLASS = r"targets: expected class indices in \[0, 6\) other than blank=0, got "


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"targets": TARGETS.at[1, 0].set(6)}, _OF_CLASS + "6"),
        ({"targets": TARGETS.at[1, 1].set(-1)}, _OF_CLASS + "-1"),
        ({"targets": TARGETS.at[1, 1].set(0)}, _OF_CLASS + "0"),
        ({"input_lengths": INPUT_LENGTHS.at[1].set(6)}, r"input_lengths: .* lengths in \[1, 5\], got 6"),
        ({"input_lengths": INPUT_LENGTHS.at[1].set(0)}, r"input_lengths: .* lengths in \[1, 5\], got 0"),
        ({"target_lengths": TARGET_LENGTHS.at[1].set(4)}, r"target_lengths: .* lengths in \[0, 3\], got 4"),
        ({"target_lengths": TARGET_LENGTHS.at[1].set(-1)}, r"target_lengths: .* in \[0, 3\], got -1"),
    ],
)
def test_invalid_values_are_nan_and_reported_by_checkify(bad, message):
    others, good = jnp.array([0, 2, 3]), answer(**ARGUMENTS)
    for logits in (LOGITS, jnp.full_like(LOGITS, -INF).at[..., 3].set(0)):  # the second allows no path
        losses, gradient = answer(**{**ARGUMENTS, **bad, "logits": logits.at[others].set(LOGITS[others])})
        assert np.isnan(losses[1])
        assert np.isnan(gradient[1]).all()
        np.testing.assert_array_equal(losses[others], good[0][others])
        np.testing.assert_array_equal(gradient[others], good[1][others])
    error, _ = checkify.checkify(rnnt_loss)(**{**ARGUMENTS, **bad})
    with pytest.raises(checkify.JaxRuntimeError, match=message):
        error.throw()
    error, masked = checkify.checkify(rnnt_loss)(**{**ARGUMENTS, **bad}, where=jnp.arange(4) != 1)
    assert error.get() is None
    np.testing.assert_allclose(masked, np.mean(good[0][others]), rtol=1e-6)


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        (
            {"logits": LOGITS[0]},
            ValueError,
            r"targets must have shape \(B, U\) for logits of shape \(B, T, U \+ 1, C\), got targets",
        ),
        ({"logits": LOGITS[:, :, :3]}, ValueError, r"got targets \(4, 3\) and logits \(4, 5, 3, 6\)"),
        ({"targets": TARGETS[0]}, ValueError, r"got targets \(3,\) and logits \(4, 5, 4, 6\)"),
        ({"targets": TARGETS.astype(float)}, TypeError, "targets must be integers, got dtype float32"),
        ({"input_lengths": (5.0, 3, 4, 1)}, TypeError, "input_lengths must be integers, got dtype float32"),
        ({"target_lengths": 3}, ValueError, r"target_lengths must have one length .* \(4,\), got \(\)"),
        ({"blank": 6}, ValueError, r"blank must be a class in \[-6, 6\), got 6"),
        ({"blank": -7}, ValueError, r"blank must be a class in \[-6, 6\), got -7"),
        ({"blank": jnp.array(0)}, TypeError, "blank is static and must be a hashable Python value"),
        ({"where": jnp.ones((4, 5), bool)}, ValueError, r"where must broadcast to shape \(4,\)"),
    ],
)
def test_invalid_calls_raise(changed, error, message):
    with pytest.raises(error, match=message):
        rnnt_loss(**{**ARGUMENTS, **changed})


# Memory.


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_nothing_but_the_gradient_is_as_large_as_the_logits(dtype):
    lengths = jax.ShapeDtypeStruct((4,), jnp.int32)
    logits = jax.ShapeDtypeStruct((4, 50, 11, 512), dtype)
    arguments = logits, jax.ShapeDtypeStruct((4, 10), jnp.int32), lengths, lengths
    for function in (rnnt_loss, jax.value_and_grad(rnnt_loss)):
        compiled = jax.jit(function).lower(*arguments).compile()
        temporaries = compiled.memory_analysis().temp_size_in_bytes
        assert temporaries <= 0.1 * logits.size * logits.dtype.itemsize
    # Outside `jit`, too, no residual is wider than the logits.
    _, kept = jax.eval_shape(lambda *arrays: jax.vjp(rnnt_loss, *arrays), *arguments)
    large = [array.dtype for array in jax.tree.leaves(kept) if array.size >= logits.size]
    assert set(large) <= {logits.dtype}
