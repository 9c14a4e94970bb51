"""Property tests: losses equal their plain formulas for random shapes, dtypes, masks and options."""

from collections.abc import Callable
from decimal import Decimal, localcontext
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxloss
from tests import formulas
from tests.case import nested
from tests.test_properties import reduced

Draw = Callable[[np.random.RandomState, tuple[int, ...]], dict[str, Any]]
CLASSES = 3
INFINITY = float("inf")


def signs(rng, *shape):
    return rng.choice([-1.0, 1.0], shape)


def sequences(rng, positions):
    lengths = {"input_lengths": rng.randint(0, 6, positions), "target_lengths": rng.randint(0, 3, positions)}
    return {
        "log_probs": -np.abs(rng.randn(5, *positions, CLASSES)),
        "targets": rng.randint(1, CLASSES, (*positions, 2)),
        **lengths,
    }


# For each loss: how its arguments are drawn for a shape of positions, and its option sets.
LOSSES: dict[str, tuple[Draw, list[dict[str, Any]]]] = {
    "poisson_nll_loss": (
        lambda rng, s: {"predictions": rng.rand(*s) + 0.1, "targets": 4 * rng.rand(*s)},
        [{}, {"full": True}, {"log_input": False, "full": True}, {"log_input": False, "eps": 0.5}],
    ),
    "gaussian_nll_loss": (
        lambda rng, s: {"predictions": rng.randn(*s), "targets": rng.randn(*s), "var": rng.rand(*s)},
        [{}, {"full": True}, {"eps": 0.5}],
    ),
    "kl_div": (
        lambda rng, s: {"log_probs": -rng.rand(*s), "targets": rng.rand(*s)},
        [{}, {"log_target": True}],
    ),
    "multi_margin_loss": (
        lambda rng, s: {"scores": rng.randn(*s, CLASSES), "targets": rng.randint(0, CLASSES, s)},
        [{}, {"p": 2}, {"margin": 0.5}, {"p": 2, "margin": -0.5}],
    ),
    "multilabel_margin_loss": (
        lambda rng, s: {
            "scores": rng.randn(*s, CLASSES),
            "targets": rng.randint(-1, CLASSES, (*s, CLASSES)),
        },
        [{}],
    ),
    "soft_margin_loss": (lambda rng, s: {"scores": 3 * rng.randn(*s), "targets": signs(rng, *s)}, [{}]),
    "sigmoid_focal_loss": (
        lambda rng, s: {"logits": 3 * rng.randn(*s), "targets": rng.rand(*s)},
        [{}, {"alpha": None}, {"alpha": 0.75, "gamma": 0.5}, {"gamma": 0.0}],
    ),
    "multilabel_soft_margin_loss": (
        lambda rng, s: {"logits": 3 * rng.randn(*s, CLASSES), "targets": rng.rand(*s, CLASSES)},
        [{}],
    ),
    "hinge_embedding_loss": (
        lambda rng, s: {"distances": rng.randn(*s), "targets": signs(rng, *s)},
        [{}, {"margin": 0.25}, {"margin": -0.5}],
    ),
    "margin_ranking_loss": (
        lambda rng, s: {"scores1": rng.randn(*s), "scores2": rng.randn(*s), "targets": signs(rng, *s)},
        [{}, {"margin": 0.5}, {"margin": -0.5}],
    ),
    "cosine_embedding_loss": (
        lambda rng, s: {
            "embeddings1": rng.randn(*s, 4),
            "embeddings2": rng.randn(*s, 4),
            "targets": signs(rng, *s),
        },
        [{}, {"margin": 0.5}, {"margin": -0.5}],
    ),
    "triplet_margin_loss": (
        lambda rng, s: {name: rng.randn(*s, 4) for name in ("anchors", "positives", "negatives")},
        [{}, {"swap": True, "margin": 0.5}, {"p": 1.0}, {"p": 3.0, "eps": 0.25}, {"p": INFINITY}],
    ),
    "triplet_margin_with_distance_loss": (
        lambda rng, s: {name: rng.randn(*s, 4) for name in ("anchors", "positives", "negatives")},
        [{}, {"swap": True, "margin": 0.5}],
    ),
    "pairwise_distance": (
        lambda rng, s: {"x1": rng.randn(*s, 4), "x2": rng.randn(*s, 4)},
        [{}, {"p": 0.0}, {"p": 0.5, "eps": 0.25}, {"p": 1.0}, {"p": 3.0}, {"p": INFINITY}],
    ),
    "cosine_similarity": (
        lambda rng, s: {"x1": rng.randn(*s, 4), "x2": rng.randn(*s, 4)},
        [{}, {"eps": 2.5}],
    ),
    "ctc_loss": (sequences, [{}, {"zero_infinity": True}]),
    "adaptive_log_softmax": (
        lambda rng, s: {
            "hidden": rng.randn(*s, 4),
            "targets": rng.randint(0, 6, s),
            "params.head.kernel": rng.randn(4, 4),
            "params.head.bias": rng.randn(4),
            **{f"params.tail.{i}.down": rng.randn(4, 2) for i in range(2)},
            **{f"params.tail.{i}.up": rng.randn(2, 2) for i in range(2)},
        },
        [{"cutoffs": (2, 4)}],
    ),
}
# Few shapes of positions, so that few programs are compiled.
POSITIONS = {"ctc_loss": [(), (3,), (1,)]}


def decimals(array: np.ndarray) -> Any:
    if array.dtype.kind == "i":
        return array.tolist()
    return np.vectorize(Decimal, otypes=[object])(array).tolist()


def plain(
    loss: str, arrays: dict[str, np.ndarray], positions: tuple[int, ...], options: dict[str, Any]
) -> Any:
    """Returns the losses of all positions by the formula, in a loop."""
    losses = np.zeros(positions)
    known = {name: value for name, value in options.items() if name != "zero_infinity"}
    for index in np.ndindex(positions):
        at = {
            name: array
            if name.startswith("params")
            else array[(slice(None), *index)]
            if name == "log_probs" and loss == "ctc_loss"
            else array[index]
            for name, array in arrays.items()
        }
        with localcontext(formulas.CONTEXT):
            at = nested({name: decimals(np.asarray(array)) for name, array in at.items()})
            losses[index] = formulas.evaluate(loss, at, known)
    return np.where(np.isinf(losses), 0, losses) if options.get("zero_infinity") else losses


@pytest.mark.slow
@pytest.mark.parametrize("loss", LOSSES)
@settings(max_examples=8, deadline=None, derandomize=True)
@given(st.data())
def test_every_loss_equals_its_formula(loss: str, data: st.DataObject):
    draw, every_option = LOSSES[loss]
    positions = data.draw(st.sampled_from(POSITIONS.get(loss, [(), (3,), (2, 1, 2), (0,)])))
    options = data.draw(st.sampled_from(every_option))
    rng = np.random.RandomState(data.draw(st.integers(0, 2**31 - 1)))
    dtype = data.draw(st.sampled_from(["float32", "float16", "bfloat16"]))
    inputs = {
        name: jnp.asarray(array, dtype if np.asarray(array).dtype.kind == "f" else jnp.int32)
        for name, array in draw(rng, positions).items()
    }
    arrays = {n: np.asarray(a) if a.dtype == jnp.int32 else np.asarray(a, float) for n, a in inputs.items()}
    losses = plain(loss, arrays, positions, options)
    if loss in ("pairwise_distance", "cosine_similarity"):
        value, expected = getattr(jaxloss, loss)(**inputs, **options), losses
    else:
        reduction = data.draw(st.sampled_from(["none", "mean", "sum", "sum_and_weight"]))
        where = rng.rand(*positions) < 0.7 if data.draw(st.booleans()) else None
        if loss == "ctc_loss" and reduction in ("mean", "sum_and_weight"):
            losses = losses / np.maximum(arrays["target_lengths"], 1)
        valid = np.ones(positions, bool) if where is None else np.asarray(where)
        value = getattr(jaxloss, loss)(**nested(inputs), **options, where=where, reduction=reduction)
        expected = reduced(losses, np.ones(positions), valid, reduction)
    np.testing.assert_allclose(np.asarray(value), np.asarray(expected), rtol=2e-5, atol=2e-6)
