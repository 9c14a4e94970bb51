"""Reductions, by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxloss

LOSSES = jnp.array([[1.0, 2.0], [3.0, 6.0]])
WEIGHT = jnp.array([1.0, 3.0])
WHERE = jnp.array([[True], [False]])


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, 12 / 4),
        ({"weight": WEIGHT}, (1 + 6 + 3 + 18) / 8),
        ({"where": WHERE}, 3 / 2),
        ({"weight": WEIGHT, "where": WHERE}, 7 / 4),
        ({"reduction": "sum"}, 12),
        ({"weight": WEIGHT, "reduction": "sum"}, 28),
        ({"where": WHERE, "reduction": "sum"}, 3),
        ({"weight": WEIGHT, "reduction": "none"}, [[1, 6], [3, 18]]),
        ({"where": WHERE, "reduction": "none"}, [[1, 2], [0, 0]]),
        ({"weight": WEIGHT, "where": WHERE, "reduction": "sum_and_weight"}, (7, 4)),
        ({"reduction": "sum_and_weight"}, (12, 4)),
    ],
)
def test_every_reduction(options, expected):
    np.testing.assert_array_equal(jaxloss.reduce(LOSSES, **options), np.asarray(expected, np.float32))


def test_arguments_may_be_positional():
    assert jaxloss.reduce(LOSSES, WEIGHT, WHERE, "sum") == 7


@pytest.mark.parametrize(
    "arguments", [(jnp.zeros(0),), (LOSSES, jnp.zeros(())), (LOSSES, None, jnp.zeros((), bool))]
)
def test_an_empty_mean_is_nan_with_gradient_zero(arguments):
    assert np.isnan(jaxloss.reduce(*arguments))
    assert jaxloss.reduce(*arguments, reduction="sum") == 0
    np.testing.assert_array_equal(jax.grad(jaxloss.reduce)(*arguments), jnp.zeros_like(arguments[0]))


def test_masked_nan_does_not_affect_gradients_of_losses_or_weights():
    losses, weight = jnp.array([1.0, np.nan]), jnp.array([2.0, np.nan])
    where = jnp.array([True, False])
    value, gradients = jax.value_and_grad(jaxloss.reduce, (0, 1))(losses, weight, where, "sum")
    assert value == 2
    np.testing.assert_array_equal(gradients, [[2, 0], [1, 0]])


def test_the_total_weight_of_many_samples_is_exact():
    count = 2**24 + 1_000_000
    where = jnp.ones(count, bool)
    _, weight = jaxloss.reduce(jnp.zeros(count, jnp.bfloat16), where=where, reduction="sum_and_weight")
    assert weight == count


@pytest.mark.parametrize("where", [(65536, 1), (1, 1), (1, 33024), (65536, 33024)])
def test_counts_above_the_int32_range_are_exact(where):
    shape = 65536, 33024  # no array of this shape is ever materialized
    masked = 256 if where[0] > 1 else 0  # of the rows

    @jax.jit
    def weight():
        mask = jax.lax.broadcasted_iota(jnp.int32, where, 0) >= masked
        losses = jnp.broadcast_to(jnp.float32(1), shape)
        return jaxloss.reduce(losses, where=mask, reduction="sum_and_weight")[1]

    count = float((shape[0] - masked) * shape[1])
    assert count > 2**31
    assert weight() == count


def test_weights_of_an_empty_array_are_ignored():
    weight = jnp.array([np.inf, np.nan, 1.0])
    assert jaxloss.reduce(jnp.zeros((0, 3)), weight, reduction="sum_and_weight") == (0, 0)
    np.testing.assert_array_equal(
        jax.grad(lambda weight: jaxloss.reduce(jnp.zeros((0, 3)), weight))(weight), 0
    )


def test_half_precision_is_summed_in_float32():
    losses = jnp.full(4096, 1.0, jnp.float16)
    np.testing.assert_array_equal(jaxloss.reduce(losses, reduction="sum"), jnp.float32(4096), strict=True)


def test_integers_become_the_default_float():
    np.testing.assert_array_equal(jaxloss.reduce(jnp.arange(3)), jnp.float32(1), strict=True)


@pytest.mark.parametrize("reduction", ["avg", "Mean", "", None, 3])
def test_an_unknown_reduction_raises_and_lists_the_known_ones(reduction):
    known = "'none', 'mean', 'sum', 'sum_and_weight'"
    with pytest.raises(ValueError, match=f"reduction must be one of {known}, got {reduction!r}"):
        jaxloss.reduce(LOSSES, reduction=reduction)


@pytest.mark.parametrize("parts", [2, 3, 7])
def test_sums_and_weights_of_uneven_micro_batches_give_loss_and_gradient_of_the_whole(parts):
    rng = np.random.RandomState(parts)
    logits, labels = rng.randn(20, 5).astype(np.float32), rng.randint(0, 5, 20)
    labels[rng.rand(20) < 0.4] = -100
    weight = rng.rand(5).astype(np.float32)
    pieces = np.split(np.arange(20), np.sort(rng.choice(np.arange(1, 20), parts - 1, replace=False)))

    def of_parts(logits):
        pairs = [
            jaxloss.cross_entropy(logits[piece], labels[piece], weight=weight, reduction="sum_and_weight")
            for piece in pieces
        ]
        total, denominator = (sum(values) for values in zip(*pairs, strict=True))
        return total / denominator

    whole = jax.value_and_grad(jaxloss.cross_entropy)(logits, labels, weight=weight)
    for ours, theirs in zip(jax.value_and_grad(of_parts)(jnp.asarray(logits)), whole, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-6, atol=1e-8)
