"""Property tests: losses equal plain NumPy for random shapes, dtypes, masks and reductions."""

import jax.numpy as jnp
import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxloss

# Few shapes, so that few programs are compiled; derandomized, so that every run tests the same examples.
SETTINGS = settings(max_examples=40, deadline=None, derandomize=True)
SHAPES = st.sampled_from([(), (1,), (3,), (2, 3), (2, 1, 3), (0,), (2, 0)])
DTYPES = st.sampled_from(["float32", "float16", "bfloat16"])
SEEDS = st.integers(0, 2**31 - 1)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def binary_cross_entropy(probs, targets):
    return -(targets * np.log(probs) + (1 - targets) * np.log(1 - probs))


def huber(error):
    return np.where(np.abs(error) < 1, 0.5 * error**2, np.abs(error) - 0.5)


ELEMENTWISE = {
    "mse_loss": ("predictions", lambda x, t: (x - t) ** 2),
    "l1_loss": ("predictions", lambda x, t: np.abs(x - t)),
    "huber_loss": ("predictions", lambda x, t: huber(x - t)),
    "smooth_l1_loss": ("predictions", lambda x, t: huber(x - t)),
    "binary_cross_entropy_with_logits": ("logits", lambda x, t: binary_cross_entropy(sigmoid(x), t)),
    "binary_cross_entropy": ("probs", binary_cross_entropy),
}


def reduced(losses, weight, where, reduction):
    """Reduces the losses of a batch in a plain loop."""
    total = denominator = 0.0
    for loss, share, valid in zip(losses.ravel(), weight.ravel(), where.ravel(), strict=True):
        total += loss * share if valid else 0
        denominator += share if valid else 0
    if reduction == "none":
        return np.where(where, losses * weight, 0)
    mean = total / denominator if denominator else np.nan
    return {"sum": total, "mean": mean, "sum_and_weight": (total, denominator)}[reduction]


@SETTINGS
@given(
    st.sampled_from(sorted(ELEMENTWISE)),
    SHAPES,
    DTYPES,
    SEEDS,
    st.booleans(),
    st.sampled_from(["none", "mean", "sum_and_weight"]),
)
def test_elementwise_losses(name, shape, dtype, seed, masked, reduction):
    rng = np.random.RandomState(seed)
    first, reference = ELEMENTWISE[name]
    scores = np.asarray(rng.uniform(0.1, 0.9, shape) if first == "probs" else rng.randn(*shape))
    scores, targets = (
        jnp.asarray(scores).astype(dtype),
        jnp.asarray(np.asarray(rng.rand(*shape))).astype(dtype),
    )
    where = np.asarray(rng.rand(*shape) < 0.7) if masked else np.ones(shape, bool)
    value = getattr(jaxloss, name)(scores, targets, where=where if masked else None, reduction=reduction)
    losses = reference(np.asarray(scores, np.float64), np.asarray(targets, np.float64))
    expected = reduced(losses, np.ones(shape), where, reduction)
    np.testing.assert_allclose(np.asarray(value), np.asarray(expected), rtol=1e-5, atol=1e-6)


@SETTINGS
@given(
    st.sampled_from([(), (4,), (0,), (2, 3)]),
    st.integers(1, 4),
    st.integers(0, 2),
    SEEDS,
    st.tuples(st.booleans(), st.booleans(), st.booleans()),
    st.sampled_from(["none", "mean", "sum_and_weight"]),
)
def test_class_losses(positions, classes, axis, seed, with_weight_mask_ignored, reduction):
    with_weight, with_mask, with_ignored = with_weight_mask_ignored
    rng = np.random.RandomState(seed)
    logits = rng.randn(*positions, classes)
    labels = np.asarray(rng.randint(0, classes, positions), np.int32)
    valid = np.asarray(rng.rand(*positions) < 0.7) if with_ignored else np.ones(positions, bool)
    where = np.asarray(rng.rand(*positions) < 0.7) if with_mask else np.ones(positions, bool)
    weight = rng.rand(classes) + 0.1 if with_weight else np.ones(classes)
    log_probs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    losses = -np.take_along_axis(log_probs, labels[..., None], -1)[..., 0]
    expected = reduced(losses, weight[labels], valid & where, reduction)

    axis = min(axis, len(positions))
    options = {"axis": axis, "reduction": reduction, "ignore_index": -7}
    options["weight"] = weight.astype(np.float32) if with_weight else None
    options["where"] = where if with_mask else None
    labels = np.where(valid, labels, -7).astype(np.int32)
    for loss, scores in ((jaxloss.cross_entropy, logits), (jaxloss.nll_loss, log_probs)):
        value = loss(np.moveaxis(scores, -1, axis).astype(np.float32), labels, **options)
        np.testing.assert_allclose(np.asarray(value), np.asarray(expected), rtol=1e-4, atol=1e-6)
