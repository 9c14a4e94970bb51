"""Checks on values: no effect in plain code, an error under checkify, under every transform."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import checkify

from jaxloss._core.checks import checked


def positive_sum(x):
    return jnp.sum(jnp.sqrt(checked(x, x > 0, "x: expected values > 0")))


GOOD, BAD = jnp.array([1.0, 4.0]), jnp.array([1.0, -4.0])

TRANSFORMS = {
    "plain": lambda f: f,
    "jit": jax.jit,
    "grad": jax.grad,
    "jit of grad": lambda f: jax.jit(jax.grad(f)),
    "hessian": jax.hessian,
    "vmap": lambda f: lambda x: jax.vmap(f)(jnp.stack([GOOD, x])),
    "scan": lambda f: (
        lambda x: jax.lax.scan(lambda c, _: (c + f(x), None), jnp.float32(0), None, length=2)[0]
    ),
    "cond": lambda f: lambda x: jax.lax.cond(x[0] > 0, f, lambda x: x[0], x),
    "remat": lambda f: jax.grad(jax.checkpoint(f)),
    "jvp": lambda f: lambda x: jax.jvp(f, (x,), (x,)),
}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_checkify_names_the_argument_and_the_bad_value(name):
    function = checkify.checkify(TRANSFORMS[name](positive_sum))
    assert function(GOOD)[0].get() is None
    assert "x: expected values > 0, got -4.0" in function(BAD)[0].get()


@pytest.mark.parametrize("name", TRANSFORMS)
def test_checks_do_not_change_values_without_checkify(name):
    transform = TRANSFORMS[name]
    expected = transform(lambda x: jnp.sum(jnp.sqrt(x)))(GOOD)
    jax.tree.map(np.testing.assert_array_equal, transform(positive_sum)(GOOD), expected)


def test_checkify_reports_errors_of_an_already_compiled_function():
    step = jax.jit(positive_sum)
    step(BAD)
    assert "got -4.0" in checkify.checkify(step)(BAD)[0].get()


def test_checks_under_vmap_of_the_condition_alone():
    def masked_sum(where):
        return jnp.sum(checked(BAD, (BAD > 0) | ~where, "x: expected values > 0"))

    masks = jnp.array([[True, False], [False, False]])
    assert jax.vmap(masked_sum)(masks).shape == (2,)
    assert checkify.checkify(jax.vmap(masked_sum))(masks)[0].get() is None
    assert "got -4.0" in checkify.checkify(jax.vmap(masked_sum))(~masks)[0].get()


def test_an_empty_array_passes():
    assert checkify.checkify(positive_sum)(jnp.ones(0))[0].get() is None


def test_a_check_adds_no_compiled_code():
    text = jax.jit(positive_sum).lower(GOOD).compile().as_text()
    assert "compare" not in text
    assert "compare" in jax.jit(lambda x: jnp.where(x > 0, x, 0)).lower(GOOD).compile().as_text()
