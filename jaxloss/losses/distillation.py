"""Losses of a student that learns the predictions of a teacher."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from jaxloss._core.arguments import arithmetic_dtype, laid_out_as_first_split
from jaxloss._core.blocks import Layer
from jaxloss._core.classes import ClassAxis, per_class
from jaxloss._core.decorator import compiled, positive_and_finite
from jaxloss._core.projection import divergence, features_and_kernel
from jaxloss._core.reduction import Reduction, reduce_losses


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
    """Distillation loss of two linear layers' outputs, without holding their logits.

    With p = softmax((teacher_hidden · teacher_kernel + teacher_bias) / temperature) and
    q = softmax((hidden · kernel + bias) / temperature) at each position,

        loss = temperature² · Σ_c p[c] · (log p[c] - log q[c])

    Logits are computed in blocks, and again for the gradient, so that they are never all held. If a layer's
    features and kernel are bfloat16, so are the factors of its products; the sums are float32. Gradients flow
    to the teacher, too: `jax.lax.stop_gradient` freezes it.

    Args:
        hidden: Input of the student's last layer, shape (..., H).
        kernel: Weights of the student's last layer, shape (H, V) for V classes.
        teacher_hidden: Input of the teacher's last layer, shape (..., G), for the same positions.
        teacher_kernel: Weights of the teacher's last layer, shape (G, V).
        bias: Bias of the student's last layer, shape (V,). Default: none. A class of bias -inf in both layers
            adds nothing.
        teacher_bias: Bias of the teacher's last layer, shape (V,). Default: none.
        temperature: Finite number > 0, by which the logits of both are divided.
        where: Mask, broadcast to the shape of `hidden` without its last axis; see `help(jaxloss)`.
        reduction: "mean" (divides by the number of positions), "sum", "none" or "sum_and_weight".
        axis_name: Mesh axis that splits the classes inside `jax.shard_map`; see `help(jaxloss)`.

    Returns:
        A scalar, or an array of the shape of `hidden` without its last axis for "none"; in nats.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> import jaxloss
        >>> hidden, teacher_hidden = jnp.ones((2, 8)), jnp.ones((2, 16))
        >>> kernel, teacher_kernel = jnp.zeros((8, 50_000)), jnp.zeros((16, 50_000)).at[:, 0].set(1.0)
        >>> jaxloss.linear_distillation_loss(hidden, kernel, teacher_hidden, teacher_kernel)
        Array(8.8218, dtype=float32)

    Differences from other libraries:
        * The mean is over positions, as "batchmean" of `torch.nn.functional.kl_div`, whose "mean" divides by
          the number of classes, too.

    Source:
        G. Hinton, O. Vinyals and J. Dean (2015), Distilling the Knowledge in a Neural Network.
    """
    hidden, kernel = features_and_kernel(hidden, kernel)
    teacher_hidden, teacher_kernel = features_and_kernel(
        teacher_hidden, teacher_kernel, "teacher_hidden", "teacher_kernel"
    )
    _refuse_misfit(hidden, kernel, teacher_hidden, teacher_kernel)
    hidden, teacher_hidden = laid_out_as_first_split([hidden, teacher_hidden])
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
    """Raises where student and teacher differ in their positions or classes."""
    if teacher_hidden.shape[:-1] != hidden.shape[:-1]:
        raise ValueError(
            "teacher_hidden must have the shape of hidden but for its last axis, got teacher_hidden "
            f"{teacher_hidden.shape} and hidden {hidden.shape}"
        )
    if teacher_kernel.shape[1] != kernel.shape[1]:
        raise ValueError(
            "teacher_kernel must have as many classes as kernel, got teacher_kernel "
            f"{teacher_kernel.shape} and kernel {kernel.shape}"
        )
