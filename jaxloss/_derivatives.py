"""Elementwise building blocks with the right value and derivative at kinks, zeros and infinities.

On XLA:CPU a sum swallows the arithmetic before it only where it is free of selects and comparisons; `where`
and `clip` cost a temporary array of full size. So the functions here are written in min, max, sign and abs,
and their derivatives, which are not summed, in whatever reads best.
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


def derivatives(*partials: Elementwise) -> Callable[[Elementwise], Elementwise]:
    """Gives an elementwise function its partial derivatives in closed form, one for each argument.

    The function and its partials see their arguments widened to the dtype of arithmetic; callers hand over
    the arrays as they came. The partials read them through a barrier, before they are widened: without it
    XLA:CPU shares sub-expressions between the value's loop and the gradient's, and writes them out as
    temporaries of full size.
    """

    def decorate(function: Elementwise) -> Elementwise:
        @jax.custom_jvp
        @functools.wraps(function)
        def primal(*arguments: jax.Array) -> jax.Array:
            return function(*widened(*arguments))

        def rule(arguments: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[jax.Array, jax.Array]:
            value = primal(*arguments)
            behind = widened(*(lax.optimization_barrier(argument) for argument in arguments))
            terms = [
                partial(*behind) * tangent.astype(value.dtype)
                for partial, tangent in zip(partials, tangents, strict=True)
                if not isinstance(tangent, SymbolicZero)
            ]
            return value, functools.reduce(jnp.add, terms)

        primal.defjvp(rule, symbolic_zeros=True)
        return primal

    return decorate


def constant(number: float, like: jax.Array) -> jax.Array:
    """Returns a number for use in a partial derivative whose function holds the same one.

    XLA:CPU would share the two, and to share a number between two loops writes it out in full size.
    """
    return lax.optimization_barrier(jnp.asarray(number, like.dtype))


@derivatives(lambda factor, magnitude: magnitude, lambda factor, magnitude: factor)
def product(factor: jax.Array, magnitude: jax.Array) -> jax.Array:
    """Returns factor · magnitude for magnitude > -∞, with 0 · ∞ = 0: what has no weight adds nothing."""
    # The bound is 0 or ∞. A sign would show which, but XLA:CPU computes that of a result one by one.
    large = constant(float(jnp.finfo(factor.dtype).max), factor)
    return jnp.minimum(magnitude, jnp.abs(factor) * large * large) * factor


def checked_signs(targets: jax.Array, where: jax.Array | None) -> jax.Array:
    """Returns targets that are 1 or -1, and 1 behind the mask; others are an error under checkify."""
    targets = hide(where, targets, 1)
    (wide,) = widened(targets)
    return checked(targets, jnp.abs(wide) == 1, "targets: expected 1 or -1")


def sign_or_nan(targets: jax.Array) -> jax.Array:
    """Returns floating targets that are 1 or -1, and NaN for others: without a select, by a square root."""
    return targets + jnp.sqrt(-jnp.abs(jnp.abs(targets) - 1))
