"""The decorator that makes a public loss: jitted, and still a plain, typed, picklable function."""

import functools
import inspect
import reprlib
from collections.abc import Callable, Collection, Mapping
from typing import Any, NamedTuple, ParamSpec, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from jaxloss._core.checks import checked

P = ParamSpec("P")
R = TypeVar("R")
_NUMBER = (float, int, np.number)
_ON_HOST = (np.ndarray, np.generic)
# To look for a type among these at each call costs less than isinstance.
_MAY_BE_LONG = {np.ndarray, np.memmap, np.int64, np.uint64}
_ARRAY = (jax.Array, *_ON_HOST, bool, int, float, complex)


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
    *, static: Collection[str], domains: Mapping[str, Domain] | None = None, indices: Collection[str] = ()
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Compiles a function, and keeps it a plain function for everyone who looks at it.

    A bare `jax.jit` neither pickles nor shows its parameters to editors and type checkers, and it reports a
    misspelt keyword as an array that it cannot interpret.

    Args:
        static: Names of the arguments that Python has to look at while tracing.
        domains: What the number options among the keyword arguments may be. A Python number outside its
            domain is a ValueError, under an outer `jit`, too; an array outside it becomes NaN, and an error
            under `checkify`.
        indices: Names of the arguments whose integers are classes or lengths. All others are values.

    Returns:
        A decorator that keeps name, signature, types and docstring of the function that it is given.
    """
    limits = dict(domains or {})

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        name, parameters = function.__name__, inspect.signature(function).parameters
        # By name and by place.
        are_indices = {*indices, *(place for place, option in enumerate(parameters) if option in indices)}

        @functools.wraps(function)
        def traced(*args: P.args, **kwargs: P.kwargs) -> R:
            for option, domain in limits.items():
                if kwargs.get(option) is not None:
                    number: Any = kwargs[option]
                    kwargs[option] = float(number) if option in static else _within(domain, number, option)
            return function(*args, **kwargs)

        jitted: Callable[..., R] = jax.jit(traced, static_argnames=tuple(static))

        @functools.wraps(function)
        def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
            given: tuple[Any, ...] = args
            if not _MAY_BE_LONG.isdisjoint(map(type, args)):
                given = tuple(_narrowed(value, place in are_indices) for place, value in enumerate(args))
            for option, value in kwargs.items():
                if type(value) in _MAY_BE_LONG and option not in static:
                    kwargs[option] = _narrowed(value, option in are_indices)
                if option in limits and value is not parameters[option].default:
                    _refuse_outside(limits[option], value, name, option)
            try:
                return jitted(*given, **kwargs)
            except (TypeError, ValueError):
                _refuse_misfit(function, static, args, kwargs)
                raise

        return wrapper

    return decorate


def _narrowed(array: Any, is_index: bool) -> Any:
    """Returns integers that JAX would take modulo 2**32: indices bounded, values as floats."""
    if type(array) not in _MAY_BE_LONG or array.dtype.kind not in "iu" or array.itemsize < 8:
        return array
    dtype = jax.dtypes.canonicalize_dtype(array.dtype)
    narrow = array.astype(dtype)
    if (narrow == array).all():
        return narrow
    limits = np.iinfo(dtype)
    return np.clip(array, limits.min, limits.max).astype(dtype) if is_index else array.astype(np.float32)


def _within(domain: Domain, value: Any, option: str) -> jax.Array:
    """Returns a traced number; NaN, and of slope NaN, where it lies outside its domain."""
    number = jnp.asarray(value)
    is_real = number.dtype == bool or jnp.issubdtype(number.dtype, jnp.number)
    if number.ndim or jnp.iscomplexobj(number) or not is_real:
        raise ValueError(f"{option} must be {domain.description}, got {jax.typeof(number)}")
    if not jnp.issubdtype(number.dtype, jnp.floating):
        number = number.astype(float)
    number = checked(number, domain.contains(number), f"{option}: expected {domain.description}")
    return number * jnp.where(domain.contains(number), 1.0, jnp.nan)


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
    for option, value in bound.arguments.items():
        if option in static:
            try:
                hash(value)
            except TypeError:
                raise TypeError(
                    f"{function.__name__}: {option} must be known while tracing, a hashable Python value and "
                    f"not {type(value).__name__}; bind it with functools.partial"
                ) from None
            continue
        for leaf in jax.tree.leaves(value):
            is_text_or_time = isinstance(leaf, _ON_HOST) and leaf.dtype.kind in "SUOMm"
            if not isinstance(leaf, _ARRAY) or is_text_or_time:
                raise TypeError(
                    f"{function.__name__}: {option} must be an array of numbers, got {reprlib.repr(leaf)}"
                ) from None
