"""Evaluation over a data set."""

import functools
from collections.abc import Mapping
from typing import Any, overload

import jax
import jax.numpy as jnp
import numpy as np
from jax.tree_util import Partial

from jaxloss._core.arguments import integer
from jaxloss.training.batches import (
    batch_from_host,
    check_no_options,
    limit_queue,
    read_batches,
    sample_count,
)
from jaxloss.training.objective import (
    Measure,
    Pair,
    check_are_pairs,
    count_compilation,
    means,
    measures,
    traceable,
    traceable_metrics,
    value_and_weight,
)
from jaxloss.training.state import TrainState, check_not_donated

__all__ = ["evaluate"]


@overload
def evaluate(
    state: TrainState,
    inputs: Any,
    targets: Any = None,
    *,
    loss: Measure,
    batch_size: int | None = None,
    metrics: None = None,
) -> jax.Array: ...
@overload
def evaluate(
    state: TrainState,
    inputs: Any,
    targets: Any = None,
    *,
    loss: Measure,
    batch_size: int | None = None,
    metrics: Mapping[str, Measure],
) -> tuple[jax.Array, dict[str, jax.Array]]: ...
def evaluate(
    state: TrainState,
    inputs: Any,
    targets: Any = None,
    *,
    loss: Measure,
    batch_size: int | None = None,
    metrics: Mapping[str, Measure] | None = None,
) -> Any:
    """Returns the means of a loss and of metrics over a data set, computed batch by batch.

    The means are exact over all samples, even if batches differ in size. The model runs in evaluation mode:
    without dropout, and with the batch statistics in `state`. `state` does not change.

    Args:
        state: The state with the parameters to evaluate.
        inputs: The inputs of all samples, along the first axis: an array or any pytree of arrays, not sharded
            over `Explicit` mesh axes. Without `targets`, an iterable of batches, as in `train_epoch`.
        targets: The targets of all samples, likewise.
        loss: A callable `(outputs, targets) -> (sum, weight)`, such as
            `functools.partial(loss, reduction="sum_and_weight")`, or a custom metric that ends in
            `jaxloss.reduce(..., reduction="sum_and_weight")`. Create it once, as for `train_step`.
        batch_size: Largest number of samples per call of the model, for arrays.
        metrics: Further callables like `loss` by name, computed from the same outputs.

    Returns:
        The mean, a scalar: the sum over all batches divided by the weight of all batches. With metrics
        `(mean, measured)`, with a dict of such means.

    Raises:
        TypeError: If `state` is not a `TrainState`, `loss` is not callable, `batch_size` is not an integer,
            a batch is not a pair, or inputs or targets contain anything other than arrays of numbers.
        ValueError: If `loss` or a metric does not return a pair, the numbers of inputs and targets differ or
            are 0, `batch_size` is less than 1, `state` was donated to a step, or a model with a
            `model_state` has no `eval_fn`.

    Example:
        >>> import functools, jax, optax
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> import jaxloss
        >>> from jaxloss.models import Classifier
        >>> from jaxloss.training import create_train_state, evaluate
        >>> state = create_train_state(Classifier(8, 4, 2, rngs=nnx.Rngs(0)), optax.sgd(0.1))
        >>> inputs, labels = jnp.ones((100, 8)), jnp.arange(100) % 2
        >>> loss = functools.partial(jaxloss.cross_entropy, reduction="sum_and_weight")
        >>> def accuracy(logits, labels):
        ...     return jaxloss.reduce(logits.argmax(axis=-1) == labels, reduction="sum_and_weight")
        >>> evaluate(state, inputs, labels, loss=accuracy, batch_size=64)
        Array(0.5, dtype=float32)
        >>> value, measured = evaluate(
        ...     state, inputs, labels, loss=loss, batch_size=64, metrics={"accuracy": accuracy}
        ... )
        >>> measured["accuracy"]
        Array(0.5, dtype=float32)
    """
    check_not_donated(state)
    if state.eval_fn is None:
        raise ValueError(
            "evaluate needs an eval_fn for a model with a model_state; pass "
            "eval_fn(params, model_state, inputs) -> outputs to create_train_state"
        )
    functions = traceable(loss), traceable_metrics(metrics)
    if targets is None:
        check_no_options(batch_size=batch_size)
        parts: list[Any] = []
        for batch in read_batches(inputs):
            parts.append(_evaluate_batch(state, batch, *functions))
            limit_queue(parts)
        found = jax.tree.map(_exact_sum, *jax.device_get(parts))
    else:
        data = batch_from_host("inputs", inputs), batch_from_host("targets", targets)
        found = _evaluate(state, data, *functions, integer("batch_size", batch_size))
    value, measured = means({"loss": found[0]})["loss"], means(found[1])
    return value if metrics is None else (value, measured)


def _exact_sum(*numbers: Any) -> jax.Array:
    return jnp.asarray(np.sum(numbers, dtype=np.float64), numbers[0].dtype)


@jax.jit
def _evaluate_batch(
    state: TrainState, batch: tuple[Any, Any], loss: Partial, metrics: dict[str, Partial]
) -> tuple[Pair, dict[str, Pair]]:
    """Returns the pairs (sum, weight) of the loss and the metrics over a batch."""
    count_compilation(loss, metrics, state, batch)
    inputs, targets = batch
    eval_fn: Any = state.eval_fn
    model_state = () if state.model_state is None else (state.model_state,)
    outputs = eval_fn(state.params, *model_state, inputs)
    value, weight = value_and_weight(loss(outputs, targets))
    measured = measures(metrics, outputs, targets)
    check_are_pairs("evaluate", weight, measured)
    return (value, weight), measured


@functools.partial(jax.jit, static_argnums=4)
def _evaluate(
    state: TrainState,
    data: tuple[Any, Any],
    loss: Partial,
    metrics: dict[str, Partial],
    batch_size: int,
) -> tuple[Pair, dict[str, Pair]]:
    """Returns the pairs (sum, weight) of the loss and the metrics over a data set."""
    count = sample_count(*data)
    if batch_size < 1 or not count:
        raise ValueError(
            f"evaluate needs at least one sample and batch_size >= 1; got {count} samples and "
            f"batch_size={batch_size}"
        )

    def pairs(batch: tuple[Any, Any]) -> tuple[Pair, dict[str, Pair]]:
        return _evaluate_batch(state, batch, loss, metrics)

    whole = count - count % batch_size
    data = jax.tree.map(jnp.asarray, data)
    batches = jax.tree.map(lambda a: a[:whole].reshape(-1, batch_size, *a.shape[1:]), data)
    parts = [jax.tree.map(jnp.sum, jax.lax.map(pairs, batches))] if whole else []
    if whole < count:
        parts.append(pairs(jax.tree.map(lambda a: a[whole:], data)))
    return jax.tree.map(lambda *parts: functools.reduce(jnp.add, parts), *parts)
