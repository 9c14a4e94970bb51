"""Distances and angles between vectors, with the right derivative where they vanish."""

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.custom_batching import custom_vmap
from jax.custom_derivatives import SymbolicZero
from jax.typing import ArrayLike

from jaxloss._core.arguments import (
    agree,
    arithmetic_dtype,
    canonical_axis,
    have_sizes,
    hide,
    of_one_dtype,
    widened,
)
from jaxloss._core.classes import COMPUTED, SIMPLE, ClassAxis, sum_of
from jaxloss._core.decorator import compiled, not_negative
from jaxloss._core.derivatives import absolute, tangents_of


@compiled(static=("p", "keepdim", "axis"), domains={"p": not_negative, "eps": not_negative})
def pairwise_distance(
    x1: ArrayLike,
    x2: ArrayLike,
    *,
    p: float = 2.0,
    eps: ArrayLike = 1e-6,
    keepdim: bool = False,
    axis: int = -1,
) -> jax.Array:
    """Measures how far apart the vectors of two arrays are, each from its partner.

    distance = ‖x1 - x2 + eps‖_p = (Σ |x1 - x2 + eps|^p)^(1/p) along `axis`: the largest magnitude for p = ∞,
    the number of components that are not 0 for p = 0. Where vectors or components are equal, as they can be
    with eps = 0, the gradient is 0, and so are the second derivatives where vectors are.

    Args:
        x1: Vectors of real numbers along one axis of an array of any shape.
        x2: Their partners, of the shape of `x1`.
        p: The order of the norm, a Python number >= 0, infinity included.
        eps: What is added to each component of the difference, a number >= 0. Traced: it can be scheduled,
            learned or swept without compiling again.
        keepdim: Whether the axis of the vectors stays, with size 1.
        axis: The axis of the vectors.

    Returns:
        The distances, of the shape of `x1` without its axis `axis`, or with size 1 there if `keepdim`. The
        dtype is float32, or float64 where `x1` or `x2` are; the unit is that of the vectors, or a count for
        p = 0. A negative `eps` that is an array gives NaN, and an error under `jax.experimental.checkify`.

    Raises:
        TypeError: An argument is not an array of real numbers, or an option that Python must know while
            tracing (`p`, `keepdim`, `axis`) is an array.
        ValueError: `x1` and `x2` differ in shape or have no such axis, or `p` or `eps` is a negative number.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxloss
        >>> x1, x2 = jnp.array([[0.0, 0.0], [1.0, 1.0]]), jnp.array([[3.0, 4.0], [1.0, 2.0]])
        >>> jaxloss.pairwise_distance(x1, x2, eps=0)
        Array([5., 1.], dtype=float32)

    Differences from PyTorch:
        * x1 and x2 never broadcast: map over one of them for all pairs, as in
          `jax.vmap(lambda x: jax.vmap(lambda y: pairwise_distance(x, y))(x2))(x1)`.
        * The vectors may lie along any axis.
        * With p other than 0, 1, 2 and ∞, powers neither overflow nor underflow.
        * bfloat16 and float16 inputs are computed in float32, and the distance stays float32.

    Source:
        PyTorch documentation: torch.nn.PairwiseDistance, torch.nn.functional.pairwise_distance.
    """
    x1, x2 = agree(x1=x1, x2=x2)
    axis = canonical_axis(axis, "x1", x1.shape)
    (found,) = distances((x1, x2), [(0, 1)], eps, p, axis)
    return jnp.expand_dims(found, axis) if keepdim else found


@compiled(static=("axis",), domains={"eps": not_negative})
def cosine_similarity(x1: ArrayLike, x2: ArrayLike, *, axis: int = -1, eps: ArrayLike = 1e-8) -> jax.Array:
    """Measures how alike in direction the vectors of two arrays are, each to its partner.

    similarity = x1 · x2 / (max(‖x1‖, eps) · max(‖x2‖, eps)) along `axis`: the cosine of the angle, 1 for the
    same direction, 0 at right angles, -1 for opposite directions, and 0 beside a vector that is 0, unless
    `eps` is 0, too. As in PyTorch derivatives pass the two bounds as if they were not there.

    Args:
        x1: Vectors of real numbers along one axis of an array of any shape.
        x2: Their partners, of the shape of `x1`.
        axis: The axis of the vectors.
        eps: The least length that a vector is divided by, a number >= 0 in the unit of the vectors. Traced:
            it can be scheduled or swept without compiling again.

    Returns:
        The similarities, in [-1, 1] but for rounding, of the shape of `x1` without its axis `axis`. The dtype
        is float32, or float64 where `x1` or `x2` are. A negative `eps` that is an array gives NaN, and an
        error under `jax.experimental.checkify`.

    Raises:
        TypeError: An argument is not an array of real numbers, or `axis` is an array.
        ValueError: `x1` and `x2` differ in shape or have no such axis, or `eps` is a negative Python number.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxloss
        >>> x1, x2 = jnp.array([[3.0, 0.0], [3.0, 4.0]]), jnp.array([[0.0, 2.0], [2.0, 0.0]])
        >>> jaxloss.cosine_similarity(x1, x2)
        Array([0. , 0.6], dtype=float32)

    Differences from PyTorch:
        * The vectors lie along the last axis; PyTorch's default is `axis=1`.
        * x1 and x2 never broadcast: map over one of them for all pairs, as in
          `jax.vmap(lambda x: jax.vmap(lambda y: cosine_similarity(x, y))(x2))(x1)`.
        * The squares of huge and tiny vectors neither overflow nor underflow.
        * bfloat16 and float16 inputs are computed in float32, and the similarity stays float32.

    Source:
        PyTorch documentation: torch.nn.CosineSimilarity, torch.nn.functional.cosine_similarity.
    """
    x1, x2 = of_one_dtype(*agree(x1=x1, x2=x2))
    least = jnp.asarray(eps, arithmetic_dtype(x1, x2))
    return clamped_cosine(x1, x2, least, canonical_axis(axis, "x1", x1.shape))


# PyTorch smooths with a float32 constant, in every dtype.
_SMOOTHING = float(np.float32(1e-12))


@jax.custom_jvp
def _root(square: jax.Array) -> jax.Array:
    """√square, of slope 0 at 0: a distance is differentiable but where it vanishes."""
    return jnp.sqrt(square)


@_root.defjvp
def _root_jvp(primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[jax.Array, jax.Array]:
    (square,), (tangent,) = primals, tangents
    vanishes = square == 0
    slope = jnp.where(vanishes, 0, 0.5 / jnp.sqrt(jnp.where(vanishes, 1, square)))
    return _root(square), slope * tangent


def distances(
    vectors: Sequence[jax.Array],
    pairs: Sequence[tuple[int, int]],
    eps: ArrayLike,
    p: float,
    axis: int,
    where: jax.Array | None = None,
) -> list[jax.Array]:
    """Returns the p-norms of x - y + eps along an axis for pairs of arrays, of 0 behind a mask of vectors.

    Its slope is 0 in a component that is 0, and where all are. The gradient of an array that is in several
    pairs is rounded to its dtype once.
    """
    shift = jnp.asarray(eps, arithmetic_dtype(*vectors)).reshape([1] * vectors[0].ndim)
    arrays = *vectors, _stretched(where, vectors[0].ndim, axis), shift

    def differences(*arrays: jax.Array) -> list[jax.Array]:
        *vectors, rows, shift = arrays
        vectors = _hidden(rows, *vectors)
        return [vectors[i] - vectors[j] + shift for i, j in pairs]

    def totals(terms: Callable[[jax.Array], jax.Array]) -> list[jax.Array]:
        return _sum(lambda *arrays: list(map(terms, differences(*arrays))), arrays, axis, where)

    if p == 0:
        return totals(lambda components: (components != 0).astype(components.dtype))
    if p == 1:
        return totals(absolute)
    if p == 2:
        return list(map(_root, totals(jnp.square)))
    largest = [jnp.max(absolute(difference), axis, initial=0) for difference in differences(*arrays)]
    if p == jnp.inf:
        return largest
    units = [_unit(magnitude) for magnitude in largest]

    def powers(*arrays: jax.Array) -> list[jax.Array]:
        found, units = differences(*arrays[: -len(pairs)]), arrays[-len(pairs) :]
        return [_power(absolute(d) / unit, p) for d, unit in zip(found, units, strict=True)]

    sums = _sum(powers, (*arrays, *(jnp.expand_dims(unit, axis) for unit in units)), axis, where)
    return [unit * _power(found, 1 / p) for unit, found in zip(units, sums, strict=True)]


def _unit(largest: jax.Array) -> jax.Array:
    """Returns a unit in which powers neither overflow nor all underflow, and that has a reciprocal."""
    smallest = float(jnp.finfo(largest.dtype).tiny)
    return lax.stop_gradient(jnp.clip(largest, smallest, 1 / smallest))


def _power(base: jax.Array, exponent: float) -> jax.Array:
    """Returns base ** exponent for base >= 0, with every derivative 0 at 0."""
    vanishes = base == 0
    return jnp.where(vanishes, 0, jnp.where(vanishes, 1, base) ** exponent)


def clamped_cosine(x: jax.Array, y: jax.Array, eps: jax.Array, axis: int) -> jax.Array:
    """Returns x·y / (max(‖x‖, eps) · max(‖y‖, eps)) along an axis; derivatives pass through the clamps."""
    x_scale, y_scale, x_square, y_square, inner = _products(x, y, eps, axis)
    return inner / (_clamped(_root(x_square), eps * x_scale) * _clamped(_root(y_square), eps * y_scale))


def _clamped(length: jax.Array, least: jax.Array) -> jax.Array:
    return length + lax.stop_gradient(jnp.maximum(length, least) - length)


@functools.partial(jax.custom_jvp, nondiff_argnums=(3,))
def _products(x: jax.Array, y: jax.Array, eps: jax.Array, axis: int) -> tuple[jax.Array, ...]:
    """Returns scales for x and y, of derivative 0, and x·x, y·y and x·y along an axis of what they scale.

    Then neither they nor products of lengths, at least eps, over- or underflow. On a CPU, where it takes
    longer to scale the vectors than to add them up, every scale is 1 if that is safe for all of them.
    """
    on_cpu, scaled = _products_scaled_if_needed(axis), functools.partial(_scaled_products, axis=axis)
    return lax.platform_dependent(x, y, eps, cpu=on_cpu, default=scaled)


@functools.partial(_products.defjvp, symbolic_zeros=True)
def _products_jvp(
    axis: int, primals: tuple[Any, ...], tangents: tuple[Any, ...]
) -> tuple[tuple[jax.Array, ...], tuple[jax.Array, ...]]:
    products = _products(*primals, axis)
    scales = products[:2]
    moved = tangents_of(lambda x, y: _products_by(scales, x, y, axis), primals[:2], tangents[:2])
    return products, (*map(jnp.zeros_like, scales), *moved)


def _products_by(scales: Sequence[jax.Array], x: jax.Array, y: jax.Array, axis: int) -> list[jax.Array]:
    x, y = (array * jnp.expand_dims(scale, axis) for array, scale in zip(widened(x, y), scales, strict=True))
    # Not in steps, for which what is scaled would be written out in full size.
    return [jnp.sum(product, axis) for product in (x * x, y * y, x * y)]


def _scaled_products(x: jax.Array, y: jax.Array, eps: jax.Array, axis: int) -> tuple[jax.Array, ...]:
    largest = [jnp.max(jnp.abs(vectors), axis, initial=0) for vectors in widened(x, y)]
    scales = [1 / _unit(jnp.maximum(magnitude, eps)) for magnitude in largest]
    x_square, y_square, _ = _products_by(scales, x, y, axis)
    # What two sums shared XLA:CPU would write out in full size. Each on its own: in `shard_map` what leaves a
    # barrier varies over all devices if anything does that enters it.
    scales, x, y = jax.tree.map(lax.optimization_barrier, (scales, x, y))
    *_, inner = _products_by(scales, x, y, axis)
    return *scales, x_square, y_square, inner


_LEAST = 2**12  # numbers: a choice between formulas takes longer than fewer of them


def _products_scaled_if_needed(axis: int) -> Callable[..., tuple[jax.Array, ...]]:
    def scaled(x: jax.Array, y: jax.Array, eps: jax.Array) -> tuple[jax.Array, ...]:
        return _scaled_products(x, y, eps, axis)

    @custom_vmap
    def products(x: jax.Array, y: jax.Array, eps: jax.Array) -> tuple[jax.Array, ...]:
        # Devices would have to agree on the choice.
        if not have_sizes(x) or x.size < _LEAST or jax.device_count() > 1:
            return scaled(x, y, eps)
        inner, x_square, y_square = _inner_products(x, y, axis)
        # Also the square of a product of lengths has a reciprocal.
        least = math.sqrt(jnp.finfo(eps.dtype).tiny)
        clamped = jnp.maximum(jnp.stack([x_square, y_square]), eps * eps)
        is_safe = (clamped >= least) & (clamped <= 1 / least)
        one = jnp.ones_like(inner)
        return lax.cond(jnp.all(is_safe), lambda *_: (one, one, x_square, y_square, inner), scaled, x, y, eps)

    @products.def_vmap
    def rule(
        _: int, batched: list[bool], *arguments: jax.Array
    ) -> tuple[tuple[jax.Array, ...], tuple[bool, ...]]:
        # One choice for a batch of pairs. Where a vector has many partners the choice would not be worth it.
        if batched == [True, True, False]:
            results = _products_scaled_if_needed(axis + 1)(*arguments)
        else:
            results = jax.vmap(scaled, [0 if is_batched else None for is_batched in batched])(*arguments)
        return results, (True,) * len(results)

    return products


def smoothed_cosine(x: jax.Array, y: jax.Array, where: jax.Array | None) -> jax.Array:
    """Returns x·y / √((‖x‖² + 1e-12) · (‖y‖² + 1e-12)) along the last axis, of 0 behind a mask of vectors.

    The two roots are kept apart, and in the derivative, too: the product of the squares would overflow early.
    """
    return _cosine_and_lengths(x, y, where)[0]


@jax.custom_jvp
def _cosine_and_lengths(x: jax.Array, y: jax.Array, where: jax.Array | None) -> tuple[jax.Array, ...]:
    """Returns the cosine, and the two lengths that it is divided by."""
    inner, *squares = _inner_products(x, y, -1, where)
    # A square that overflows is NaN, and not length 0.
    lengths = [jnp.sqrt(square + _SMOOTHING) + 0 * square for square in squares]
    return inner / (lengths[0] * lengths[1]), *lengths


@functools.partial(_cosine_and_lengths.defjvp, symbolic_zeros=True)
def _cosine_and_lengths_jvp(
    primals: tuple[Any, ...], tangents: tuple[Any, ...]
) -> tuple[tuple[jax.Array, ...], tuple[jax.Array, ...]]:
    x, y, where = primals
    found = cosine, *lengths = _cosine_and_lengths(*primals)
    directions = [
        vector * jnp.expand_dims(1 / length, -1)
        for vector, length in zip(_hidden(_stretched(where, x.ndim, -1), x, y), lengths, strict=True)
    ]
    turned, growths = jnp.zeros_like(cosine), [jnp.zeros_like(cosine)] * 2
    for i, tangent in enumerate(tangents[:2]):
        if not isinstance(tangent, SymbolicZero):
            # A vector that grows gets longer; one that grows across itself, towards the other, turns there.
            tangent = tangent.astype(cosine.dtype)
            across = directions[1 - i] - jnp.expand_dims(cosine, -1) * directions[i]
            turned += jnp.sum(across * tangent, -1) / lengths[i]
            growths[i] = jnp.sum(directions[i] * tangent, -1)
    return found, (turned, *growths)


def _inner_products(x: jax.Array, y: jax.Array, axis: int, where: jax.Array | None = None) -> list[jax.Array]:
    """Returns x·y, x·x and y·y along an axis, of x and y that are 0 behind a mask of the vectors."""
    rows = _stretched(where, x.ndim, axis)

    def terms(x: jax.Array, y: jax.Array, rows: jax.Array) -> list[jax.Array]:
        x, y = _hidden(rows, x, y)
        return [x * y, x * x, y * y]

    if x.itemsize >= 4:
        return _sum(terms, (x, y, rows), axis, where)

    def one(i: int, x: jax.Array, y: jax.Array) -> jax.Array:
        return _sum(lambda *arrays: terms(*arrays)[i], (x, y, rows), axis, where)

    # What two sums shared XLA:CPU would widen in full size.
    return [one(0, lax.optimization_barrier(x), lax.optimization_barrier(y)), one(1, x, y), one(2, x, y)]


def _stretched(where: jax.Array | None, ndim: int, axis: int) -> jax.Array:
    """Returns a mask of vectors, or one that hides nothing, which stretches along their axis."""
    return jnp.ones([1] * ndim, bool) if where is None else jnp.expand_dims(where, axis)


def _hidden(rows: jax.Array, *vectors: jax.Array) -> list[jax.Array]:
    return [hide(rows, array) for array in widened(*vectors)]


def _sum(terms: Callable[..., Any], arrays: tuple[jax.Array, ...], axis: int, where: jax.Array | None) -> Any:
    """Returns the sum along an axis of elementwise terms, which may hide and widen without writing it out."""
    # What is hidden would be written out; for products alone the library for sums is as fast as a loop.
    loop = COMPUTED if where is None else SIMPLE
    return sum_of(terms, arrays, ClassAxis(axis % arrays[0].ndim, None), loop)
