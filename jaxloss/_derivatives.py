"""Elementwise building blocks with the right value and derivative at kinks, zeros and infinities.

Where losses are not summed in blocks (see `_elementwise`), XLA:CPU swallows the arithmetic before a sum only
if it is free of selects and comparisons; `where` and `clip` cost a temporary array of full size. So what such
losses use is written in min, max and abs, and the derivatives, which are not summed, in whatever reads best.
"""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero

from jaxloss._arguments import hide, widened
from jaxloss._checks import checked

Elementwise = Callable[..., jax.Array]


def derivatives(*partials: Elementwise, of_difference: bool = False) -> Callable[[Elementwise], Elementwise]:
    """Gives an elementwise function its partial derivatives in closed form, one for each argument.

    With `of_difference` the result takes two arrays in place of the first argument, and the function and its
    partials see their difference: the gradient of the one is minus that of the other, computed once.

    The function and its partials see their arguments widened to the dtype of arithmetic; callers hand over
    the arrays as they came. The partials read them through a barrier, before they are widened: without it
    XLA:CPU shares sub-expressions between the value's loop and the gradient's, and writes them out as
    temporaries of full size.
    """

    def seen(arguments: list[Any]) -> list[Any]:
        return [arguments[0] - arguments[1], *arguments[2:]] if of_difference else arguments

    def decorate(function: Elementwise) -> Elementwise:
        def call(*arguments: jax.Array) -> jax.Array:
            return function(*seen(widened(*arguments)))

        def rule(arguments: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[jax.Array, jax.Array]:
            value = primal(*arguments)
            behind = seen(widened(*(lax.optimization_barrier(argument) for argument in arguments)))
            moved = [0 if isinstance(t, SymbolicZero) else t.astype(value.dtype) for t in tangents]
            terms = [
                partial(*behind) * tangent
                for partial, tangent in zip(partials, seen(moved), strict=True)
                if not isinstance(tangent, int)
            ]
            return value, functools.reduce(jnp.add, terms)

        call.__name__, call.__doc__ = function.__name__, function.__doc__
        primal = jax.custom_jvp(call)
        primal.defjvp(rule, symbolic_zeros=True)
        return primal

    return decorate


def constant(number: float, like: jax.Array) -> jax.Array:
    """Returns a number that a function and its partial derivatives do not share.

    To share a number between two loops, XLA:CPU writes it out in full size.
    """
    return lax.optimization_barrier(jnp.asarray(number, like.dtype))


@derivatives(lambda factor, magnitude: magnitude, lambda factor, magnitude: factor)
def product(factor: jax.Array, magnitude: jax.Array) -> jax.Array:
    """Returns factor · magnitude for magnitude > -∞, with 0 · ∞ = 0: what has no weight adds nothing."""
    # The bound is 0 or ∞. A sign would show which, but XLA:CPU computes that of a result one by one.
    large = constant(float(jnp.finfo(factor.dtype).max), factor)
    return jnp.minimum(magnitude, jnp.abs(factor) * large * large) * factor


def checked_signs(targets: jax.Array, where: jax.Array | None) -> jax.Array:
    """Returns the targets; what is neither 1, nor -1, nor masked is an error under checkify."""
    (wide,) = widened(targets)
    return checked(targets, hide(where, jnp.abs(wide) == 1, True), "targets: expected 1 or -1")


def sign_or_nan(targets: jax.Array) -> jax.Array:
    """Returns targets that are 1 or -1, and NaN in place of others."""
    return jnp.where(jnp.abs(targets) == 1, targets, jnp.nan)
