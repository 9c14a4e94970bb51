"""Losses for transducers, which emit a sequence of labels while they read frames."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from jaxloss._core.arguments import (
    arithmetic_dtype,
    as_array,
    fill_masked,
    index_array,
    integer,
    mask,
    sample_lengths,
    sharded_alike,
    widened,
)
from jaxloss._core.checks import checked, one_or_nan
from jaxloss._core.classes import ClassAxis
from jaxloss._core.decorator import compiled
from jaxloss._core.derivatives import log_add_exp, log_zero
from jaxloss._core.reduction import Reduction, reduce_losses

_CLASSES = ClassAxis(3, None)


@compiled(static=("blank", "reduction"), sequences=("input_lengths", "target_lengths"))
def rnnt_loss(
    logits: ArrayLike,
    targets: ArrayLike,
    input_lengths: ArrayLike,
    target_lengths: ArrayLike,
    *,
    blank: int = 0,
    where: ArrayLike | None = None,
    reduction: Reduction = "mean",
) -> jax.Array:
    """Recurrent neural network transducer (RNN-T) loss.

    A path starts at frame 0 with no label emitted. From (t, u) it emits label u and goes to (t, u + 1), or it
    emits the blank and goes to (t + 1, u); it ends with the blank of the last frame after the last label.

        loss = -log Σ_path exp(Σ log p[t, u, emitted])   with p = softmax(logits) over the classes

    Args:
        logits: Raw scores or log-probabilities, shape (B, T, U + 1, C) for B samples, T frames, U labels and
            C classes. A mesh with `Explicit` axes may shard only B and C.
        targets: Integer class labels in [0, C) other than `blank`, shape (B, U). Padding is not read.
        input_lengths: Frames per sample, integers in [1, T]: shape (B,), or a list or tuple.
        target_lengths: Labels per sample, likewise, in [0, U].
        blank: Class of the blank, a static integer in [-C, C); -1 is the last class.
        where: Mask of the samples, broadcast to shape (B,); see `help(jaxloss)`.
        reduction: "mean" (divides by the number of samples), "sum", "none" or "sum_and_weight".

    Returns:
        A scalar, or an array of shape (B,) for "none"; in nats.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxloss
        >>> logits = jnp.zeros((1, 2, 2, 3))  # 2 frames, 1 label, 3 equally likely classes
        >>> jaxloss.rnnt_loss(logits, jnp.array([[1]]), [2], [1])  # 2 paths of 3 steps
        Array(2.6027, dtype=float32)

    Differences from other libraries:
        * If no path is possible, because of logits of -inf, the loss is ∞ with gradient 0.
        * A logit of +inf, and logits that are all -inf, give NaN.
        * TorchAudio's option `clamp`, which bounds the gradient, does not exist.

    Source:
        A. Graves (2012), Sequence Transduction with Recurrent Neural Networks. TorchAudio documentation:
        torchaudio.functional.rnnt_loss.
    """
    logits, targets = as_array("logits", logits), index_array("targets", as_array("targets", targets))
    blank = _blank_class(blank, logits, targets)
    samples = logits.shape[:1]
    logits, targets, input_lengths, target_lengths = sharded_alike(
        [
            logits,
            targets,
            sample_lengths("input_lengths", input_lengths, samples),
            sample_lengths("target_lengths", target_lengths, samples),
        ],
        [0, 0, 0, 0],
    )
    where = mask(where, logits, [1, 2, 3])
    lattice = _lattice(logits, targets, input_lengths, target_lengths, blank, where)
    losses = -_log_likelihood(*_scores(logits, lattice, blank), lattice)
    losses = losses - lax.stop_gradient(jnp.minimum(losses, 0))  # negative only by rounding
    return reduce_losses(losses, None, where, reduction)


def _blank_class(blank: int, logits: jax.Array, targets: jax.Array) -> int:
    """Returns the class of the blank in [0, C), after checking it and the shapes."""
    if logits.ndim != 4 or targets.shape != (logits.shape[0], logits.shape[2] - 1):
        raise ValueError(
            "targets must have shape (B, U) for logits of shape (B, T, U + 1, C), "
            f"got targets {targets.shape} and logits {logits.shape}"
        )
    classes = logits.shape[-1]
    if not -classes <= integer("blank", blank) < classes:
        raise ValueError(f"blank must be a class in [-{classes}, {classes}), got {blank}")
    return blank % classes


class _Lattice(NamedTuple):
    """The labels that the paths of each sample must emit, and the lengths; all in range."""

    labels: jax.Array  # (B, U + 1): the sample's labels, and blanks as padding
    input_lengths: jax.Array
    target_lengths: jax.Array
    validity: jax.Array  # 1, or NaN for a sample with a label or a length out of range


def _lattice(
    logits: jax.Array,
    labels: jax.Array,
    input_lengths: jax.Array,
    target_lengths: jax.Array,
    blank: int,
    where: jax.Array | None,
) -> _Lattice:
    _, frames, after, classes = logits.shape
    # A masked sample has no frames, so that nothing of it is read.
    inputs_fit = fill_masked(where, (input_lengths >= 1) & (input_lengths <= frames), True)
    input_lengths = checked(input_lengths, inputs_fit, f"input_lengths: expected lengths in [1, {frames}]")
    targets_fit = fill_masked(where, (target_lengths >= 0) & (target_lengths < after), True)
    expected = f"target_lengths: expected lengths in [0, {after - 1}]"
    target_lengths = fill_masked(where, checked(target_lengths, targets_fit, expected))
    is_own = jnp.arange(after - 1, dtype=target_lengths.dtype)[None] < target_lengths[:, None]
    is_label = (labels >= 0) & (labels < classes) & (labels != blank) | ~is_own
    expected = f"targets: expected class indices in [0, {classes}) other than blank={blank}"
    labels = jnp.where(is_own & is_label, checked(labels, is_label, expected), blank)
    valid = inputs_fit & targets_fit & jnp.all(is_label, -1)
    return _Lattice(
        jnp.pad(labels.astype(jnp.int32), [(0, 0), (0, 1)], constant_values=blank),
        # An invalid sample gets all frames and labels, so that NaN reaches all gradients.
        jnp.where(valid, fill_masked(where, input_lengths), frames).astype(jnp.int32),
        jnp.where(valid, target_lengths, after - 1).astype(jnp.int32),
        one_or_nan(valid, arithmetic_dtype(logits)),
    )


def _scores(logits: jax.Array, lattice: _Lattice, blank: int) -> tuple[jax.Array, jax.Array]:
    """Returns the log-probabilities of the blank and of the label at each node, shape (B, T, U + 1).

    After a sample's own frames and labels come blanks of probability 1, which change nothing.
    """
    time, label = (jnp.arange(size, dtype=jnp.int32) for size in logits.shape[1:3])
    left = lattice.target_lengths[:, None, None] - label[None, None]
    own = (time[None, :, None] < lattice.input_lengths[:, None, None]) & (left >= 0)
    # From the logits as stored: compilers would write out masked or widened copies.
    (shift,) = widened(_CLASSES.max(logits))
    log_normalizer, *picked = _class_sums(logits, shift, lattice.labels[:, None], own, blank)
    lowest = log_zero(shift.dtype)
    blanks, labels = (jnp.maximum(logit - shift - log_normalizer, lowest) for logit in picked)
    return jnp.where(own, blanks, 0), jnp.where(own & (left > 0), labels, lowest)


@functools.partial(jax.custom_jvp, nondiff_argnums=(4,))
def _class_sums(
    logits: jax.Array, shift: jax.Array, labels: jax.Array, own: jax.Array, blank: int
) -> tuple[jax.Array, ...]:
    """Returns log Σ exp(logits - shift) over the classes, and the logits of the blank and of the label.

    Only a sample's own nodes have derivatives. The three sums are one reduction of the logits as stored: a
    gather would copy them on a TPU, and further reductions would copy them on a CPU.
    """
    (logits,) = widened(logits)
    terms = jnp.exp(logits - _CLASSES.expand(shift)), *_picked(logits, labels, blank)
    zero = jnp.zeros((), logits.dtype)
    normalizer, *picked = lax.reduce(terms, (zero,) * 3, lambda x, y: tuple(map(jnp.add, x, y)), (3,))
    return jnp.log(normalizer), *picked


def _picked(scores: jax.Array, labels: jax.Array, blank: int) -> list[jax.Array]:
    """Returns the scores with 0 for all classes except the blank, and with 0 for all except the label."""
    chosen = jnp.full_like(labels, blank), labels
    return [jnp.where(_CLASSES.one_hot(index, scores), scores, 0) for index in chosen]


@_class_sums.defjvp
def _class_sums_jvp(blank: int, primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[Any, Any]:
    logits, shift, labels, own = primals
    found = _class_sums(*primals, blank)

    # The backward pass recomputes the probabilities, which have the shape of the logits and a wider dtype.
    @functools.partial(jax.checkpoint, prevent_cse=False)
    def sums(logits: jax.Array, log_normalizer: jax.Array, tangent: jax.Array) -> tuple[jax.Array, ...]:
        logits, tangent = widened(logits, tangent)
        log_probs = logits - _CLASSES.expand(shift) - _CLASSES.expand(log_normalizer)
        probs = jnp.exp(jnp.where(_CLASSES.expand(own), log_probs, -jnp.inf))
        return tuple(map(_CLASSES.sum, (probs * tangent, *_picked(tangent, labels, blank))))

    return found, sums(logits, found[0], tangents[0])


def _log_likelihood(blanks: jax.Array, labels: jax.Array, lattice: _Lattice) -> jax.Array:
    """Returns the log-probability of all paths, from the scores of their steps.

    Every step goes from one diagonal of equal t + u to the next. The memory is that of one diagonal for each
    step: the backward pass recomputes the arithmetic.
    """
    lowest = log_zero(blanks.dtype)
    label = jnp.arange(blanks.shape[2], dtype=jnp.int32)[None]

    def step(before: jax.Array, scores: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, None]:
        read, emitted = (before + score for score in scores)
        emitted = jnp.pad(emitted[:, :-1], [(0, 0), (1, 0)], constant_values=lowest)
        return jnp.maximum(log_add_exp(read, emitted), lowest), None

    # The zeros are sharded like the scores.
    start = jnp.where(label == 0, jnp.zeros_like(jnp.sum(blanks, 1)), lowest) * lattice.validity[:, None]
    diagonals = _diagonals(blanks, 0), _diagonals(labels, lowest)
    # Compiled for an H100, each diagonal takes 4.5 kernels, forward and backward together, if 2 are unrolled;
    # 9 without unrolling; 2.3 if 4 are unrolled, which takes twice as long to compile.
    state, _ = lax.scan(jax.checkpoint(step, prevent_cse=False), start, diagonals, unroll=2)
    total = jnp.sum(jnp.where(label == lattice.target_lengths[:, None], state, 0), -1)
    return jnp.where(total < lowest / 2, -jnp.inf, total)


def _diagonals(scores: jax.Array, fill: float) -> jax.Array:
    """Moves scores of shape (B, T, U + 1) from (t, u) to (t + u, u), in shape (T + U, B, U + 1)."""
    samples, frames, after = scores.shape
    count = frames + after - 1
    # Rows of count + 1 numbers are read as rows of count numbers, which shifts each row by one more place.
    rows = jnp.pad(jnp.swapaxes(scores, 1, 2), [(0, 0), (0, 0), (0, after)], constant_values=fill)
    skewed = rows.reshape(samples, after * (count + 1))[:, : after * count]
    return jnp.moveaxis(skewed.reshape(samples, after, count), 2, 0)
