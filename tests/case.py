"""A catalogue entry: one loss in one situation, compared with PyTorch or with a formula.

Arrays are float64 or integer NumPy arrays, named like the arguments of the loss, and drawn from
`RandomState`, whose stream is the same in every version of NumPy.
"""

import functools
import hashlib
import inspect
import zlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jaxloss
from tests.formulas import BEYOND_PYTORCH

REDUCTIONS = ("none", "mean", "sum")


def public_losses() -> set[str]:
    """Returns the names of all public losses."""
    functions = {name: value for name, value in vars(jaxloss).items() if inspect.isfunction(value)}
    return {
        name
        for name, value in functions.items()
        if name.endswith("_loss") or (name != "reduce" and "reduction" in inspect.signature(value).parameters)
    }


REGION_LOSSES = {
    "dice_loss",
    "tversky_loss",
    "generalized_dice_loss",
    "lovasz_hinge_loss",
    "lovasz_softmax_loss",
}
LIST_LOSSES = {"softmax_ranking_loss", "listmle_loss", "pairwise_logistic_loss", "approx_ndcg_loss"}
BATCH_ON_AXIS_1 = {("ctc_loss", "log_probs"), ("dino_loss", "logits"), ("dino_loss", "targets")}
Arrays = Mapping[str, np.ndarray]


class Case(NamedTuple):
    """One loss in one situation."""

    name: str
    loss: str
    arrays: dict[str, np.ndarray]
    options: dict[str, Any]
    smooth: bool  # twice differentiable at this point, so that finite differences apply
    gradients: tuple[str, ...]  # the arguments whose gradients are compared

    @property
    def is_beyond_pytorch(self) -> bool:
        """Whether the loss is compared with its formula instead of PyTorch."""
        return self.loss in BEYOND_PYTORCH

    @property
    def axis(self) -> int | None:
        """The class axis, or None for a loss without one."""
        axis = self._option("axis")
        if axis is None or self.has_layer:
            return None
        return axis % next(iter(self.arrays.values())).ndim

    @property
    def relates_positions(self) -> bool:
        """Whether one loss combines the pixels of an image or the items of a list.

        The mask then has more elements than there are losses.
        """
        return self.loss in REGION_LOSSES | LIST_LOSSES

    @property
    def is_batch_loss(self) -> bool:
        """Whether the loss is one number for the whole batch, without a `reduction`."""
        return "reduction" not in self._parameters

    @property
    def _parameters(self) -> Mapping[str, inspect.Parameter]:
        return inspect.signature(getattr(jaxloss, self.loss)).parameters

    def _option(self, name: str) -> Any:
        """Returns the value of an option, or None if the loss does not have it."""
        parameters = self._parameters
        return self.options.get(name, parameters[name].default) if name in parameters else None

    @property
    def sums_its_losses(self) -> bool:
        """Whether "sum" adds up the losses of "none", not means over parts of them."""
        return self.loss != "grpo_loss" or self._option("aggregate") != "sequence"

    @property
    def has_layer(self) -> bool:
        """Whether the loss computes the logits of a last layer; `axis_name` then shards its classes."""
        return "kernel" in self.arrays

    @property
    def relates_rows(self) -> bool:
        """Whether the loss of a row depends on the other rows; `axis_name` then shards the rows."""
        return "events" in self.arrays or ("embeddings" in self.arrays and not self.has_layer)

    @property
    def batched(self) -> tuple[str, ...]:
        """The arguments that have a batch axis."""
        name, first = next(iter(self.arrays.items()))
        has_rows = name in ("embeddings", "embeddings1", "anchors", "hidden")
        has_rows |= self.loss == "multilabel_margin_loss"
        if (self.axis is not None or has_rows) and first.ndim == 1:
            return ()
        if self.loss == "ctc_loss" and self.arrays["targets"].ndim == 1:
            return ()  # one sample, or targets without rows
        if self._option("batch"):
            return ()  # one loss for all samples
        size = first.shape[self.batch_axis(name)] if first.ndim else None
        return tuple(
            name
            for name, array in self.arrays.items()
            if array.ndim and array.shape[self.batch_axis(name)] == size and not self.is_per_class(name)
        )

    def batch_axis(self, name: str) -> int:
        """Returns which axis of an argument is the batch axis, if it has one."""
        return 1 if (self.loss, name) in BATCH_ON_AXIS_1 else 0

    def is_per_class(self, name: str) -> bool:
        """Whether the argument holds values per class, none per sample."""
        is_layer = name.removeprefix("teacher_") in ("kernel", "bias", "center") or name.startswith("params.")
        return is_layer or (name == "weight" and (self.axis is not None or self.has_layer))

    def repeated(self, arrays: Mapping[str, Any], times: int) -> dict[str, Any]:
        """Returns the arrays with the batch repeated."""
        return {
            name: jnp.asarray(np.concatenate([array] * times, self.batch_axis(name)))
            if name in self.batched
            else array
            for name, array in arrays.items()
        }

    def at_point(self, arrays: Mapping[str, np.ndarray], point: np.ndarray) -> dict[str, np.ndarray]:
        """Returns the arrays with the differentiated ones replaced by the entries of a flat point."""
        moved, start = dict(arrays), 0
        for name in self.gradients:
            moved[name] = point[start : start + arrays[name].size].reshape(arrays[name].shape)
            start += arrays[name].size
        return moved

    def digest(self) -> str:
        """Returns a hash of everything that PyTorch's answer depends on."""
        known = [self.loss, sorted(self.options.items()), self.gradients]
        known += [
            (name, array.dtype.str, array.shape, array.tobytes()) for name, array in self.arrays.items()
        ]
        return hashlib.sha256(repr(known).encode()).hexdigest()[:16]

    def inputs(self, dtype: Any) -> dict[str, jax.Array]:
        """Returns the arrays as JAX arrays, floating-point ones in `dtype`."""
        return {
            name: jnp.asarray(array.astype(dtype if array.dtype.kind == "f" else np.int32))
            for name, array in self.arrays.items()
        }

    def __call__(self, arrays: Mapping[str, Any], **options: Any) -> Any:
        """Calls the loss; a loss for the whole batch has weight 1 and ignores the reduction."""
        reduction = options.pop("reduction", None) if self.is_batch_loss else None
        value = getattr(jaxloss, self.loss)(**nested(arrays), **self.options, **options)
        return (value, jnp.ones_like(value)) if reduction == "sum_and_weight" else value

    def shape(self, arrays: Mapping[str, Any]) -> tuple[int, ...]:
        """Returns the shape of the mask: that of the unreduced losses, of the rows or of the pixels."""
        if self.is_batch_loss:
            return next(iter(arrays.values())).shape[:1]
        if self.relates_positions:
            shape = next(iter(arrays.values())).shape
            return shape if self.axis is None else tuple(np.delete(shape, self.axis).tolist())
        return jax.eval_shape(functools.partial(self, reduction="none"), dict(arrays)).shape

    def answer(self, arrays: Mapping[str, Any], reduction: str = "mean", **mask: Any) -> dict[str, jax.Array]:
        """Returns the value, and the gradients under their arguments' names, in one compiled call."""
        return self.answers(arrays, (reduction,), **mask)[reduction]

    def answers(
        self, arrays: Mapping[str, Any], reductions: tuple[str, ...], **mask: Any
    ) -> dict[str, dict[str, jax.Array]]:
        """Returns `answer` for several reductions, in one compiled call.

        Unreduced losses are contracted with `cotangent` before they are differentiated.
        """
        moved = {name: arrays[name] for name in self.gradients}
        return self._compiled(self._answers, reductions)(moved, dict(arrays), mask)

    def all_reductions(self, arrays: Mapping[str, Any], **mask: Any) -> dict[str, Any]:
        """Returns the loss with each reduction, in one compiled call."""
        return self._compiled(self._reduced, (*REDUCTIONS, "sum_and_weight"))(dict(arrays), mask)

    def _compiled(self, function: Callable[..., Any], reductions: tuple[str, ...]) -> Callable[..., Any]:
        # Compilation takes longest, so all tests share the programs.
        key = (function.__name__, self.loss, repr(self.options), self.gradients, reductions)
        if key not in _COMPILED:
            _COMPILED[key] = jax.jit(functools.partial(function, reductions=reductions))
        return _COMPILED[key]

    def _reduced(self, arrays: Any, mask: Any, reductions: tuple[str, ...]) -> Any:
        return {reduction: self(arrays, **mask, reduction=reduction) for reduction in reductions}

    def _answers(self, moved: Any, fixed: Any, mask: Any, reductions: tuple[str, ...]) -> Any:
        def answer(reduction: str) -> dict[str, jax.Array]:
            def contracted(moved: Any) -> tuple[jax.Array, jax.Array]:
                value = self({**fixed, **moved}, **mask, reduction=reduction)
                return jnp.sum(value * jnp.asarray(cotangent(value.shape), value.dtype)), value

            gradients, value = jax.grad(contracted, has_aux=True)(moved)
            return {"value": value, **gradients}

        return {reduction: answer(reduction) for reduction in reductions}


_COMPILED: dict[Any, Callable[..., Any]] = {}


def nested(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """Returns nested arguments: "params.tail.0.up" becomes params["tail"][0]["up"]."""
    arguments: dict[Any, Any] = {}
    for name, array in arrays.items():
        *path, last = name.split(".")
        place = arguments
        for step in path:
            place = place.setdefault(int(step) if step.isdigit() else step, {})
        place[last] = array
    return arguments


def cotangent(shape: tuple[int, ...]) -> np.ndarray:
    """Returns distinct weights, with which losses are summed before they are differentiated."""
    return np.linspace(0.5, 1.5, int(np.prod(shape))).reshape(shape) if shape else np.ones(())


CASES: list[Case] = []


def add(
    loss: str,
    situation: str,
    make: Callable[[np.random.RandomState], Arrays],
    *,
    smooth: bool = True,
    gradients: tuple[str, ...] | None = None,
    **options: Any,
) -> None:
    """Adds an entry; by default compares the gradients of all floating-point arguments except weights."""
    name = f"{loss}-{situation}"
    rng = np.random.RandomState(zlib.crc32(name.encode()))
    arrays = {argument: np.asarray(array) for argument, array in make(rng).items()}
    if loss in BEYOND_PYTORCH:  # values representable in float32, so that one truth serves both dtypes
        arrays = {
            n: a.astype(np.float32).astype(float) if a.dtype.kind == "f" else a for n, a in arrays.items()
        }
    if gradients is None:
        gradients = tuple(n for n, a in arrays.items() if a.dtype.kind == "f" and "weight" not in n)
    CASES.append(Case(name, loss, arrays, options, smooth, gradients))
