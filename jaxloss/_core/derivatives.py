"""Elementwise building blocks with the right value and derivative at kinks, zeros and infinities."""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero

from jaxloss._core.arguments import hide, widened
from jaxloss._core.checks import checked

Elementwise = Callable[..., jax.Array]


def derivatives(*partials: Elementwise, of_difference: bool = False) -> Callable[[Elementwise], Elementwise]:
    """Gives an elementwise function its partial derivatives in closed form, one for each argument.

    With `of_difference` the result takes two arrays in place of the first argument, and the function and its
    partials see their difference: the gradient of the one is minus that of the other, computed once.

    The function and its partials see their arguments widened to the dtype of arithmetic; callers hand over
    the arrays as they came.
    """

    def seen(arguments: list[Any]) -> list[Any]:
        return [arguments[0] - arguments[1], *arguments[2:]] if of_difference else arguments

    def decorate(function: Elementwise) -> Elementwise:
        def call(*arguments: jax.Array) -> jax.Array:
            return function(*seen(widened(*arguments)))

        def rule(arguments: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[jax.Array, jax.Array]:
            value = primal(*arguments)
            inputs = seen(widened(*arguments))
            moved = [0 if isinstance(t, SymbolicZero) else t.astype(value.dtype) for t in tangents]
            terms = [
                partial(*inputs) * tangent
                for partial, tangent in zip(partials, seen(moved), strict=True)
                if not isinstance(tangent, int)
            ]
            return value, functools.reduce(jnp.add, terms)

        call.__name__, call.__doc__ = function.__name__, function.__doc__
        primal = jax.custom_jvp(call)
        primal.defjvp(rule, symbolic_zeros=True)
        return primal

    return decorate


def tangents_of(function: Callable[..., Any], primals: Sequence[Any], tangents: Sequence[Any]) -> Any:
    """Returns the tangents of a function's results, in a rule that sees symbolic zeros.

    Arguments that do not move are held, and so cost nothing.
    """
    moved = [i for i, tangent in enumerate(tangents) if not isinstance(tangent, SymbolicZero)]

    def of_moved(*moving: jax.Array) -> Any:
        return function(*(moving[moved.index(i)] if i in moved else held for i, held in enumerate(primals)))

    return jax.jvp(of_moved, [primals[i] for i in moved], [tangents[i] for i in moved])[1]


@derivatives(jnp.sign)
def absolute(number: jax.Array) -> jax.Array:
    """Returns |number|, of slope 0 at 0, where that of `jnp.abs` is 1."""
    return jnp.abs(number)


@derivatives(lambda factor, magnitude: magnitude, lambda factor, magnitude: factor)
def product(factor: jax.Array, magnitude: jax.Array) -> jax.Array:
    """Returns factor · magnitude for magnitude > -∞, with 0 · ∞ = 0: what has no weight adds nothing."""
    # The bound is 0 or ∞: without a select, which before a sum over classes costs XLA:CPU a temporary of full
    # size, and without a sign, which it computes one by one. It must not fold the number, nor write it out in
    # full size because the derivative holds it, too.
    large = lax.optimization_barrier(jnp.asarray(float(jnp.finfo(factor.dtype).max), factor.dtype))
    return jnp.minimum(magnitude, jnp.abs(factor) * large * large) * factor


def checked_signs(targets: jax.Array, where: jax.Array | None) -> jax.Array:
    """Returns the targets; what is neither 1, nor -1, nor masked is an error under checkify."""
    (wide,) = widened(targets)
    return checked(targets, hide(where, jnp.abs(wide) == 1, True), "targets: expected 1 or -1")


def sign_or_nan(targets: jax.Array) -> jax.Array:
    """Returns targets that are 1 or -1, and NaN in place of others."""
    return jnp.where(jnp.abs(targets) == 1, targets, jnp.nan)
