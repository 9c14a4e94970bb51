"""Losses for sequences of labels that are not aligned with the input frames."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from jaxloss._core.arguments import (
    arithmetic_dtype,
    as_array,
    fill_masked,
    have_sizes,
    index_array,
    integer,
    mask,
    sample_lengths,
    sharded_alike,
)
from jaxloss._core.checks import checked, one_or_nan
from jaxloss._core.decorator import compiled
from jaxloss._core.derivatives import log_add_exp, log_zero
from jaxloss._core.reduction import Reduction, reduce_losses


@compiled(static=("blank", "zero_infinity", "reduction"), sequences=("input_lengths", "target_lengths"))
def ctc_loss(
    log_probs: ArrayLike,
    targets: ArrayLike,
    input_lengths: ArrayLike,
    target_lengths: ArrayLike,
    *,
    blank: int = 0,
    zero_infinity: bool = False,
    where: ArrayLike | None = None,
    reduction: Reduction = "mean",
) -> jax.Array:
    """Connectionist temporal classification (CTC) loss.

    A path assigns one class to every frame. It spells the labels that remain after merging runs of equal
    classes and then removing blanks: with blank "-", both "aa-b" and "-abb" spell "ab".

        loss = -log Σ_path exp(Σ_t log_probs[t, path[t]])   over the paths that spell the targets; ∞ if none

    Args:
        log_probs: Log-probabilities, shape (T, N, C) for T frames, N samples and C classes, or (T, C) for
            one sample. A mesh with `Explicit` axes may shard only N; nothing if targets are concatenated.
        targets: Integer class labels in [0, C): padded, shape (N, S); concatenated, shape
            (Σ target_lengths,); or shape (S,) for one sample. Padding is not read.
        input_lengths: Frames per sample, integers in [0, T]: shape (N,) or (), or a list or tuple.
        target_lengths: Labels per sample, likewise; in [0, S] for padded targets.
        blank: Class of the blank, a static integer in [0, C).
        zero_infinity: Whether to replace infinite losses by 0. They still count in the mean.
        where: Mask, broadcast to the shape of `input_lengths`. Concatenated targets need all target lengths.
        reduction: "mean" of loss / max(target_lengths, 1) over the samples, "sum" of the losses, "none", or
            "sum_and_weight", the pair (Σ loss / max(target_lengths, 1), number of samples).

    Returns:
        A scalar, or an array of the shape of `input_lengths` for "none"; in nats, per label for "mean".

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxloss
        >>> log_probs = jnp.log(jnp.full((4, 1, 3), 1 / 3))  # 4 frames, 1 sample, 3 classes
        >>> targets = jnp.array([[1, 2]])  # spelt by 15 of the 81 paths
        >>> jaxloss.ctc_loss(log_probs, targets, jnp.array([4]), jnp.array([2]), reduction="sum")
        Array(1.6864, dtype=float32)

    Differences from PyTorch:
        * The gradient is that of the value even without `log_softmax` before it; PyTorch's is then larger
          by exp(log_probs) times the sample's weight. At infinite values it is 0, not NaN.
        * An out-of-range label gives NaN; PyTorch reads out of bounds. T = 0 and surplus labels are allowed.
        * Rounding never makes a loss negative, and a log-probability of +inf gives NaN.
        * Blanks in targets count as labels, also in the gradient.

    Source:
        A. Graves et al. (2006), Connectionist Temporal Classification. PyTorch documentation:
        torch.nn.CTCLoss, torch.nn.functional.ctc_loss.
    """
    log_probs, targets = _log_probs(log_probs, blank), index_array("targets", as_array("targets", targets))
    samples = log_probs.shape[1:-1]
    axes = "(time, sample, class)" if samples else "(time, class)"
    hint = f"; log_probs has axes {axes}, got shape {log_probs.shape}"
    input_lengths = sample_lengths("input_lengths", input_lengths, samples, hint)
    target_lengths = sample_lengths("target_lengths", target_lengths, samples, hint)
    if samples and targets.ndim == 2:
        log_probs, targets, input_lengths, target_lengths = sharded_alike(
            [log_probs, targets, input_lengths, target_lengths], [1, 0, 0, 0]
        )
    where = mask(where, log_probs, [0, log_probs.ndim - 1])
    spelling = _spelling(log_probs, targets, input_lengths, target_lengths, blank, where)
    own_frames = spelling.input_lengths.astype(arithmetic_dtype(log_probs))
    rounding = 8 * float(jnp.finfo(log_probs.dtype).eps) * own_frames
    losses = _without_rounding(-_log_likelihood(log_probs, spelling), rounding) * spelling.validity
    losses = losses * one_or_nan(losses != -jnp.inf, losses.dtype)  # from a log-probability of +inf
    if zero_infinity:
        losses = jnp.where(losses == jnp.inf, 0, losses)
    if reduction in ("mean", "sum_and_weight"):
        losses = losses / jnp.maximum(spelling.target_lengths, 1).astype(losses.dtype)
    return reduce_losses(losses, None, where, reduction)


def _log_probs(log_probs: ArrayLike, blank: int) -> jax.Array:
    """Returns floating-point log-probabilities, after checking the blank."""
    converted = as_array("log_probs", log_probs)
    if converted.ndim not in (2, 3):
        raise ValueError(f"log_probs must have shape (T, N, C) or (T, C), got shape {converted.shape}")
    if not 0 <= integer("blank", blank) < converted.shape[-1]:
        raise ValueError(f"blank must be a class in [0, {converted.shape[-1]}), got {blank}")
    is_floating = jnp.issubdtype(converted.dtype, jnp.floating)
    return converted if is_floating else converted.astype(arithmetic_dtype(converted))


class _Spelling(NamedTuple):
    """The labels that the paths of each sample must spell, and the lengths; all in range."""

    labels: jax.Array  # S + 1 for each sample: the blank, its labels, and blanks as padding
    input_lengths: jax.Array
    target_lengths: jax.Array
    validity: jax.Array  # 1, or NaN for a sample with a label or a length out of range


def _spelling(
    log_probs: jax.Array,
    targets: jax.Array,
    input_lengths: jax.Array,
    target_lengths: jax.Array,
    blank: int,
    where: jax.Array | None,
) -> _Spelling:
    frames, classes = log_probs.shape[0], log_probs.shape[-1]
    labels, room, expected = _padded(targets, target_lengths, log_probs)
    # A masked sample gets no labels and no frames: its loss is 0 and reads nothing.
    input_lengths, target_lengths = fill_masked(where, input_lengths), fill_masked(where, target_lengths)
    inputs_fit = (input_lengths >= 0) & (input_lengths <= frames)
    input_lengths = checked(input_lengths, inputs_fit, f"input_lengths: expected lengths in [0, {frames}]")
    targets_fit = (target_lengths >= 0) & (target_lengths <= room)
    target_lengths = checked(target_lengths, targets_fit, f"target_lengths: expected lengths {expected}")
    target_lengths = jnp.clip(target_lengths, 0, labels.shape[-1]).astype(jnp.int32)
    is_own = _positions(labels, -1) < target_lengths[..., None]
    is_class = (labels >= 0) & (labels < classes) | ~is_own
    labels = checked(labels, is_class, f"targets: expected class indices in [0, {classes})")
    valid = inputs_fit & targets_fit & jnp.all(is_class, -1)
    first = jnp.full_like(target_lengths, blank)[..., None]
    return _Spelling(
        jnp.concatenate([first, jnp.where(is_own & is_class, labels, blank).astype(jnp.int32)], -1),
        jnp.where(valid, input_lengths, frames).astype(jnp.int32),  # so that NaN reaches all gradients
        target_lengths,
        one_or_nan(valid, arithmetic_dtype(log_probs)),
    )


def _padded(
    labels: jax.Array, target_lengths: jax.Array, log_probs: jax.Array
) -> tuple[jax.Array, jax.Array, str]:
    """Returns a row of labels for each sample, its largest valid length, and the valid lengths in words."""
    samples = log_probs.shape[1:-1]
    if labels.shape[:-1] == samples and labels.ndim:
        size = labels.shape[-1]
        return labels, jnp.full_like(target_lengths, size), f"in [0, {size}]"
    if labels.ndim != 1 or not samples:
        raise ValueError(
            f"targets must have shape (N, S) or (Σ target_lengths,), or (S,) for log_probs (T, C), "
            f"got targets {labels.shape} and log_probs {log_probs.shape}"
        )
    (total,) = labels.shape
    # More than T labels are impossible in T frames, so further labels need not be read.
    size = min(total, log_probs.shape[0] + 1) if have_sizes(labels, log_probs) else total
    lengths = jnp.clip(target_lengths, 0, total).astype(jnp.int32)
    first = jnp.cumsum(lengths) - lengths
    index = first[:, None] + jnp.arange(size, dtype=first.dtype)[None]
    return (
        labels.at[index].get(mode="clip"),
        jnp.maximum(total - first, 0).astype(target_lengths.dtype),
        f">= 0 with the sum {total}",
    )


def _log_likelihood(log_probs: jax.Array, spelling: _Spelling) -> jax.Array:
    """Returns the log-probability of all paths that spell the labels.

    Let b[s] be the probability of the paths so far that spell s labels and end in a blank, l[s] of those that
    end in label s, and u[s] = b[s] + l[s]. Each frame updates b[s] from u[s], and l[s + 1] from l[s + 1] and
    u[s]. If labels s and s + 1 are equal, b[s] replaces u[s], since only a blank separates them. The memory
    is that of b and l in every frame: the backward pass recomputes the arithmetic of a frame.
    """
    labels = spelling.labels
    scores = _scores(log_probs, labels)
    is_repeat = labels[..., 1:] == labels[..., :-1]
    impossible = log_zero(scores.dtype)
    # No label is spelt before the first frame. The zeros are sharded like the scores.
    nothing = jnp.where(_positions(labels, -1) == 0, jnp.zeros_like(jnp.sum(scores, 0)), impossible)
    # After a sample's own frames come blanks of probability 1, which change nothing.
    is_own = _positions(scores, 0) < spelling.input_lengths[None, ..., None]
    scores = jnp.where(is_own, jnp.maximum(scores, impossible), nothing[None])

    def spelt(blanks: jax.Array, ends: jax.Array) -> jax.Array:
        before = jnp.concatenate([jnp.full_like(blanks[..., :1], impossible), ends], -1)
        return log_add_exp(blanks, before)

    def step(
        state: tuple[jax.Array, jax.Array], score: jax.Array
    ) -> tuple[tuple[jax.Array, jax.Array], None]:
        blanks, ends = state
        before = spelt(blanks, ends)
        origins = jnp.where(is_repeat, blanks[..., :-1], before[..., :-1])
        moved = before + score[..., :1], log_add_exp(ends, origins) + score[..., 1:]
        return (jnp.maximum(moved[0], impossible), jnp.maximum(moved[1], impossible)), None

    # Compiled for an H100, a frame takes 4.3 kernels if 4 frames are unrolled, and 11 otherwise.
    start = nothing, jnp.full_like(nothing[..., 1:], impossible)
    state, _ = lax.scan(jax.checkpoint(step, prevent_cse=False), start, scores, unroll=4)
    is_last = _positions(labels, -1) == spelling.target_lengths[..., None]
    total = jnp.sum(jnp.where(is_last, spelt(*state), 0), -1)
    return jnp.where(total < impossible / 2, -jnp.inf, total)


@jax.custom_jvp
def _scores(log_probs: jax.Array, labels: jax.Array) -> jax.Array:
    """Returns the log-probability of each sample's labels in each frame, in the dtype of arithmetic."""
    picked = jnp.take_along_axis(log_probs, labels[None], -1, mode="promise_in_bounds")
    return picked.astype(arithmetic_dtype(log_probs))


@_scores.defjvp
def _scores_jvp(primals: tuple[Any, ...], tangents: tuple[Any, ...]) -> tuple[jax.Array, jax.Array]:
    log_probs, labels = primals
    scores = _scores(log_probs, labels)
    # In the backward pass, a product with a one-hot matrix is faster than the scatter of a gather.
    classes = jnp.arange(log_probs.shape[-1], dtype=labels.dtype)
    one_hot = (labels[..., None] == jnp.expand_dims(classes, range(labels.ndim))).astype(scores.dtype)
    tangent = tangents[0].astype(scores.dtype)
    return scores, jnp.einsum("t...c,...sc->t...s", tangent, one_hot, precision=lax.Precision.HIGHEST)


def _without_rounding(losses: jax.Array, rounding: jax.Array) -> jax.Array:
    """Replaces losses that are below 0 only by rounding by 0, with unchanged derivative."""
    below = jnp.where((losses <= 0) & (losses >= -rounding), losses, 0)
    return losses - lax.stop_gradient(below)


def _positions(array: jax.Array, axis: int) -> jax.Array:
    """Returns the index along an axis, in the shape of the array."""
    return lax.broadcasted_iota(jnp.int32, array.shape, axis % array.ndim)
