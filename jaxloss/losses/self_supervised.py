"""Self-supervised losses on several views of the same images, without labels or negatives."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from jaxloss._core.arguments import (
    agree,
    arithmetic_dtype,
    as_array,
    fill_masked,
    mask,
    on_automatic_axes,
    sharded_alike,
    widened,
)
from jaxloss._core.blocks import product
from jaxloss._core.checks import one_or_nan
from jaxloss._core.classes import ClassAxis, log_normalizer, per_class, tempered
from jaxloss._core.decorator import compiled, not_negative, positive
from jaxloss._core.derivatives import positive_part, power, square, weighted
from jaxloss._core.pairs import matrix
from jaxloss._core.reduction import Reduction, mean, reduce_losses


@compiled(static=("axis_name",), domains={"lambda_param": not_negative, "eps": not_negative})
def barlow_twins_loss(
    embeddings: ArrayLike,
    targets: ArrayLike,
    *,
    lambda_param: ArrayLike = 5e-3,
    eps: ArrayLike = 1e-5,
    where: ArrayLike | None = None,
    axis_name: str | None = None,
) -> jax.Array:
    """Barlow Twins loss: makes the features of two views equal, and decorrelates different features.

    With x_i and y_i the feature i of `embeddings` and `targets` over the batch,

        C_ij = cov(x_i, y_j) / √((var(x_i) + eps) · (var(y_j) + eps))
        loss = Σ_i (1 - C_ii)² + lambda_param · Σ_{i≠j} C_ij²

    where variances and covariances divide by N. The loss is a statistic of the batch, so there is no
    `reduction`: losses of parts of a batch do not add up to its loss.

    Args:
        embeddings: Features of one view, shape (N, D). An infinite embedding gives NaN.
        targets: Features of the other view, of the shape of `embeddings`. Gradients flow to them, too.
        lambda_param: Weight of the second term, a number >= 0.
        eps: Number >= 0 that is added to variances. With 0, a constant feature has correlation 0, with all
            derivatives 0. A feature whose variance overflows gives NaN.
        where: Mask, broadcast to shape (N,). A masked row does not count in any mean.
        axis_name: Mesh axis that shards the N rows inside `jax.shard_map`; the loss is that of all rows.

    Returns:
        A scalar. It is NaN with gradient 0 if no row is left.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxloss
        >>> embeddings = jnp.array([[1.0, 0.0], [0.0, 1.0], [-1.0, 1.0]])
        >>> targets = jnp.array([[1.0, 0.5], [0.0, 1.0], [-1.0, 1.0]])
        >>> jaxloss.barlow_twins_loss(embeddings, targets)
        Array(0.0075, dtype=float32)

    Source:
        J. Zbontar et al. (2021), Barlow Twins: Self-Supervised Learning via Redundancy Reduction. lightly:
        lightly.loss.BarlowTwinsLoss.
    """

    def loss(batch: _Batch, first: _View, second: _View, factor: jax.Array, eps: jax.Array) -> jax.Array:
        scales = [_scale(batch.squares(view) / batch.size, eps) for view in (first, second)]
        correlations = batch.products(first, second) / batch.size * scales[0].T * scales[1]
        on, off = jnp.diagonal(correlations), _off_diagonal(correlations)
        return jnp.sum(square(1 - on)) + factor * jnp.sum(square(off))

    return _of_batch(loss, embeddings, targets, (lambda_param, eps), where, axis_name, least=1)


@compiled(
    static=("axis_name",),
    domains={
        "lambda_param": not_negative,
        "mu_param": not_negative,
        "nu_param": not_negative,
        "eps": not_negative,
    },
)
def vicreg_loss(
    embeddings: ArrayLike,
    targets: ArrayLike,
    *,
    lambda_param: ArrayLike = 25.0,
    mu_param: ArrayLike = 25.0,
    nu_param: ArrayLike = 1.0,
    eps: ArrayLike = 1e-4,
    where: ArrayLike | None = None,
    axis_name: str | None = None,
) -> jax.Array:
    """VICReg loss: variance, invariance and covariance of the features of two views.

        invariance = (embeddings - targets)²           averaged over all elements
        variance   = max(0, 1 - √(var + eps))          averaged over both views and all features
        covariance = Σ_{i≠j} cov_ij² / D               summed over both views
        loss       = lambda_param · invariance + mu_param · variance + nu_param · covariance

    where variances and covariances over the batch divide by N - 1. The loss is a statistic of the batch, so
    there is no `reduction`: losses of parts of a batch do not add up to its loss.

    Args:
        embeddings: Features of one view, shape (N, D). An infinite embedding gives NaN.
        targets: Features of the other view, of the shape of `embeddings`. Gradients flow to them, too.
        lambda_param: Weight of the invariance, a number >= 0.
        mu_param: Weight of the variance, a number >= 0.
        nu_param: Weight of the covariance, a number >= 0.
        eps: Number >= 0 that is added to variances. With 0, the standard deviation of a constant feature has
            derivatives 0.
        where: Mask, broadcast to shape (N,). A masked row does not count in any mean.
        axis_name: Mesh axis that shards the N rows inside `jax.shard_map`; the loss is that of all rows.

    Returns:
        A scalar. It is NaN with gradient 0 if fewer than two rows are left.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxloss
        >>> embeddings = jnp.array([[1.0, 0.0], [0.0, 1.0], [-1.0, 1.0]])
        >>> jaxloss.vicreg_loss(embeddings, embeddings + 0.5)
        Array(12.0320, dtype=float32)

    Source:
        A. Bardes, J. Ponce, Y. LeCun (2022), VICReg: Variance-Invariance-Covariance Regularization for
        Self-Supervised Learning. lightly: lightly.loss.VICRegLoss.
    """

    def loss(
        batch: _Batch,
        first: _View,
        second: _View,
        factor: jax.Array,
        mu: jax.Array,
        nu: jax.Array,
        eps: jax.Array,
    ) -> jax.Array:
        features, degrees = first.values.shape[1], jnp.maximum(batch.size - 1, 1)
        errors = square(first.values - second.values)
        invariance = jnp.sum(batch.sum(errors)) / (batch.size * features)
        variance, covariance = jnp.zeros_like(invariance), jnp.zeros_like(invariance)
        for view in (first, second):
            deviations = power(batch.squares(view) / degrees + eps, 0.5)
            variance += jnp.sum(positive_part(1 - deviations)) / (2 * features)
            covariance += jnp.sum(square(_off_diagonal(batch.products(view, view) / degrees))) / features
        return factor * invariance + mu * variance + nu * covariance

    options = lambda_param, mu_param, nu_param, eps
    return _of_batch(loss, embeddings, targets, options, where, axis_name, least=2)


@compiled(static=("reduction",), domains={"student_temperature": positive, "teacher_temperature": positive})
def dino_loss(
    logits: ArrayLike,
    targets: ArrayLike,
    *,
    student_temperature: ArrayLike = 0.1,
    teacher_temperature: ArrayLike = 0.04,
    center: ArrayLike | None = None,
    where: ArrayLike | None = None,
    reduction: Reduction = "mean",
) -> jax.Array:
    """DINO loss: cross-entropy between the views of a frozen teacher and those of its student.

    With q_t = softmax((targets[t] - center) / teacher_temperature) and
    p_s = softmax(logits[s] / student_temperature) over K outputs,

        loss = mean_{s≠t} Σ_k q_t[k] · -log p_s[k]    over the pairs of views

    The first views of student and teacher must be the same views in the same order.

    Args:
        logits: The student's outputs for S views of each image, shape (S, N, K).
        targets: The teacher's outputs for T views, shape (T, N, K); no gradient flows to them or to `center`.
        student_temperature: A number > 0.
        teacher_temperature: A number > 0.
        center: Running mean of the teacher's outputs, shape (K,). Default: 0.
        where: Mask, broadcast to shape (N,).
        reduction: "mean" (divides by the number of images), "sum", "none" or "sum_and_weight".

    Returns:
        A scalar, or an array of shape (N,) for "none"; in nats.

    Raises:
        ValueError: There is no pair of different views.

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxloss
        >>> views = jnp.array([[[0.1, 0.2], [0.3, 0.1]], [[0.2, 0.1], [0.4, 0.0]]])
        >>> jaxloss.dino_loss(views, views)
        Array(0.6617, dtype=float32)

    Source:
        M. Caron et al. (2021), Emerging Properties in Self-Supervised Vision Transformers. lightly:
        lightly.loss.DINOLoss.
    """
    student, teacher = _of_views(as_array("logits", logits), as_array("targets", targets))
    views, others = student.shape[0], teacher.shape[0]
    pairs = views * others - min(views, others)
    if not pairs:
        raise ValueError(f"logits and targets must have two different views, got {views} and {others} views")
    outputs, where = ClassAxis(2, None), mask(where, student, [0, 2])
    valid = None if where is None else where[None, :, None]
    student, teacher = widened(fill_masked(valid, student), lax.stop_gradient(fill_masked(valid, teacher)))
    if center is not None:
        given = lax.stop_gradient(per_class("center", center, teacher)).astype(teacher.dtype)
        teacher = teacher - given.reshape(1, 1, -1)
    probs = jax.nn.softmax(tempered(teacher, lax.stop_gradient(teacher_temperature)))
    scores = tempered(student, student_temperature)
    shift = outputs.max(scores)
    place = lax.broadcasted_iota(jnp.int32, (views, 1, 1), 0)
    wanted = sum((place != t).astype(probs.dtype) * probs[t : t + 1] for t in range(others))
    counts = others - (place[:, :, 0] < others).astype(probs.dtype)
    nll = outputs.sum(weighted(wanted, outputs.expand(shift) - scores))
    losses = jnp.sum(counts * log_normalizer(scores, shift, outputs) + nll, 0) / pairs
    return reduce_losses(losses, None, where, reduction)


def _of_views(student: jax.Array, teacher: jax.Array) -> list[jax.Array]:
    """Checks the shapes of the outputs, and returns them sharded alike."""
    if student.ndim != 3 or teacher.ndim != 3 or student.shape[1:] != teacher.shape[1:]:
        raise ValueError(
            "logits and targets must have shapes (S, N, K) and (T, N, K), "
            f"got logits {student.shape} and targets {teacher.shape}"
        )
    return sharded_alike([student, teacher], [1, 1])


class _View(NamedTuple):
    """A view, and its rows minus a shift that cancels in every covariance."""

    values: jax.Array  # (N, D), 0 where not valid; in the dtype of arithmetic
    rows: jax.Array  # (N, D), 0 where not valid; in the dtype of products
    wide: jax.Array  # the same in the arithmetic dtype, in which gradients accumulate
    mean: jax.Array  # (1, D): of the rows


class _Batch(NamedTuple):
    """The valid rows of a batch, and sums over them."""

    valid: jax.Array  # (N,) booleans
    size: jax.Array  # number of valid rows on all devices, at least 1
    axis_name: str | None

    def sum(self, array: jax.Array) -> jax.Array:
        """Returns the sum over the rows of all devices."""
        return _of_devices(jnp.sum(array, 0, keepdims=True), self.axis_name)

    def view(self, view: jax.Array) -> _View:
        """Returns a view from rows that are 0 where not valid.

        The shift is the mean, as a constant, since sums of products of data far from 0 would cancel. bfloat16
        rows have too few digits for that to matter, and their products stay narrow only without a shift.
        """
        values = view.astype(self.size.dtype)  # converted once, so its gradient is rounded once
        average = self.sum(values) / self.size
        if view.dtype == jnp.bfloat16 and values.dtype == jnp.float32:
            return _View(values, view, values, average)
        shift = lax.stop_gradient(average)
        rows = fill_masked(self.valid[:, None], values - shift)
        return _View(values, rows, rows, average - shift)

    def squares(self, view: _View) -> jax.Array:
        """Returns the sum of the squared deviations of each feature from its mean."""
        shift = lax.stop_gradient(view.mean)
        deviations = fill_masked(self.valid[:, None], view.wide - shift)
        return self.sum(square(deviations)) - self.size * square(view.mean - shift)

    def products(self, first: _View, second: _View) -> jax.Array:
        """Returns the sums of products of deviations, for all pairs of features of two views."""
        found = product(first.rows.T, second.rows, first.wide.T, second.wide)
        return _of_devices(found, self.axis_name) - self.size * first.mean.T * second.mean


def _of_batch(
    loss: Any,
    embeddings: ArrayLike,
    targets: ArrayLike,
    options: tuple[ArrayLike, ...],
    where: ArrayLike | None,
    axis_name: str | None,
    *,
    least: int,
) -> jax.Array:
    """Returns a loss of two views, NaN with gradient 0 if fewer than `least` rows are valid."""
    first, second = agree(embeddings=matrix("embeddings", embeddings), targets=matrix("targets", targets))
    where, dtype = mask(where, first, [1]), arithmetic_dtype(first, second)
    if first.dtype != second.dtype:
        first, second = widened(first, second)
    valid = jnp.ones(first.shape[:1], bool) if where is None else jnp.broadcast_to(where, first.shape[:1])

    def of_rows(valid: jax.Array, *views: jax.Array) -> jax.Array:
        count = _of_devices(jnp.sum(valid, dtype=int), axis_name).astype(dtype)
        batch = _Batch(valid, jnp.maximum(count, 1), axis_name)
        pair = [batch.view(fill_masked(valid[:, None], view)) for view in views]
        found = loss(batch, *pair, *(jnp.asarray(option, dtype) for option in options))
        found *= one_or_nan(~jnp.isnan(found), dtype)  # so that NaN reaches the gradient of every row
        return mean(found, jnp.clip(count - (least - 1), 0, 1))

    return on_automatic_axes(of_rows, first)(valid, first, second)


def _of_devices(total: jax.Array, axis_name: str | None) -> jax.Array:
    return total if axis_name is None else lax.psum(total, axis_name)


def _scale(variance: jax.Array, eps: jax.Array) -> jax.Array:
    """Returns 1 / √(variance + eps), 0 with every derivative 0 at 0, and NaN where the variance overflows."""
    return power(variance + eps, -0.5) * one_or_nan(jnp.isfinite(variance), variance.dtype)


def _off_diagonal(square_matrix: jax.Array) -> jax.Array:
    """Returns a square matrix with 0 on its diagonal."""
    return jnp.where(jnp.eye(square_matrix.shape[0], dtype=bool), 0, square_matrix)
