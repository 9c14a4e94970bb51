"""The decorator that makes a public loss: jitted, and still a plain, typed, picklable function."""

import functools
import inspect
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple, ParamSpec, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from jaxloss._core.arguments import as_array, from_host, tree_from_host
from jaxloss._core.checks import checked, one_or_nan

P = ParamSpec("P")
R = TypeVar("R")
_NUMBER = (float, int, np.number)
# Types that `jit` reads unchanged. Array types are added at their first use, since creating an array here
# would start a backend. A set lookup costs less per call than isinstance.
_READY: set[type] = {bool, int, float, str, type(None)}


class Domain(NamedTuple):
    """The valid values of a numeric option: a description, and a predicate for numbers and arrays."""

    description: str
    contains: Callable[[Any], Any]
    has_arrays: bool = False  # whether an array of such numbers is valid, too


positive = Domain("a number > 0", lambda number: number > 0)
not_negative = Domain("a number >= 0", lambda number: number >= 0)
fraction = Domain("a number in [0, 1]", lambda number: (number >= 0) & (number <= 1))
positive_and_finite = Domain("a finite number > 0", lambda number: (number > 0) & (number < float("inf")))
finite = Domain("a finite number", lambda number: abs(number) < float("inf"))
fractions = Domain("numbers in [0, 1]", fraction.contains, has_arrays=True)


def compiled(
    *,
    static: Collection[str],
    domains: Mapping[str, Domain] | None = None,
    sequences: Collection[str] = (),
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Compiles a loss but keeps it a plain function with its name, signature, types and docstring.

    The result of a bare `jax.jit` cannot be pickled, hides its parameters from editors and type checkers, and
    reports a misspelt keyword as an array that it cannot interpret.

    Args:
        static: Names of the static arguments.
        domains: Domains of numeric options. A concrete number outside its domain raises a ValueError; a
            traced one becomes NaN, or an error under `checkify`.
        sequences: Names of the arguments that may be lists or tuples of integers.
    """
    limits = dict(domains or {})

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        name, parameters = function.__name__, inspect.signature(function).parameters
        names = list(parameters)
        may_be_none = {option for option in limits if "None" in str(parameters[option].annotation)}

        @functools.wraps(function)
        def traced(*args: P.args, **kwargs: P.kwargs) -> R:
            for option, domain in limits.items():
                if kwargs.get(option) is not None:
                    number: Any = kwargs[option]
                    kwargs[option] = float(number) if option in static else _within(domain, number, option)
            return function(*args, **kwargs)

        jitted: Callable[..., R] = jax.jit(traced, static_argnames=tuple(static))

        def ready(option: str, value: Any) -> Any:
            return value if option in static else _ready(option, value, option in sequences)

        @functools.wraps(function)
        def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
            given: tuple[Any, ...] = args
            if not _READY.issuperset(map(type, args)):
                given = tuple(map(ready, names, args)) if len(args) <= len(names) else args
            for option, value in kwargs.items():
                if type(value) not in _READY:
                    kwargs[option] = value = ready(option, value)
                if option in limits and not (value is None and option in may_be_none):
                    _refuse_outside(limits[option], value, name, option)
            try:
                return jitted(*given, **kwargs)
            except (TypeError, ValueError):
                _refuse_misfit(function, static, given, kwargs)
                raise

        return wrapper

    return decorate


def _ready(option: str, value: Any, may_be_sequence: bool) -> Any:
    """Converts an argument so that `jit` reads it without changing its values."""
    if isinstance(value, jax.Array):
        _READY.add(type(value))
        return value
    if may_be_sequence and isinstance(value, list | tuple):
        is_concrete = value and all(isinstance(number, int | np.integer) for number in value)
        return from_host(option, np.asarray(value)) if is_concrete else jnp.asarray(value)
    return tree_from_host(option, value) if isinstance(value, dict) else from_host(option, value)


def _within(domain: Domain, value: Any, option: str) -> jax.Array:
    """Returns a traced number or array, with NaN as value and slope outside the domain."""
    number = jnp.asarray(value)
    is_real = number.dtype == bool or jnp.issubdtype(number.dtype, jnp.number)
    if (number.ndim and not domain.has_arrays) or jnp.iscomplexobj(number) or not is_real:
        raise ValueError(f"{option} must be {domain.description}, got {jax.typeof(number)}")
    if not jnp.issubdtype(number.dtype, jnp.floating):
        number = number.astype(float)
    valid = domain.contains(number)
    return checked(number, valid, f"{option}: expected {domain.description}") * one_or_nan(
        valid, number.dtype
    )


def _refuse_outside(domain: Domain, number: Any, name: str, option: str) -> None:
    if isinstance(number, _NUMBER):
        if not domain.contains(number):
            raise ValueError(f"{name}: {option} must be {domain.description}, got {number}")
    elif not isinstance(number, jax.Array | np.ndarray):
        raise TypeError(f"{name}: {option} must be {domain.description}, got {number!r}")


def _refuse_misfit(
    function: Callable[..., Any], static: Collection[str], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> None:
    """Raises a clearer error than JAX's if the arguments do not match the signature."""
    try:
        bound = inspect.signature(function).bind(*args, **kwargs)
    except TypeError:
        function(*args, **kwargs)  # the call is invalid, so Python raises its own error here
        raise
    for option, value in bound.arguments.items():
        if option in static:
            try:
                hash(value)
            except TypeError:
                found, remedy = type(value).__name__, "bind it with functools.partial"
                if isinstance(value, Tracer):
                    found, remedy = "a traced value", f"pass a Python number ({remedy} outside of jit)"
                raise TypeError(
                    f"{function.__name__}: {option} is static and must be a hashable Python value, "
                    f"got {found}; {remedy}"
                ) from None
        else:
            for path, leaf in jax.tree.leaves_with_path(value):
                if not isinstance(leaf, jax.Array):
                    as_array(option + jax.tree_util.keystr(path), leaf)
