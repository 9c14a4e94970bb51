"""The adaptive softmax, an output layer for large vocabularies that uses fewer features for rare classes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, pairwise
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxloss._core.arguments import as_array, broadcastable, values
from jaxloss._core.blocks import Layer
from jaxloss._core.classes import ClassAxis, labels_without_weight
from jaxloss._core.decorator import compiled
from jaxloss._core.projection import statistics
from jaxloss._core.reduction import Reduction, reduce_losses


@compiled(static=("cutoffs", "reduction"))
def adaptive_log_softmax(
    hidden: ArrayLike,
    params: Mapping[str, Any],
    targets: ArrayLike,
    *,
    cutoffs: tuple[int, ...],
    where: ArrayLike | None = None,
    reduction: Reduction = "mean",
) -> jax.Array:
    """Cross-entropy under an adaptive softmax, for many classes of unequal frequency.

    Classes are sorted by decreasing frequency. The head scores the most frequent classes, and each tail as a
    whole. Tail i scores the classes from cutoffs[i] up to the next cutoff, from fewer features.

        loss = -log softmax(hidden · kernel + bias)[y]                  for y < cutoffs[0]
        loss = -log softmax(hidden · kernel + bias)[cutoffs[0] + i]
               - log softmax(hidden · down_i · up_i)[y - cutoffs[i]]    for y in tail i

    Args:
        hidden: Input of the last layer, shape (..., H).
        params: Parameters as from `init_adaptive_log_softmax`.
        targets: Integer class labels, of the shape of `hidden` without its last axis.
        cutoffs: First class of each tail, a static tuple of increasing integers >= 1.
        where: Mask, broadcast to the shape of `targets`; see `help(jaxloss)`.
        reduction: "mean" (divides by the number of positions), "sum", "none" or "sum_and_weight".

    Returns:
        A scalar, or an array of the shape of `targets` for "none"; in nats.

    Example:
        >>> import jax, jaxloss
        >>> import jax.numpy as jnp
        >>> cutoffs = (20, 200)
        >>> params = jaxloss.init_adaptive_log_softmax(jax.random.key(0), 64, 1000, cutoffs)
        >>> hidden = jnp.zeros((2, 64))  # all scores are equal: ln 22 in the head, ln 800 in the last tail
        >>> labels = jnp.array([3, 999])
        >>> jaxloss.adaptive_log_softmax(hidden, params, labels, cutoffs=cutoffs)
        Array(6.4333, dtype=float32)

    Differences from PyTorch:
        * A function of its parameters; the module is `jaxloss.models.AdaptiveLogSoftmax`. Kernels have
          shape (in, out), the transpose of PyTorch's; PyTorch's `output` is minus the loss of "none".
        * Every tail is evaluated at every position, since compiled shapes are fixed.

    Source:
        E. Grave et al. (2017), Efficient softmax approximation for GPUs. PyTorch documentation:
        torch.nn.AdaptiveLogSoftmaxWithLoss.
    """
    hidden, layers = _layers(hidden, params, cutoffs)
    features = ClassAxis(hidden.ndim - 1, None)
    where = features.mask(where, hidden)
    hidden = features.fill_masked(where, hidden)
    targets, count = as_array("targets", targets), layers.edges[-1]
    labels, _, weight = labels_without_weight(targets, "hidden", hidden, features, count, None, where)
    losses, entry = jnp.zeros_like(weight), labels
    for index, (first, end) in enumerate(pairwise(layers.edges)):
        inside = (labels >= first) & (labels < end)
        entry = jnp.where(inside, layers.edges[0] + index, entry)
        down, up = layers.tail[index]
        narrowed = features.fill_masked(inside, jnp.dot(hidden, down))
        nll = _nll(narrowed, up, None, jnp.where(inside, labels - first, 0))
        losses = losses + jnp.where(inside, nll, 0)
    losses = losses + _nll(hidden, layers.kernel, layers.bias, entry)
    return reduce_losses(weight * losses, None, where, reduction)


@compiled(static=("cutoffs",))
def adaptive_log_probs(
    hidden: ArrayLike, params: Mapping[str, Any], *, cutoffs: tuple[int, ...]
) -> jax.Array:
    """Log-probabilities of all classes under an adaptive softmax.

    `nll_loss` of them equals `adaptive_log_softmax`, which does not materialize them.

    Args:
        hidden: Input of the last layer, shape (..., H).
        params: Parameters as from `init_adaptive_log_softmax`.
        cutoffs: First class of each tail, a static tuple of increasing integers >= 1.

    Returns:
        Log-probabilities in nats, shape (..., number of classes).

    Example:
        >>> import jax, jaxloss
        >>> import jax.numpy as jnp
        >>> params = jaxloss.init_adaptive_log_softmax(jax.random.key(0), 8, 5, cutoffs=(2,))
        >>> jnp.exp(jaxloss.adaptive_log_probs(jnp.zeros(8), params, cutoffs=(2,)))
        Array([0.3333, 0.3333, 0.1111, 0.1111, 0.1111], dtype=float32)

    Differences from PyTorch:
        * The module's method `log_prob` is a function of the parameters, for any number of leading axes.

    Source:
        E. Grave et al. (2017), Efficient softmax approximation for GPUs. PyTorch documentation:
        torch.nn.AdaptiveLogSoftmaxWithLoss.
    """
    return jnp.concatenate(list(_log_probs(*_layers(hidden, params, cutoffs))), -1)


@compiled(static=("cutoffs",))
def adaptive_predict(hidden: ArrayLike, params: Mapping[str, Any], *, cutoffs: tuple[int, ...]) -> jax.Array:
    """Most likely class under an adaptive softmax.

    Args:
        hidden: Input of the last layer, shape (..., H).
        params: Parameters as from `init_adaptive_log_softmax`.
        cutoffs: First class of each tail, a static tuple of increasing integers >= 1.

    Returns:
        Integer class labels, of the shape of `hidden` without its last axis. Ties go to the lowest class.

    Example:
        >>> import jax, jaxloss
        >>> import jax.numpy as jnp
        >>> params = jaxloss.init_adaptive_log_softmax(jax.random.key(0), 8, 5, cutoffs=(2,), head_bias=True)
        >>> params["head"]["bias"] = jnp.array([0.0, 1.0, 5.0])  # the tail holds the classes 2, 3 and 4
        >>> jaxloss.adaptive_predict(jnp.zeros((1, 8)), params, cutoffs=(2,))
        Array([2], dtype=int32)

    Differences from PyTorch:
        * The module's method `predict` is a function of the parameters, for any number of leading axes.

    Source:
        E. Grave et al. (2017), Efficient softmax approximation for GPUs. PyTorch documentation:
        torch.nn.AdaptiveLogSoftmaxWithLoss.
    """
    head, *tail = _log_probs(*_layers(hidden, params, cutoffs))
    best, predicted = jnp.max(head, -1), jnp.argmax(head, -1)
    for first, log_probs in zip(map(int, cutoffs), tail, strict=True):
        highest = jnp.max(log_probs, -1)
        predicted = jnp.where(highest > best, first + jnp.argmax(log_probs, -1), predicted)
        best = jnp.maximum(best, highest)
    return predicted


def init_adaptive_log_softmax(
    key: jax.Array,
    in_features: int,
    n_classes: int,
    cutoffs: Sequence[int],
    div_value: float = 4.0,
    head_bias: bool = False,
) -> dict[str, Any]:
    """Initial parameters of an adaptive softmax, uniform in ±1/√fan_in as in PyTorch.

    Args:
        key: Key from `jax.random`.
        in_features: Number of features H of the hidden states.
        n_classes: Number of classes, sorted by decreasing frequency.
        cutoffs: First class of each tail, increasing integers in [1, n_classes - 1].
        div_value: Factor by which each tail is narrower than the one before: tail i, counted from 0, has
            width ⌊H / div_value^(i + 1)⌋.
        head_bias: Whether the head has a bias. The tails have none.

    Returns:
        `{"head": {"kernel": ...}, "tail": [{"down": ..., "up": ...}, ...]}`, with a "bias" in the head if
        `head_bias`, in the default float dtype. Shapes: (H, cutoffs[0] + number of tails) for the kernel,
        whose last columns score the tails, (H, width) for `down` and (width, classes of the tail) for `up`.

    Raises:
        ValueError: If the cutoffs do not increase within [1, n_classes - 1], or a tail would have width 0.

    Example:
        >>> import jax, jaxloss
        >>> params = jaxloss.init_adaptive_log_softmax(jax.random.key(0), 64, 1000, cutoffs=(20, 200))
        >>> params["head"]["kernel"].shape
        (64, 22)
        >>> [(layers["down"].shape, layers["up"].shape) for layers in params["tail"]]
        [((64, 16), (16, 180)), ((64, 4), (4, 800))]

    Differences from PyTorch:
        * Kernels have shape (in, out), the transpose of PyTorch's weights.
        * A tail of width 0, whose classes would all be equally likely, is an error.

    Source:
        PyTorch documentation: torch.nn.AdaptiveLogSoftmaxWithLoss.
    """
    edges = _edges(cutoffs, n_classes)
    keys = iter(jax.random.split(key, 2 + 2 * len(cutoffs)))

    def uniform(fan_in: int, *shape: int) -> jax.Array:
        return jax.random.uniform(next(keys), shape, minval=-(fan_in**-0.5), maxval=fan_in**-0.5)

    size = edges[0] + len(cutoffs)
    head = {"kernel": uniform(in_features, in_features, size)}
    if head_bias:
        head["bias"] = uniform(in_features, size)
    tail: list[dict[str, jax.Array]] = []
    for index, (first, end) in enumerate(pairwise(edges)):
        width = int(in_features // div_value ** (index + 1)) if div_value > 0 else 0
        if width < 1:
            raise ValueError(
                f"div_value must leave every tail at least one feature, got {div_value}: tail {index} has "
                f"none for in_features={in_features}"
            )
        down, up = uniform(in_features, in_features, width), uniform(width, width, end - first)
        tail.append({"down": down, "up": up})
    return {"head": head, "tail": tail}


class _Layers(NamedTuple):
    """The parameters of an adaptive softmax in the arithmetic dtype."""

    kernel: jax.Array
    bias: jax.Array | None
    tail: list[tuple[jax.Array, jax.Array]]
    edges: tuple[int, ...]  # tail i holds the classes from edges[i] up to edges[i + 1]


def _layers(
    hidden: ArrayLike, params: Mapping[str, Any], cutoffs: Sequence[int]
) -> tuple[jax.Array, _Layers]:
    """Converts the arrays to one dtype, and checks them."""
    _edges(cutoffs)
    kernel, bias = "params['head']['kernel']", "params['head']['bias']"
    tail = [(f"params['tail'][{i}]['down']", f"params['tail'][{i}]['up']") for i in range(len(cutoffs))]
    found = {f"params{jax.tree_util.keystr(path)}": leaf for path, leaf in jax.tree.leaves_with_path(params)}
    if found.keys() - {bias} != {kernel, *chain(*tail)}:
        raise ValueError(
            f"params must contain {', '.join([kernel, *chain(*tail)])}, and may contain {bias}, for "
            f"cutoffs={cutoffs}, got {', '.join(found) or 'nothing'}"
        )
    hidden, *converted = values(hidden=hidden, **found)
    arrays = dict(zip(found, converted, strict=True))
    if not hidden.ndim:
        raise ValueError("hidden must have an axis of features, got shape ()")
    # Only the width of each tail and the number of classes are free; all other sizes follow.
    edges = _edges(cutoffs, int(cutoffs[-1]) + max((1, *arrays[tail[-1][1]].shape[-1:])))
    features, size = hidden.shape[-1], edges[0] + len(tail)
    expected: dict[str, tuple[int, ...]] = {kernel: (features, size), bias: (size,)}
    for (down, up), (first, end) in zip(tail, pairwise(edges), strict=True):
        width = arrays[down].shape[-1:]
        expected |= {down: (features, *width), up: (*width, end - first)}
    for name, array in arrays.items():
        if array.shape != expected[name]:
            raise ValueError(
                f"{name} must have shape {expected[name]} for hidden {hidden.shape} and cutoffs={cutoffs}, "
                f"got {array.shape}"
            )
    pairs = [(arrays[down], arrays[up]) for down, up in tail]
    return hidden, _Layers(arrays[kernel], arrays.get(bias), pairs, edges)


def _edges(cutoffs: Sequence[int], n_classes: int | None = None) -> tuple[int, ...]:
    """Returns the cutoffs and the number of classes, if given; raises a ValueError unless they increase."""
    edges = np.asarray(cutoffs)
    if edges.ndim == 1 and n_classes is not None:
        edges = np.append(edges, n_classes)
    if edges.ndim != 1 or edges.dtype.kind != "i" or (np.diff(edges, prepend=0) <= 0).any():
        last = "n_classes - 1" if n_classes is None else n_classes - 1
        raise ValueError(f"cutoffs must be increasing integers in [1, {last}], got {cutoffs}")
    return tuple(edges.tolist())


def _nll(hidden: jax.Array, kernel: jax.Array, bias: jax.Array | None, labels: jax.Array) -> jax.Array:
    """Returns -log softmax(hidden · kernel + bias)[label], in blocks of classes."""
    found = statistics(Layer(hidden, kernel, bias), hidden.dtype, labels=labels)
    return jnp.log(found["normalizer"]) + found["label_gap"]


def _logits(hidden: jax.Array, kernel: jax.Array, bias: jax.Array | None) -> jax.Array:
    logits = jnp.dot(hidden, kernel)
    return logits if bias is None else logits + broadcastable("bias", bias, logits)


def _log_probs(hidden: jax.Array, layers: _Layers) -> Iterator[jax.Array]:
    """Yields the log-probabilities of the classes in the head, then of those in each tail."""
    head = jax.nn.log_softmax(_logits(hidden, layers.kernel, layers.bias))
    first = layers.edges[0]
    yield head[..., :first]
    for index, (down, up) in enumerate(layers.tail):
        whole = head[..., first + index : first + index + 1]
        yield jax.nn.log_softmax(jnp.dot(jnp.dot(hidden, down), up)) + whole
