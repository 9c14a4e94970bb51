"""Sums in blocks: beside a plain sum, and in how they round and what memory they take."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxloss
from jaxloss import _elementwise

BLOCKS = 64  # as a user's sums have; the session's have fewer
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


@pytest.fixture(autouse=True)
def blocks(monkeypatch):
    monkeypatch.setattr(_elementwise, "_BLOCKS", BLOCKS)


def wave(array, *others):
    for other in others:
        array = array * other
    return jnp.sin(array)


def in_blocks(*arrays):
    return _elementwise.total(wave, *arrays, at_once=False)


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


@pytest.mark.parametrize("size", [4_000_000, 4_000_037])
def test_a_sum_of_millions_is_not_rounded_away(size):
    # Added one by one, as many tenths are off by several parts in a hundred.
    value = jaxloss.l1_loss(jnp.full(size, np.float32(0.1)), jnp.zeros(size))
    np.testing.assert_allclose(value, np.float32(0.1), 2e-6)


@pytest.mark.parametrize("options", [{}, {"where": True, "weight": True}], ids=str)
def test_neither_masks_nor_weights_take_memory(options):
    size = 4_000_000
    arrays = {"predictions": jnp.ones(size), "targets": jnp.zeros(size)}
    arrays |= {name: jnp.ones(size, bool if name == "where" else float) for name in options}
    run = jax.jit(jax.value_and_grad(lambda arrays: jaxloss.huber_loss(**arrays), allow_int=True))
    memory = run.lower(arrays).compile().memory_analysis().temp_size_in_bytes
    assert memory <= 0.02 * 4 * size
