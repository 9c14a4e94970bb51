"""Distillation losses: divergences between the class distributions of a student and its teacher."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.custom_derivatives import SymbolicZero
from jax.typing import ArrayLike

from jaxloss._core.arguments import agree, arithmetic_dtype, widened, with_common_sharding
from jaxloss._core.blocks import Layer
from jaxloss._core.classes import ClassAxis, log_normalizer, per_class, tempered
from jaxloss._core.decorator import compiled, fraction, positive, positive_and_finite
from jaxloss._core.derivatives import derivatives, weighted
from jaxloss._core.projection import divergence, features_and_kernel
from jaxloss._core.reduction import Reduction, reduce_losses


@compiled(static=("axis", "reduction", "axis_name"), domains={"temperature": positive})
def distillation_loss(
    logits: ArrayLike,
    targets: ArrayLike,
    *,
    axis: int = -1,
    temperature: ArrayLike = 1.0,
    where: ArrayLike | None = None,
    reduction: Reduction = "mean",
    axis_name: str | None = None,
) -> jax.Array:
    """Knowledge distillation: Kullback-Leibler divergence of a student from its teacher.

    With s = softmax(logits / temperature) and t = softmax(targets / temperature),

        loss = temperature² · Σ_c t[c] · (log t[c] - log s[c])

    Args:
        logits: The student's raw scores, any shape with a class axis.
        targets: The teacher's raw scores, of the shape of `logits`. Gradients flow to them, too: for a fixed
            teacher, pass `jax.lax.stop_gradient(targets)`.
        axis: Class axis.
        temperature: A number > 0. The factor temperature² preserves the scale of the gradients.
        where: Mask, broadcast to the shape of `logits` without the class axis; see `help(jaxloss)`.
        reduction: "mean" (divides by the number of positions), "sum", "none" or "sum_and_weight".
        axis_name: Mesh axis that shards the classes inside `jax.shard_map`; see `help(jaxloss)`.

    Returns:
        A scalar, or an array of the shape of `logits` without the class axis for "none"; in nats.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxloss
        >>> student, teacher = jnp.array([[2.0, 1.0, 0.0]]), jnp.array([[4.0, 1.0, 0.0]])
        >>> jaxloss.distillation_loss(student, teacher, temperature=2.0)
        Array(0.4402, dtype=float32)

    Differences from PyTorch:
        * "mean" corresponds to "batchmean" of `kl_div`, whose "mean" also divides by the number of classes.
        * A class that both exclude by a logit of -inf contributes 0 with gradient 0; PyTorch gives NaN. If
          only the student excludes it, the loss is ∞ and its gradient with respect to `targets` is NaN.

    Source:
        G. Hinton, O. Vinyals, J. Dean (2015), Distilling the Knowledge in a Neural Network. PyTorch
        documentation: torch.nn.functional.kl_div.
    """
    student, teacher, classes, where = _scores(logits, targets, axis, temperature, where, axis_name)
    losses = jnp.asarray(temperature, student.dtype) ** 2 * _divergence(student, teacher, classes)
    return reduce_losses(losses, None, where, reduction)


@compiled(static=("axis", "reduction", "axis_name"), domains={"beta": fraction, "temperature": positive})
def jensen_shannon_loss(
    logits: ArrayLike,
    targets: ArrayLike,
    *,
    axis: int = -1,
    beta: ArrayLike = 0.5,
    temperature: ArrayLike = 1.0,
    where: ArrayLike | None = None,
    reduction: Reduction = "mean",
    axis_name: str | None = None,
) -> jax.Array:
    """Generalized Jensen-Shannon divergence between a student and its teacher.

    With s = softmax(logits / temperature), t = softmax(targets / temperature), m = beta · t + (1 - beta) · s
    and the Kullback-Leibler divergence KL(p‖q) = Σ_c p[c] · (log p[c] - log q[c]),

        loss = beta · KL(t‖m) + (1 - beta) · KL(s‖m)    for 0 < beta < 1
        loss = KL(t‖s)                                  for beta = 0
        loss = KL(s‖t)                                  for beta = 1

    Args:
        logits: The student's raw scores, any shape with a class axis.
        targets: The teacher's raw scores, of the shape of `logits`. Gradients flow to them, too: for a fixed
            teacher, pass `jax.lax.stop_gradient(targets)`.
        axis: Class axis.
        beta: Weight of the teacher, a number in [0, 1]. The loss is discontinuous at 0 and 1, where its
            derivative with respect to `beta` is 0.
        temperature: A number > 0.
        where: Mask, broadcast to the shape of `logits` without the class axis; see `help(jaxloss)`.
        reduction: "mean" (divides by the number of positions), "sum", "none" or "sum_and_weight".
        axis_name: Mesh axis that shards the classes inside `jax.shard_map`; see `help(jaxloss)`.

    Returns:
        A scalar, or an array of the shape of `logits` without the class axis for "none"; in nats.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxloss
        >>> student, teacher = jnp.array([[2.0, 1.0, 0.0]]), jnp.array([[4.0, 1.0, 0.0]])
        >>> jaxloss.jensen_shannon_loss(student, teacher)
        Array(0.0620, dtype=float32)

    Differences from other libraries:
        * A class that both exclude by a logit of -inf contributes 0 with gradient 0; TRL gives NaN. If one
          excludes it, the loss is finite for 0 < beta < 1. Where the loss is infinite, the gradient with
          respect to the logits of the first argument of KL is NaN.
        * There is no factor temperature², as in TRL.

    Source:
        R. Agarwal et al. (2024), On-Policy Distillation of Language Models: Learning from Self-Generated
        Mistakes. TRL: GKDTrainer.generalized_jsd_loss.
    """
    student, teacher, classes, where = _scores(logits, targets, axis, temperature, where, axis_name)
    losses = _jensen_shannon(student, teacher, jnp.asarray(beta, student.dtype), classes)
    return reduce_losses(losses, None, where, reduction)


def _scores(
    logits: ArrayLike,
    targets: ArrayLike,
    axis: int,
    temperature: ArrayLike,
    where: ArrayLike | None,
    axis_name: str | None,
) -> tuple[jax.Array, jax.Array, ClassAxis, jax.Array | None]:
    """Returns the scores of student and teacher, divided by the temperature, and axis and mask."""
    student, teacher = agree(logits=logits, targets=targets)
    classes = ClassAxis.of(axis, axis_name, "logits", student)
    where = classes.mask(where, student)
    wide = widened(*(classes.fill_masked(where, scores) for scores in (student, teacher)))
    student, teacher = (tempered(scores, temperature) for scores in wide)
    return student, teacher, classes, where


@functools.partial(jax.custom_jvp, nondiff_argnums=(2,))
def _divergence(student: jax.Array, teacher: jax.Array, classes: ClassAxis) -> jax.Array:
    """Returns KL(teacher‖student) of scores, from sums that share one pass."""
    shifts = [classes.expand(classes.max(scores)) for scores in (student, teacher)]
    student, teacher = student - shifts[0], teacher - shifts[1]
    normalizers = [classes.sum(jnp.exp(scores)) for scores in (student, teacher)]
    total = classes.sum(_relative_entropy(teacher, student))
    return total / normalizers[1] + jnp.log(normalizers[0]) - jnp.log(normalizers[1])


def _divergence_jvp(
    classes: ClassAxis, primals: tuple[Any, ...], tangents: tuple[Any, ...]
) -> tuple[jax.Array, jax.Array | float]:
    student, teacher = primals
    divergence = _divergence(student, teacher, classes)
    log_normalizers = _unshared(_log_normalizers(student, teacher, classes))
    student, teacher = _log_probs(student, teacher, log_normalizers, classes)
    of_student = jnp.exp(student) - jnp.exp(teacher)
    of_teacher = _relative_entropy(teacher, student) - jnp.exp(teacher) * classes.expand(divergence)
    return divergence, _along(tangents, (of_student, of_teacher), classes)


_divergence.defjvp(_divergence_jvp, symbolic_zeros=True)


def _along(tangents: tuple[Any, ...], slopes: tuple[jax.Array, ...], classes: ClassAxis) -> jax.Array | float:
    """Returns Σ slopes · tangents over the classes and the arrays with a tangent; other slopes may be ∞."""
    pairs = zip(slopes, tangents, strict=True)
    terms = [slope * tangent for slope, tangent in pairs if not isinstance(tangent, SymbolicZero)]
    return classes.sum(functools.reduce(jnp.add, terms)) if terms else 0.0


def _relative_entropy(log_prob: jax.Array, other: jax.Array) -> jax.Array:
    """Returns exp(log_prob) · (log_prob - other), 0 with every derivative 0 at log_prob = -∞."""
    return jnp.exp(log_prob) * jnp.where(log_prob == -jnp.inf, 0, log_prob - other)


def _log_normalizers(student: jax.Array, teacher: jax.Array, classes: ClassAxis) -> list[jax.Array]:
    """Returns log Σ exp(scores) of both."""
    shifts = [classes.max(scores) for scores in (student, teacher)]
    return [
        shift + log_normalizer(scores, shift, classes)
        for scores, shift in zip((student, teacher), shifts, strict=True)
    ]


def _unshared(log_normalizers: list[jax.Array]) -> list[jax.Array]:
    """Returns the same numbers behind a barrier, so that the gradient recomputes what depends on them.

    Otherwise XLA's GPU backend stores what value and gradient share: 2 GB in float32 for `logits` and
    `targets` of 8192 x 32000 in bfloat16, and it moves 1.8 times the bytes.
    """
    return lax.optimization_barrier(log_normalizers)


def _log_probs(
    student: jax.Array, teacher: jax.Array, log_normalizers: list[jax.Array], classes: ClassAxis
) -> tuple[jax.Array, jax.Array]:
    return student - classes.expand(log_normalizers[0]), teacher - classes.expand(log_normalizers[1])


class _Mixed(NamedTuple):
    """Probabilities, and their logarithms minus that of the mixture, 0 for probability 0."""

    student: jax.Array
    teacher: jax.Array
    student_gap: jax.Array
    teacher_gap: jax.Array

    @classmethod
    def of(
        cls,
        student: jax.Array,
        teacher: jax.Array,
        beta: jax.Array,
        log_normalizers: list[jax.Array],
        classes: ClassAxis,
    ) -> _Mixed:
        student, teacher = _log_probs(student, teacher, log_normalizers, classes)
        # Where both exclude a class, the difference would be NaN.
        odds = jnp.where((student == -jnp.inf) & (teacher == -jnp.inf), 0, student - teacher)
        beta = beta.reshape([1] * odds.ndim)
        gaps = _gap_to_mixture(-odds, 1 - beta), _gap_to_mixture(odds, beta)
        probs = jnp.exp(student), jnp.exp(teacher)
        student_gap, teacher_gap = (jnp.where(p == 0, 0, gap) for p, gap in zip(probs, gaps, strict=True))
        return cls(*probs, student_gap, teacher_gap)

    def divergences(self, classes: ClassAxis) -> tuple[jax.Array, jax.Array]:
        """Returns the divergences of student and teacher from the mixture."""
        return classes.sum(self.student * self.student_gap), classes.sum(self.teacher * self.teacher_gap)


@functools.partial(jax.custom_jvp, nondiff_argnums=(3,))
def _jensen_shannon(student: jax.Array, teacher: jax.Array, beta: jax.Array, classes: ClassAxis) -> jax.Array:
    """Returns the loss of scores; at the ends of beta the divergence from the mixture has weight 1."""
    mixed = _Mixed.of(student, teacher, beta, _log_normalizers(student, teacher, classes), classes)
    of_student, of_teacher = mixed.divergences(classes)
    return jnp.where(beta == 1, 1, 1 - beta) * of_student + jnp.where(beta == 0, 1, beta) * of_teacher


def _jensen_shannon_jvp(
    classes: ClassAxis, primals: tuple[Any, ...], tangents: tuple[Any, ...]
) -> tuple[jax.Array, jax.Array | float]:
    student, teacher, beta = primals
    log_normalizers = _log_normalizers(student, teacher, classes)
    of_student, of_teacher = _Mixed.of(student, teacher, beta, log_normalizers, classes).divergences(classes)
    found = _Mixed.of(student, teacher, beta, _unshared(log_normalizers), classes)
    # At beta 0 and 1, the mixture is one of the two and varies with it.
    apart, at_zero, at_one = found.student - found.teacher, beta == 0, beta == 1
    student_slope = found.student * (found.student_gap - classes.expand(of_student))
    teacher_slope = found.teacher * (found.teacher_gap - classes.expand(of_teacher))
    student_slope = jnp.where(at_zero, apart, jnp.where(at_one, 1, 1 - beta) * student_slope)
    teacher_slope = jnp.where(at_one, -apart, jnp.where(at_zero, 1, beta) * teacher_slope)
    tangent = _along(tangents[:2], (student_slope, teacher_slope), classes)
    if not isinstance(tangents[2], SymbolicZero):
        tangent += jnp.where(at_zero | at_one, 0, of_teacher - of_student) * tangents[2]
    return _jensen_shannon(*primals, classes), tangent


_jensen_shannon.defjvp(_jensen_shannon_jvp, symbolic_zeros=True)


def _parts(odds: jax.Array, beta: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns beta, (1 - beta) · exp(odds) and exp(odds) - 1, each divided by max(1, exp(odds))."""
    small = jnp.exp(-jnp.abs(odds))
    own, other = jnp.where(odds > 0, small, 1), jnp.where(odds > 0, 1, small)
    return beta * own, (1 - beta) * other, other - own


def _is_end(beta: jax.Array) -> jax.Array:
    return (beta == 0) | (beta == 1)


def _share_in_beta(odds: jax.Array, beta: jax.Array) -> jax.Array:
    own, other, _ = _parts(odds, beta)
    total = jnp.where(_is_end(beta), 1, own + other)
    return jnp.where(_is_end(beta), 0, jnp.exp(-jnp.abs(odds)) / total**2)


def _share_in_odds(odds: jax.Array, beta: jax.Array) -> jax.Array:
    return -_share(odds, beta) * _share(-odds, 1 - beta)


@derivatives(_share_in_odds, _share_in_beta)
def _share(odds: jax.Array, beta: jax.Array) -> jax.Array:
    """Returns beta / (beta + (1 - beta) · exp(odds))."""
    own, other, _ = _parts(odds, beta)
    return jnp.where(_is_end(beta), beta, own / jnp.where(_is_end(beta), 1, own + other))


def _gap_in_beta(odds: jax.Array, beta: jax.Array) -> jax.Array:
    own, other, difference = _parts(odds, beta)
    return jnp.where(_is_end(beta), 0, difference / jnp.where(_is_end(beta), 1, own + other))


@derivatives(lambda odds, beta: -_share(-odds, 1 - beta), _gap_in_beta)
def _gap_to_mixture(odds: jax.Array, beta: jax.Array) -> jax.Array:
    """Returns -log(beta + (1 - beta) · exp(odds))."""
    own, other, _ = _parts(odds, beta)
    mixed = -jnp.maximum(odds, 0) - jnp.log(jnp.where(_is_end(beta), 1, own + other))
    return jnp.where(_is_end(beta), -weighted(1 - beta, odds), mixed)


@compiled(static=("reduction", "axis_name"), domains={"temperature": positive_and_finite})
def linear_distillation_loss(
    hidden: ArrayLike,
    kernel: ArrayLike,
    teacher_hidden: ArrayLike,
    teacher_kernel: ArrayLike,
    *,
    bias: ArrayLike | None = None,
    teacher_bias: ArrayLike | None = None,
    temperature: ArrayLike = 1.0,
    where: ArrayLike | None = None,
    reduction: Reduction = "mean",
    axis_name: str | None = None,
) -> jax.Array:
    """Distillation loss between two linear layers' outputs, without materializing their logits.

    With p = softmax((teacher_hidden · teacher_kernel + teacher_bias) / temperature) and
    q = softmax((hidden · kernel + bias) / temperature) at each position,

        loss = temperature² · Σ_c p[c] · (log p[c] - log q[c])

    Logits are computed in blocks and recomputed for the gradient, so they are never all in memory. If a
    layer's features and kernel are bfloat16, its products have bfloat16 operands and float32 sums. Gradients
    flow to the teacher, too; apply `jax.lax.stop_gradient` to freeze it.

    Args:
        hidden: Input of the student's last layer, shape (..., H).
        kernel: Weights of the student's last layer, shape (H, V) for V classes.
        teacher_hidden: Input of the teacher's last layer, shape (..., G), for the same positions.
        teacher_kernel: Weights of the teacher's last layer, shape (G, V).
        bias: Bias of the student's last layer, shape (V,). Default: none. A class with bias -inf in both
            layers contributes 0.
        teacher_bias: Bias of the teacher's last layer, shape (V,). Default: none.
        temperature: Finite number > 0, by which the logits of both are divided.
        where: Mask, broadcast to the shape of `hidden` without its last axis; see `help(jaxloss)`.
        reduction: "mean" (divides by the number of positions), "sum", "none" or "sum_and_weight".
        axis_name: Mesh axis that shards the classes inside `jax.shard_map`; see `help(jaxloss)`.

    Returns:
        A scalar, or an array of the shape of `hidden` without its last axis for "none"; in nats.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import jaxloss
        >>> hidden, teacher_hidden = jnp.ones((2, 8)), jnp.ones((2, 16))
        >>> kernel, teacher_kernel = jnp.zeros((8, 50_000)), jnp.zeros((16, 50_000)).at[:, 0].set(1.0)
        >>> jaxloss.linear_distillation_loss(hidden, kernel, teacher_hidden, teacher_kernel)
        Array(10.7246, dtype=float32)

    Differences from other libraries:
        * "mean" corresponds to "batchmean" of `torch.nn.functional.kl_div`, whose "mean" also divides by the
          number of classes.

    Source:
        G. Hinton, O. Vinyals and J. Dean (2015), Distilling the Knowledge in a Neural Network.
    """
    hidden, kernel = features_and_kernel(hidden, kernel)
    teacher_hidden, teacher_kernel = features_and_kernel(
        teacher_hidden, teacher_kernel, "teacher_hidden", "teacher_kernel"
    )
    _refuse_misfit(hidden, kernel, teacher_hidden, teacher_kernel)
    hidden, teacher_hidden = with_common_sharding([hidden, teacher_hidden])
    bias = None if bias is None else per_class("bias", bias, kernel)
    teacher_bias = None if teacher_bias is None else per_class("teacher_bias", teacher_bias, teacher_kernel)
    arrays = [hidden, kernel, teacher_hidden, teacher_kernel, bias, teacher_bias]
    dtype = arithmetic_dtype(*(array for array in arrays if array is not None))
    where = ClassAxis(hidden.ndim - 1, None).mask(where, hidden)
    temperature = jnp.asarray(temperature, dtype)
    student = Layer(hidden, kernel, bias, position_scale=1 / temperature)
    teacher = Layer(teacher_hidden, teacher_kernel, teacher_bias, position_scale=1 / temperature)
    found = divergence(student, teacher, dtype, where, axis_name)
    return reduce_losses(temperature * temperature * found, None, where, reduction)


def _refuse_misfit(
    hidden: jax.Array, kernel: jax.Array, teacher_hidden: jax.Array, teacher_kernel: jax.Array
) -> None:
    """Raises a ValueError if student and teacher differ in their positions or classes."""
    if teacher_hidden.shape[:-1] != hidden.shape[:-1]:
        raise ValueError(
            "teacher_hidden must have the shape of hidden except for the last axis, got teacher_hidden "
            f"{teacher_hidden.shape} and hidden {hidden.shape}"
        )
    if teacher_kernel.shape[1] != kernel.shape[1]:
        raise ValueError(
            "teacher_kernel must have as many classes as kernel, got teacher_kernel "
            f"{teacher_kernel.shape} and kernel {kernel.shape}"
        )
