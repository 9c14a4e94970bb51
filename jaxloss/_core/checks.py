"""Checks on values, which compiled code cannot raise: free in plain code, named errors under checkify.

`checkify.debug_check` says the same, but its effect takes every jitted call that contains it off JAX's
fast dispatch path (5 µs become 60). The primitive here has no effect: it is the identity when compiled, so
XLA drops the condition as dead code, and only the checkify interpreter reads it.
"""

from collections.abc import Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

# checkify's table of rules has no public name; nothing else of JAX's inside is touched in this package.
from jax._src.checkify import error_checks
from jax.experimental import checkify
from jax.extend.core import Primitive
from jax.interpreters import ad, batching, mlir


def checked(values: jax.Array, valid: jax.Array, expected: str) -> jax.Array:
    """Returns `values`; under `checkify` a False in `valid` is an error that shows what was expected.

    The check lives only as long as what is returned is used, so use that and not the argument.

    Args:
        values: Any array.
        valid: Boolean, of the shape of `values`.
        expected: The argument's name and its domain, such as "targets: expected class indices in [0, 10)".

    Returns:
        `values`, unchanged and of unchanged derivative.
    """
    return cast(jax.Array, _checked_p.bind(values, valid, expected=expected))


def one_or_nan(valid: jax.Array, dtype: Any) -> jax.Array:
    """Returns 1 where `valid`, else NaN: a factor that turns value and gradient of invalid input into NaN.

    Made of bits, since `jax.debug_nans` would report a NaN constant even where it is not selected.
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
    # What stands before the operands differs between JAX's versions; it is handed on to the rule of `jit`.
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
