"""Every loss in every situation that must equal PyTorch: the entries that `test_contract` runs through its laws.

Arrays are float64 or integer NumPy arrays under the names of the loss's own arguments, drawn from
`RandomState`, whose stream is the same in every version of NumPy.
"""

import hashlib
import zlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jaxloss

REDUCTIONS = ("none", "mean", "sum")
Arrays = Mapping[str, np.ndarray]


class Case(NamedTuple):
    """One loss in one situation."""

    name: str
    loss: str
    arrays: dict[str, np.ndarray]
    options: dict[str, Any]
    smooth: bool  # twice differentiable at this point, so that finite differences apply
    gradients: tuple[str, ...]  # the arguments whose gradients equal PyTorch's

    @property
    def axis(self) -> int | None:
        """The class axis, or None for a loss without one."""
        if self.loss not in ("cross_entropy", "nll_loss"):
            return None
        scores = next(iter(self.arrays.values()))
        return self.options.get("axis", -1) % scores.ndim

    @property
    def batched(self) -> tuple[str, ...]:
        """The arguments that have a value, or a row of them, for each sample of the batch."""
        first = next(iter(self.arrays.values()))
        if self.axis is not None and first.ndim == 1:
            return ()
        return tuple(
            name
            for name, array in self.arrays.items()
            if array.ndim and first.ndim and array.shape[0] == first.shape[0] and not self.is_per_class(name)
        )

    def is_per_class(self, name: str) -> bool:
        """Whether the argument holds one value for each class."""
        return name == "weight" and self.axis is not None

    def digest(self) -> str:
        """Returns a fingerprint of all that PyTorch's answer depends on."""
        known = [self.loss, sorted(self.options.items()), self.gradients]
        known += [
            (name, array.dtype.str, array.shape, array.tobytes()) for name, array in self.arrays.items()
        ]
        return hashlib.sha256(repr(known).encode()).hexdigest()[:16]

    def inputs(self, dtype: Any) -> dict[str, jax.Array]:
        """Returns the arrays as JAX arrays, the floating ones in `dtype`."""
        return {
            name: jnp.asarray(array).astype(dtype if array.dtype.kind == "f" else jnp.int32)
            for name, array in self.arrays.items()
        }

    def __call__(self, arrays: Mapping[str, Any], **options: Any) -> Any:
        """Calls the loss."""
        return getattr(jaxloss, self.loss)(**arrays, **self.options, **options)

    def answer(self, arrays: Mapping[str, Any], **options: Any) -> dict[str, jax.Array]:
        """Returns the value, and the gradients under their arguments' names, in one compiled call.

        What is not a scalar is contracted with `cotangent` before it is differentiated.
        """

        def contracted(moved: dict[str, Any], fixed: dict[str, Any]) -> tuple[jax.Array, jax.Array]:
            value = self({**fixed, **moved}, **options)
            return jnp.sum(value * jnp.asarray(cotangent(value.shape), value.dtype)), value

        moved = {name: arrays[name] for name in self.gradients}
        gradients, value = jax.jit(jax.grad(contracted, has_aux=True))(moved, dict(arrays))
        return {"value": value, **gradients}


def cotangent(shape: tuple[int, ...]) -> np.ndarray:
    """Returns the weights, all different, with which unreduced losses are summed before they are differentiated."""
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
    """Adds an entry; by default the gradients of all floating arguments but the weights are compared."""
    name = f"{loss}-{situation}"
    rng = np.random.RandomState(zlib.crc32(name.encode()))
    arrays = {argument: np.asarray(array) for argument, array in make(rng).items()}
    if gradients is None:
        gradients = tuple(n for n, a in arrays.items() if a.dtype.kind == "f" and "weight" not in n)
    CASES.append(Case(name, loss, arrays, options, smooth, gradients))


def _pair(*shape: int) -> Callable[[np.random.RandomState], Arrays]:
    return lambda rng: {"predictions": rng.randn(*shape), "targets": rng.randn(*shape)}


def _weighted_pair(rng: np.random.RandomState) -> Arrays:
    return {**_pair(6, 3)(rng), "weight": rng.rand(6, 3)}


def _at_errors(*errors: float) -> Callable[[np.random.RandomState], Arrays]:
    return lambda rng: {"predictions": np.array(errors), "targets": np.zeros(len(errors))}


for _loss in ("mse_loss", "l1_loss", "smooth_l1_loss", "huber_loss"):
    add(_loss, "matrix", _pair(6, 4))
    add(_loss, "scalar", _pair())
    add(_loss, "cube", _pair(4, 2, 3))
    add(_loss, "huge", _at_errors(1e30, -1e18, 1e9, 3e4) if _loss != "mse_loss" else _at_errors(1e15, -3e4))
for _loss in ("mse_loss", "l1_loss", "huber_loss"):
    add(_loss, "weight", _weighted_pair)
add("l1_loss", "ties", _at_errors(0.0, 1.0, -2.0, 0.0), smooth=False)
add("l1_loss", "infinite", _at_errors(np.inf, -np.inf, 1.0), smooth=False)
add("smooth_l1_loss", "kinks", _at_errors(0.0, 0.5, -0.5, 0.25, 2.0), smooth=False, beta=0.5)
add("smooth_l1_loss", "beta-zero", _at_errors(0.0, 1.0, -2.0), smooth=False, beta=0.0)
add("smooth_l1_loss", "infinite", _at_errors(np.inf, -np.inf, 1.0), smooth=False)
add("smooth_l1_loss", "wide", _pair(5, 2), beta=3.0)
add("huber_loss", "kinks", _at_errors(0.0, 0.5, -0.5, 0.25, 2.0), smooth=False, delta=0.5)
add("huber_loss", "infinite", _at_errors(np.inf, -np.inf, 1.0), smooth=False)
add("huber_loss", "narrow", _pair(5, 2), delta=0.1)


def _classes(
    *shape: int, axis: int = -1, ignored: int | None = None, weight: bool = False, soft: bool = False
) -> Callable[[np.random.RandomState], Arrays]:
    def make(rng: np.random.RandomState) -> Arrays:
        scores = rng.randn(*shape) * 2
        count = shape[axis]
        if soft:
            targets = rng.rand(*shape)
            targets /= targets.sum(axis, keepdims=True)
        else:
            targets = np.asarray(rng.randint(0, count, np.delete(shape, axis)))
        if ignored is not None:
            targets.ravel()[::3] = ignored
        weights = {"weight": rng.rand(count) + 0.1} if weight else {}
        return {"logits": scores, "targets": targets, **weights}

    return make


def _as_log_probs(
    make: Callable[[np.random.RandomState], Arrays],
) -> Callable[[np.random.RandomState], Arrays]:
    def made(rng: np.random.RandomState) -> Arrays:
        arrays = make(rng)
        return {"log_probs": -np.abs(arrays["logits"]), **{k: v for k, v in arrays.items() if k != "logits"}}

    return made


for _loss, _wrap in (("cross_entropy", lambda make: make), ("nll_loss", _as_log_probs)):
    add(_loss, "rows", _wrap(_classes(5, 6)))
    add(_loss, "one", _wrap(_classes(6)))
    add(_loss, "sequence", _wrap(_classes(4, 3, 6)))
    add(_loss, "image", _wrap(_classes(4, 6, 2, 3, axis=1)), axis=1)
    add(_loss, "weight", _wrap(_classes(5, 6, weight=True)))
    add(_loss, "ignored", _wrap(_classes(7, 6, ignored=-100)))
    add(_loss, "ignored-class", _wrap(_classes(7, 6, ignored=2)), ignore_index=2)
    add(_loss, "all-ignored", _wrap(lambda rng: {"logits": rng.randn(2, 3), "targets": np.full(2, -100)}))
    add(
        _loss,
        "image-weight-ignored",
        _wrap(_classes(4, 6, 2, axis=1, ignored=255, weight=True)),
        axis=1,
        ignore_index=255,
    )
add("cross_entropy", "smoothed", _classes(5, 6), label_smoothing=0.1)
add(
    "cross_entropy", "smoothed-weight-ignored", _classes(7, 6, ignored=-100, weight=True), label_smoothing=0.3
)
add("cross_entropy", "smoothed-fully", _classes(5, 6), label_smoothing=1.0)
add("cross_entropy", "image-smoothed", _classes(4, 6, 2, axis=1, weight=True), axis=1, label_smoothing=0.2)
add("cross_entropy", "probabilities", _classes(5, 6, soft=True))
add("cross_entropy", "probabilities-one", _classes(6, soft=True))
add("cross_entropy", "probabilities-image", _classes(4, 6, 3, axis=1, soft=True), axis=1)
add(
    "cross_entropy",
    "probabilities-weight-smoothed",
    _classes(5, 6, soft=True, weight=True),
    label_smoothing=0.2,
)


def _extreme_logits(rng: np.random.RandomState) -> Arrays:
    logits = np.array([[1e4, -1e4, 0.0], [-np.inf, 0.0, 1.0], [1e30, 0.0, -1e30], [50.0, 50.0, 50.0]])
    return {"logits": logits, "targets": np.array([0, 2, 0, 1])}


add("cross_entropy", "extreme", _extreme_logits, smooth=False)
add(
    "cross_entropy",
    "minus-infinity-target",
    lambda rng: {"logits": np.array([[0.0, -np.inf]]), "targets": np.array([1])},
    smooth=False,
)
add(
    "nll_loss",
    "minus-infinity",
    lambda rng: {"log_probs": np.array([[0.0, -np.inf], [-np.inf, 0.0]]), "targets": np.array([0, 0])},
    smooth=False,
)


def _binary(
    first: str, *shape: int, weights: Mapping[str, tuple[int, ...]] | None = None
) -> Callable[[np.random.RandomState], Arrays]:
    def make(rng: np.random.RandomState) -> Arrays:
        scores = rng.randn(*shape) * 2 if first == "logits" else rng.uniform(0.05, 0.95, shape)
        extra = {name: rng.rand(*size) + 0.5 for name, size in (weights or {}).items()}
        return {first: scores, "targets": rng.rand(*shape), **extra}

    return make


for _loss, _first in (("binary_cross_entropy", "probs"), ("binary_cross_entropy_with_logits", "logits")):
    add(_loss, "matrix", _binary(_first, 6, 3))
    add(_loss, "scalar", _binary(_first))
    add(_loss, "weight", _binary(_first, 6, 3, weights={"weight": (6, 3)}))
    add(_loss, "weight-broadcast", _binary(_first, 6, 3, weights={"weight": (3,)}))
_corners = {"targets": np.array([0.0, 1.0, 0.0, 1.0, 0.5, 0.0, 1.0])}
add(
    "binary_cross_entropy",
    "corners",
    lambda rng: {"probs": np.array([0.0, 1.0, 1.0, 0.0, 0.5, 1e-30, 1e-30]), **_corners},
    smooth=False,
    gradients=("probs",),
)
add(
    "binary_cross_entropy_with_logits",
    "corners",
    lambda rng: {"logits": np.array([0.0, 0.0, 100.0, -100.0, 0.0, -1e30, 1e30]), **_corners},
    smooth=False,
)
add("binary_cross_entropy_with_logits", "pos-weight", _binary("logits", 6, 3, weights={"pos_weight": (3,)}))
add(
    "binary_cross_entropy_with_logits",
    "weight-pos-weight",
    _binary("logits", 6, 3, weights={"weight": (6, 1), "pos_weight": (3,)}),
)
