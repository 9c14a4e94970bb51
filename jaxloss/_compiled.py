"""The decorator that makes a public loss: jitted, and still a plain, typed, picklable function."""

import functools
import inspect
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple, ParamSpec, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from jaxloss._checks import checked

P = ParamSpec("P")
R = TypeVar("R")
_NUMBER = (float, int, np.number)


class Domain(NamedTuple):
    """The numbers that an option may be: their description and a test that works on arrays, too."""

    description: str
    contains: Callable[[Any], Any]


positive = Domain("a number > 0", lambda number: number > 0)
not_negative = Domain("a number >= 0", lambda number: number >= 0)
fraction = Domain("a number in [0, 1]", lambda number: (number >= 0) & (number <= 1))
positive_and_finite = Domain("a finite number > 0", lambda number: (number > 0) & (number < float("inf")))
finite = Domain("a finite number", lambda number: abs(number) < float("inf"))


def compiled(
    *, static: Collection[str], domains: Mapping[str, Domain] | None = None
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Compiles a function, and keeps it a plain function for everyone who looks at it.

    A bare `jax.jit` neither pickles nor shows its parameters to editors and type checkers, and it reports a
    misspelt keyword as an array that it cannot interpret.

    Args:
        static: Names of the arguments that Python has to look at while tracing.
        domains: What the number options among the keyword arguments may be. A Python number outside its
            domain is a ValueError, under an outer `jit`, too; an array outside it becomes NaN, and an error
            under `checkify`.

    Returns:
        A decorator that keeps name, signature, types and docstring of the function that it is given.
    """
    limits = dict(domains or {})

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        name, parameters = function.__name__, inspect.signature(function).parameters

        @functools.wraps(function)
        def traced(*args: P.args, **kwargs: P.kwargs) -> R:
            for option, domain in limits.items():
                if kwargs.get(option) is not None and option not in static:
                    kwargs[option] = _within(domain, kwargs[option], option)
            return function(*args, **kwargs)

        jitted: Callable[P, R] = jax.jit(traced, static_argnames=tuple(static))

        @functools.wraps(function)
        def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
            for option, number in kwargs.items():
                if option in limits and number is not parameters[option].default:
                    _refuse_outside(limits[option], number, name, option)
            try:
                return jitted(*args, **kwargs)
            except (TypeError, ValueError):
                _refuse_misfit(function, static, args, kwargs)
                raise

        return wrapper

    return decorate


def _within(domain: Domain, value: Any, option: str) -> jax.Array:
    """Returns a traced number, NaN where it lies outside its domain."""
    number = jnp.asarray(value)
    if number.ndim or jnp.iscomplexobj(number):
        raise ValueError(f"{option} must be {domain.description}, got {jax.typeof(number)}")
    if not jnp.issubdtype(number.dtype, jnp.floating):
        number = number.astype(float)
    number = checked(number, domain.contains(number), f"{option}: expected {domain.description}")
    return jnp.where(domain.contains(number), number, jnp.nan)


def _refuse_outside(domain: Domain, number: Any, name: str, option: str) -> None:
    if isinstance(number, _NUMBER):
        if not domain.contains(number):
            raise ValueError(f"{name}: {option} must be {domain.description}, got {number}")
    elif not isinstance(number, jax.Array | np.ndarray):
        raise TypeError(f"{name}: {option} must be {domain.description}, got {number!r}")


def _refuse_misfit(
    function: Callable[..., Any], static: Collection[str], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    """Raises what says more than JAX does, where the call does not fit the function."""
    try:
        bound = inspect.signature(function).bind(*args, **kwargs)
    except TypeError:
        function(*args, **kwargs)  # cannot be called, so Python raises its own message here
        raise
    for option in static:
        value = bound.arguments.get(option)
        if isinstance(value, jax.Array | np.ndarray | list):
            raise TypeError(
                f"{function.__name__}: {option} must be known while tracing, a hashable Python value and not "
                f"{type(value).__name__}; bind it with functools.partial"
            ) from None
