"""Sums in blocks: beside a plain sum, and in how they round and what memory they take."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxloss
from jaxloss._core import elementwise as _elementwise

BLOCKS = _elementwise._BLOCKS
SHAPES = [
    [(BLOCKS * 8,), (BLOCKS * 8,)],
    [(BLOCKS * 8 + 5,), (1,)],
    [(3, 171), (3, 171), (1, 1)],
    [(171, 3), (1, 3)],
    [(171, 3), (171, 1)],
    [(19, 9, 3), (19, 9, 1), (1, 1, 3)],
    [(171, 3, 4), (171, 1, 4), (171, 1, 1)],
    [(1, 513), (1, 513)],
]


def multi_margin(scores, targets, **options):
    labels = (targets[:, 0] * targets.shape[1]).astype(int)
    return jaxloss.multi_margin_loss(scores, labels, **options)


LOSSES = [  # with the number of arrays and the options, of which types are arrays of them
    (jaxloss.mse_loss, 2, {}),
    (jaxloss.l1_loss, 2, {"weight": np.float32}),
    (jaxloss.smooth_l1_loss, 2, {"where": bool}),
    (jaxloss.huber_loss, 2, {"where": bool, "weight": np.float32}),
    (jaxloss.poisson_nll_loss, 2, {"full": True}),
    (jaxloss.poisson_nll_loss, 2, {"log_input": False, "full": True}),
    (jaxloss.gaussian_nll_loss, 3, {"full": True}),
    (jaxloss.kl_div, 2, {}),
    (jaxloss.kl_div, 2, {"log_target": True, "where": bool}),
    (jaxloss.cross_entropy, 2, {"label_smoothing": 0.1, "z_loss": 1e-2}),
    (multi_margin, 2, {}),
    (jaxloss.binary_cross_entropy, 2, {"weight": np.float32}),
    (jaxloss.binary_cross_entropy_with_logits, 2, {}),
    (jaxloss.binary_cross_entropy_with_logits, 2, {"pos_weight": np.float32, "where": bool}),
    (jaxloss.soft_margin_loss, 2, {}),
    (jaxloss.multilabel_soft_margin_loss, 2, {}),
    (jaxloss.hinge_embedding_loss, 2, {}),
    (jaxloss.margin_ranking_loss, 3, {"where": bool}),
]


@pytest.fixture(autouse=True)
def _blocks_for_few(monkeypatch):
    monkeypatch.setattr(_elementwise, "_LEAST", 1)


def wave(array, *others):
    for other in others:
        array = array * other
    return jnp.sin(array)


def in_blocks(*arrays):
    return _elementwise.total(wave, *arrays)


def plain(*arrays):
    return jnp.sum(wave(*arrays))


def gradients(function):
    return lambda *arrays: jax.grad(function, range(len(arrays)))(*arrays)


def directional(function):
    return lambda *arrays: jax.jvp(function, arrays, arrays)[1]


def second(function):
    return lambda *arrays: jax.jvp(gradients(function), arrays, arrays)[1]


def over_a_batch(function):
    return lambda *arrays: jax.vmap(function, (0, *[None] * (len(arrays) - 1)))(
        jnp.stack([arrays[0], 2 * arrays[0]]), *arrays[1:]
    )


@pytest.mark.parametrize("transform", [lambda f: f, gradients, directional, second, over_a_batch])
@pytest.mark.parametrize("shapes", SHAPES, ids=str)
def test_blocks_add_up_to_the_whole(shapes, transform):
    rng = np.random.default_rng(0)
    with jax.enable_x64(True):
        arrays = [jnp.asarray(rng.standard_normal(shape)) for shape in shapes]
        assert "while" in jax.jit(in_blocks).lower(*arrays).as_text()
        ours, theirs = (jax.jit(transform(function))(*arrays) for function in (in_blocks, plain))
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 1e-12, 1e-14), ours, theirs)


def test_few_rows_are_summed_at_once():
    few = jnp.ones((BLOCKS - 1, 100)), jnp.ones((1, 100))
    assert "while" not in jax.jit(in_blocks).lower(*few).as_text()


def test_blocks_are_aligned():
    # XLA does not vectorise a block of 15,625 that threads share, and is eight times as slow.
    text = jax.jit(in_blocks).lower(jnp.ones(1_000_000)).as_text()
    assert "tensor<15616xf32>" in text
    assert "tensor<15625xf32>" not in text


@pytest.mark.parametrize("size", [4_000_000, 4_000_037])
def test_a_sum_of_millions_is_not_rounded_away(size):
    # Added one by one, as many tenths are off by several parts in a hundred.
    value = jaxloss.l1_loss(jnp.full(size, np.float32(0.1)), jnp.zeros(size))
    np.testing.assert_allclose(value, np.float32(0.1), 2e-6)


def bound(loss, count, options):
    """The loss of arrays alone, and the types of these."""
    types = {name: kind for name, kind in options.items() if kind in (bool, np.float32)}

    def function(*arrays, **others):
        return loss(*arrays[:count], **options | dict(zip(types, arrays[count:], strict=True)), **others)

    return function, [np.float32] * count + [*types.values()]


@pytest.mark.parametrize(("loss", "count", "options"), LOSSES)
def test_the_mean_of_many_is_that_of_each(loss, count, options):
    rng = np.random.default_rng(0)
    function, types = bound(loss, count, options)
    arrays = [rng.uniform(0.1, 0.9, (171, 7)).astype(np.float32) for _ in types]
    arrays = [array < 0.6 if kind is bool else array for array, kind in zip(arrays, types, strict=True)]
    if loss in (jaxloss.soft_margin_loss, jaxloss.hinge_embedding_loss, jaxloss.margin_ranking_loss):
        arrays[count - 1] = np.sign(arrays[count - 1] - np.float32(0.5))

    def mean_of_each(*arrays):
        losses = function(*arrays, reduction="none")
        _, weight = function(*arrays, reduction="sum_and_weight")
        return jnp.sum(losses) / weight

    assert "while" in jax.jit(function).lower(*arrays).as_text()
    ours, theirs = (jax.jit(jax.value_and_grad(f))(*arrays) for f in (function, mean_of_each))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, 2e-6, 1e-9), ours, theirs)


@pytest.mark.parametrize(("loss", "count", "options"), LOSSES)
def test_no_temporary_of_full_size(loss, count, options):
    function, types = bound(loss, count, options)
    arrays = [jax.ShapeDtypeStruct((4_096, 1_000), kind) for kind in types]
    sums = 2 if {"where", "weight"} & set(options) else 1  # the second is the mean's denominator
    # Losses of positions keep a few numbers for each of them, and cross entropy's value 40 sums of classes.
    rows = 4_096 if loss in (jaxloss.cross_entropy, multi_margin) else 0
    moved = (0, 2) if loss is jaxloss.gaussian_nll_loss else 0
    for run in (function, jax.value_and_grad(function, moved)):
        kept = 46 if run is function and loss is jaxloss.cross_entropy else 6
        memory = jax.jit(run).lower(*arrays).compile().memory_analysis().temp_size_in_bytes
        assert memory <= 4 * (sums * 0.02 * 4_096_000 + kept * rows)


@pytest.mark.parametrize(
    "loss",
    [
        jaxloss.huber_loss,
        jaxloss.kl_div,
        jaxloss.binary_cross_entropy,
        jaxloss.binary_cross_entropy_with_logits,
        jaxloss.soft_margin_loss,
    ],
)
def test_under_vmap_and_summed_outside_losses_are_written_out_once(loss, monkeypatch):
    # Summed with all that is computed before, selects and terms of a series would be written out each.
    monkeypatch.setattr(_elementwise, "_LEAST", 4096)
    array = jax.ShapeDtypeStruct((1000, 1000), np.float32)

    def summed_outside(*arrays):
        return jnp.sum(jnp.square(loss(*arrays, reduction="none")))

    for run in (jax.vmap(loss), jax.vmap(jax.value_and_grad(loss)), summed_outside):
        compiled = jax.jit(run).lower(array, array).compile()
        assert compiled.memory_analysis().temp_size_in_bytes <= 1.05 * 4 * 1000 * 1000
