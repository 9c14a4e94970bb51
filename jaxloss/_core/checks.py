"""Checks on values inside compiled code: errors under checkify, no cost otherwise.

`checkify.debug_check` does the same, but its effect takes every jitted call that contains it off JAX's
fast dispatch path (60 µs instead of 5). The primitive here has no effect: it is the identity when compiled,
so XLA removes the condition as dead code, and only the checkify interpreter reads it.
"""

from collections.abc import Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

# checkify's table of rules has no public name. This package uses no other JAX internals.
from jax._src.checkify import error_checks
from jax.experimental import checkify
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir


def checked(values: jax.Array, valid: jax.Array, expected: str) -> jax.Array:
    """Returns `values`; under `checkify` a False in `valid` is an error with the text `expected`.

    Use the returned array instead of the argument: if it is not used, the check is dead code.

    Args:
        values: Any array.
        valid: Boolean, of the shape of `values`.
        expected: The argument's name and its domain, such as "targets: expected class indices in [0, 10)".

    Returns:
        `values`, with the same derivative.
    """
    return cast(jax.Array, _checked_p.bind(values, valid, expected=expected))


def one_or_nan(valid: jax.Array, dtype: Any) -> jax.Array:
    """Returns 1 where `valid`, else NaN: a factor that turns value and gradient of invalid input into NaN.

    Built from bits, since `jax.debug_nans` would report a NaN constant even where it is not selected.
    """
    dtype = jnp.dtype(dtype)
    one, nan = (np.asarray(number, dtype).view(f"int{8 * dtype.itemsize}") for number in (1, np.nan))
    return lax.bitcast_convert_type(jnp.where(valid, one, nan), dtype)


_checked_p = Primitive("jaxloss_checked")


def _values(values: Any, valid: Any, *, expected: str) -> Any:
    return values


def _derivative(primals: Sequence[Any], tangents: Sequence[Any], *, expected: str) -> tuple[Any, Any]:
    return _checked_p.bind(*primals, expected=expected), tangents[0]


def _batched(args: Sequence[Any], dims: Sequence[Any], *, expected: str) -> tuple[Any, int]:
    size = next(arg.shape[dim] for arg, dim in zip(args, dims, strict=True) if dim is not None)
    values, valid = (batching.bdim_at_front(arg, dim, size) for arg, dim in zip(args, dims, strict=True))
    return _checked_p.bind(values, valid, expected=expected), 0


def _checkified(*args: Any, expected: str) -> tuple[Any, Any]:
    # The arguments before the operands differ between JAX versions; they are passed on to the rule of `jit`.
    *context, values, valid = args

    def check(values: jax.Array, valid: jax.Array) -> jax.Array:
        if values.size:
            first = jnp.argmin(valid.ravel())
            checkify.check(jnp.all(valid), expected + ", got {got}", got=values.ravel()[first])
        return values

    (call,) = jax.make_jaxpr(jax.jit(check))(values, valid).eqns
    error, (values,) = error_checks[call.primitive](*context, values, valid, **call.params)
    return error, values


_checked_p.def_impl(_values)
_checked_p.def_abstract_eval(_values)
ad.primitive_jvps[_checked_p] = _derivative
batching.primitive_batchers[_checked_p] = _batched
mlir.register_lowering(_checked_p, lambda context, values, valid, *, expected: [values])
error_checks[_checked_p] = _checkified
