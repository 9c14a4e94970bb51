"""The adaptive softmax: a large vocabulary in which rare classes get fewer features than frequent ones."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain, pairwise
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from jaxloss._core.arguments import as_array, mask, stretchable, values
from jaxloss._core.classes import ClassAxis, hidden_labels
from jaxloss._core.decorator import compiled
from jaxloss._core.projection import Output, statistics
from jaxloss._core.reduction import Reduction, reduce_weighted


@compiled(static=("cutoffs", "reduction"), indices=("targets",))
def adaptive_log_softmax(
    hidden: ArrayLike,
    params: Mapping[str, Any],
    targets: ArrayLike,
    *,
    cutoffs: tuple[int, ...],
    where: ArrayLike | None = None,
    reduction: Reduction = "mean",
) -> jax.Array:
    """Measures how surprised the model is by the right class: cross-entropy with an adaptive softmax.

    The classes are sorted by frequency. The head scores the most frequent ones, and with them each tail of
    rarer classes as a whole; a tail scores its own classes with fewer features. With tail i, counted from 0,
    holding the classes from cutoffs[i] up to the next cutoff or the last class,

        loss = -log softmax(hidden · kernel + bias)[y]                  for y < cutoffs[0]
        loss = -log softmax(hidden · kernel + bias)[cutoffs[0] + i]
               - log softmax(hidden · down_i · up_i)[y - cutoffs[i]]    for y in tail i

    Args:
        hidden: The last hidden features of the model, of shape (..., H).
        params: What `init_adaptive_log_softmax` returns, or arrays of such shapes in the same places.
        targets: Integer class labels in [0, number of classes), of the shape of `hidden` without its last
            axis.
        cutoffs: The first class of each tail, rising integers >= 1 in a tuple. The number of classes is not
            among them; the parameters tell it.
        where: Boolean mask, broadcast to the shape of `targets`. What lies behind False has no influence on
            value or gradient, NaN included, and does not count in the mean.
        reduction: "mean" for Σ loss / number of positions, "sum", "none" for the loss of each position, or
            "sum_and_weight" for the pair (Σ loss, number of positions), which adds up over micro-batches and
            devices to the exact mean.

    Returns:
        A scalar for "mean" and "sum", an array of the shape of `targets` for "none", two scalars for
        "sum_and_weight". The dtype is float32, or float64 where hidden or parameters are; the unit is nats. A
        label that is no class gives NaN in the value and in the gradients of `hidden` and of the head, and an
        error under `jax.experimental.checkify`. The mean over no position is NaN with gradient 0. An empty
        sum is 0. Matrix products are as precise as `jax.default_matmul_precision` says.

    Raises:
        TypeError: An argument is not an array of real numbers, `targets` are not integers, `where` is not
            boolean, or `cutoffs` is a list or an array.
        ValueError: The cutoffs are no integers that rise from 1, the shapes of `hidden`, `params` and
            `targets` do not fit together, `where` does not broadcast to the targets' shape, or the reduction
            is unknown.

    Example:
        >>> import jax, jaxloss
        >>> import jax.numpy as jnp
        >>> cutoffs = (20, 200)
        >>> params = jaxloss.init_adaptive_log_softmax(jax.random.key(0), 64, 1000, cutoffs)
        >>> hidden = jnp.zeros((2, 64))  # all scores are alike: ln 22 in the head, ln 800 in the last tail
        >>> labels = jnp.array([3, 999])
        >>> jaxloss.adaptive_log_softmax(hidden, params, labels, cutoffs=cutoffs)
        Array(6.4333, dtype=float32)

    Differences from PyTorch:
        * A function of its parameters; the module over it is `jaxloss.models.AdaptiveLogSoftmax`. Kernels
          are (in, out), the transposes of PyTorch's weights. PyTorch's `output` is minus the loss of "none".
        * Every tail is evaluated at every position, since compiled shapes are fixed, where PyTorch picks the
          positions whose labels lie in the tail. A position costs H · kernel columns, and for each tail H ·
          width + width · classes: small beside H · classes where the tails are narrow, and the same for all
          batches. Of a large head or tail some classes are scored at a time, as in `linear_cross_entropy`,
          and the gradient scores them anew.
        * Hidden features may have any number of leading axes.
        * A label out of range is NaN, or an error under checkify, where PyTorch raises.
        * bfloat16 and float16 inputs are computed in float32, and the loss stays float32.
        * Labels may have any integer dtype.

    Source:
        E. Grave et al. (2017), Efficient softmax approximation for GPUs. PyTorch documentation:
        torch.nn.AdaptiveLogSoftmaxWithLoss.
    """
    hidden, layers = _layers(hidden, params, cutoffs)
    where = mask(where, hidden.shape[:-1])
    features = ClassAxis(hidden.ndim - 1, None)
    hidden = features.hide(where, hidden)
    labels, _, weight = hidden_labels(as_array("targets", targets), hidden, layers.edges[-1], None, where)
    losses, entry = jnp.zeros_like(weight), labels
    for index, (first, end) in enumerate(pairwise(layers.edges)):
        inside = (labels >= first) & (labels < end)
        entry = jnp.where(inside, layers.edges[0] + index, entry)
        down, up = layers.tail[index]
        narrowed = features.hide(inside, jnp.dot(hidden, down))
        surprise = _surprise(narrowed, up, None, jnp.where(inside, labels - first, 0))
        losses = losses + jnp.where(inside, surprise, 0)
    losses = losses + _surprise(hidden, layers.kernel, layers.bias, entry)
    return reduce_weighted(weight * losses, None, where, reduction)


@compiled(static=("cutoffs",))
def adaptive_log_probs(
    hidden: ArrayLike, params: Mapping[str, Any], *, cutoffs: tuple[int, ...]
) -> jax.Array:
    """Returns the log-probability of every class under an adaptive softmax.

    `adaptive_log_softmax` is `nll_loss` of these without holding them all.

    Args:
        hidden: The last hidden features of the model, of shape (..., H).
        params: What `init_adaptive_log_softmax` returns, or arrays of such shapes in the same places.
        cutoffs: The first class of each tail, rising integers >= 1 in a tuple.

    Returns:
        Log-probabilities in nats, of shape (..., number of classes); float32, or float64 where hidden or
        parameters are.

    Raises:
        TypeError: An argument is not an array of real numbers, or `cutoffs` is a list or an array.
        ValueError: The cutoffs are no integers that rise from 1, or the shapes of `hidden` and `params` do
            not fit.

    Example:
        >>> import jax, jaxloss
        >>> import jax.numpy as jnp
        >>> params = jaxloss.init_adaptive_log_softmax(jax.random.key(0), 8, 5, cutoffs=(2,))
        >>> jnp.exp(jaxloss.adaptive_log_probs(jnp.zeros(8), params, cutoffs=(2,)))
        Array([0.3333, 0.3333, 0.1111, 0.1111, 0.1111], dtype=float32)

    Differences from PyTorch:
        * The module's method `log_prob` is a function of the parameters, for any leading axes.
        * bfloat16 and float16 inputs are computed in float32, and the result stays float32.

    Source:
        E. Grave et al. (2017), Efficient softmax approximation for GPUs. PyTorch documentation:
        torch.nn.AdaptiveLogSoftmaxWithLoss.
    """
    return jnp.concatenate(list(_log_probs(*_layers(hidden, params, cutoffs))), -1)


@compiled(static=("cutoffs",))
def adaptive_predict(hidden: ArrayLike, params: Mapping[str, Any], *, cutoffs: tuple[int, ...]) -> jax.Array:
    """Returns the most likely class under an adaptive softmax.

    Args:
        hidden: The last hidden features of the model, of shape (..., H).
        params: What `init_adaptive_log_softmax` returns, or arrays of such shapes in the same places.
        cutoffs: The first class of each tail, rising integers >= 1 in a tuple.

    Returns:
        Integer class labels of the shape of `hidden` without its last axis; of equally likely classes the
        first.

    Raises:
        TypeError: An argument is not an array of real numbers, or `cutoffs` is a list or an array.
        ValueError: The cutoffs are no integers that rise from 1, or the shapes of `hidden` and `params` do
            not fit.

    Example:
        >>> import jax, jaxloss
        >>> import jax.numpy as jnp
        >>> params = jaxloss.init_adaptive_log_softmax(jax.random.key(0), 8, 5, cutoffs=(2,), head_bias=True)
        >>> params["head"]["bias"] = jnp.array([0.0, 1.0, 5.0])  # the tail holds the classes 2, 3 and 4
        >>> jaxloss.adaptive_predict(jnp.zeros((1, 8)), params, cutoffs=(2,))
        Array([2], dtype=int32)

    Differences from PyTorch:
        * The module's method `predict` is a function of the parameters, for any leading axes.

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
    """Draws the parameters of an adaptive softmax as PyTorch does: uniform in ±1/√fan_in.

    Args:
        key: A key of `jax.random`.
        in_features: Number of hidden features H.
        n_classes: Number of classes, which are sorted from the most frequent to the rarest.
        cutoffs: The first class of each tail, rising integers in [1, n_classes - 1].
        div_value: How much narrower each tail is than what comes before it: tail i, counted from 0, has width
            ⌊H / div_value^(i + 1)⌋.
        head_bias: Whether the head has a bias. The tails have none.

    Returns:
        `{"head": {"kernel": ...}, "tail": [{"down": ..., "up": ...}, ...]}`, with `head_bias` a "bias" beside
        the kernel. The shapes are (H, cutoffs[0] + number of tails) for the kernel, whose last columns score
        the tails, (H, width) for `down` and (width, classes of the tail) for `up`. The dtype is JAX's default
        float.

    Raises:
        ValueError: The cutoffs do not rise within [1, n_classes - 1], or a tail would have no features.

    Example:
        >>> import jax, jaxloss
        >>> params = jaxloss.init_adaptive_log_softmax(jax.random.key(0), 64, 1000, cutoffs=(20, 200))
        >>> params["head"]["kernel"].shape
        (64, 22)
        >>> [(layers["down"].shape, layers["up"].shape) for layers in params["tail"]]
        [((64, 16), (16, 180)), ((64, 4), (4, 800))]

    Differences from PyTorch:
        * Kernels are (in, out), the transposes of PyTorch's weights.
        * A tail of no features, whose classes would all be equally likely, is refused.

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
                f"div_value must leave every tail a feature, got {div_value}: tail {index} of "
                f"in_features={in_features} has none"
            )
        down, up = uniform(in_features, in_features, width), uniform(width, width, end - first)
        tail.append({"down": down, "up": up})
    return {"head": head, "tail": tail}


class _Layers(NamedTuple):
    """The parameters of an adaptive softmax in the dtype of arithmetic."""

    kernel: jax.Array
    bias: jax.Array | None
    tail: list[tuple[jax.Array, jax.Array]]
    edges: tuple[int, ...]  # tail i holds the classes from edges[i] up to edges[i + 1]


def _layers(
    hidden: ArrayLike, params: Mapping[str, Any], cutoffs: Sequence[int]
) -> tuple[jax.Array, _Layers]:
    """Returns arrays of one dtype, or refuses what does not fit together."""
    _edges(cutoffs)
    kernel, bias = "params['head']['kernel']", "params['head']['bias']"
    tail = [(f"params['tail'][{i}]['down']", f"params['tail'][{i}]['up']") for i in range(len(cutoffs))]
    found = {f"params{jax.tree_util.keystr(path)}": leaf for path, leaf in jax.tree.leaves_with_path(params)}
    if found.keys() - {bias} != {kernel, *chain(*tail)}:
        raise ValueError(
            f"params must hold {', '.join([kernel, *chain(*tail)])}, and may hold {bias}, for "
            f"cutoffs={cutoffs}, got {', '.join(found) or 'nothing'}"
        )
    hidden, *converted = values(hidden=hidden, **found)
    arrays = dict(zip(found, converted, strict=True))
    if not hidden.ndim:
        raise ValueError("hidden must have an axis of features, got shape ()")
    # A shape follows from the others; what is free is the width of each tail and the number of classes.
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
    """Returns the cutoffs, and the number of classes after them, or refuses what does not rise."""
    edges = np.asarray(cutoffs)
    if edges.ndim == 1 and n_classes is not None:
        edges = np.append(edges, n_classes)
    if edges.ndim != 1 or edges.dtype.kind != "i" or (np.diff(edges, prepend=0) <= 0).any():
        last = "n_classes - 1" if n_classes is None else n_classes - 1
        raise ValueError(f"cutoffs must be integers that rise within [1, {last}], got {cutoffs}")
    return tuple(edges.tolist())


def _surprise(hidden: jax.Array, kernel: jax.Array, bias: jax.Array | None, labels: jax.Array) -> jax.Array:
    """Returns -log softmax(hidden · kernel + bias)[label], of many classes some at a time."""
    found = statistics(hidden, Output(kernel, bias, None), labels=labels)
    return jnp.log(found["norm"]) + (found["largest"] - found["logit"])


def _logits(hidden: jax.Array, kernel: jax.Array, bias: jax.Array | None) -> jax.Array:
    logits = jnp.dot(hidden, kernel)
    return logits if bias is None else logits + stretchable("bias", bias, logits.shape)


def _log_probs(hidden: jax.Array, layers: _Layers) -> Iterator[jax.Array]:
    """Yields the log-probabilities of the classes in the head, then of those in each tail."""
    head = jax.nn.log_softmax(_logits(hidden, layers.kernel, layers.bias))
    first = layers.edges[0]
    yield head[..., :first]
    for index, (down, up) in enumerate(layers.tail):
        whole = head[..., first + index : first + index + 1]
        yield jax.nn.log_softmax(jnp.dot(jnp.dot(hidden, down), up)) + whole
