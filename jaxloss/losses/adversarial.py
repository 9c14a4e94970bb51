"""Losses of generative adversarial networks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import jax
from jax.typing import ArrayLike

from jaxloss._core.arguments import agree, refuse_unknown
from jaxloss._core.decorator import compiled
from jaxloss._core.derivatives import positive_part, softplus, square
from jaxloss._core.reduction import Reduction, reduce_elementwise

AdversarialKind = Literal["non_saturating", "hinge", "wasserstein", "least_squares"]


@compiled(static=("kind", "reduction"))
def discriminator_loss(
    real: ArrayLike,
    fake: ArrayLike,
    *,
    kind: AdversarialKind = "non_saturating",
    where: ArrayLike | None = None,
    reduction: Reduction = "mean",
) -> jax.Array:
    """Discriminator loss of a generative adversarial network (GAN).

    With r = real, f = fake and softplus(x) = log(1 + exp(x)), the loss by `kind` is

        "non_saturating"    softplus(-r) + softplus(f)
        "hinge"             max(0, 1 - r) + max(0, 1 + f)
        "wasserstein"       f - r
        "least_squares"     (r - 1)² + f²

    Args:
        real: The discriminator's logits for real samples, any shape; larger means more real.
        fake: The discriminator's logits for generated samples, of the shape of `real`. Apply
            `jax.lax.stop_gradient` to these samples.
        kind: The variant, static.
        where: Mask, broadcast to the shape of `real`; see `help(jaxloss)`.
        reduction: "mean" (divides by the number of pairs), "sum", "none" or "sum_and_weight".

    Returns:
        A scalar, or an array of the shape of `real` for "none".

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxloss
        >>> jaxloss.discriminator_loss(jnp.array([2.0, 0.5]), jnp.array([-1.0, 0.0]), kind="hinge")
        Array(0.75, dtype=float32)

    Source:
        I. Goodfellow et al. (2014), Generative Adversarial Nets. J. H. Lim and J. C. Ye (2017), Geometric
        GAN. M. Arjovsky et al. (2017), Wasserstein GAN. X. Mao et al. (2017), Least Squares GAN.
    """
    refuse_unknown("kind", kind, AdversarialKind)
    of_real, of_fake = _DISCRIMINATOR[kind]
    arrays = agree(real=real, fake=fake)
    return reduce_elementwise(
        lambda real, fake: of_real(real) + of_fake(fake), arrays, where=where, reduction=reduction
    )


@compiled(static=("kind", "reduction"))
def generator_loss(
    fake: ArrayLike,
    *,
    kind: AdversarialKind = "non_saturating",
    where: ArrayLike | None = None,
    reduction: Reduction = "mean",
) -> jax.Array:
    """Generator loss of a generative adversarial network (GAN).

    With f = fake and softplus(x) = log(1 + exp(x)), the loss by `kind` is

        "non_saturating"             softplus(-f)
        "hinge" and "wasserstein"    -f
        "least_squares"              (f - 1)²

    Args:
        fake: The discriminator's logits for generated samples, any shape; larger means more real.
        kind: The variant, static.
        where: Mask, broadcast to the shape of `fake`; see `help(jaxloss)`.
        reduction: "mean" (divides by the number of samples), "sum", "none" or "sum_and_weight".

    Returns:
        A scalar, or an array of the shape of `fake` for "none".

    Example:
        >>> import jax.numpy as jnp
        >>> import jaxloss
        >>> jaxloss.generator_loss(jnp.array([-1.0, 0.0]))
        Array(1.0032, dtype=float32)

    Source:
        See `discriminator_loss`.
    """
    refuse_unknown("kind", kind, AdversarialKind)
    return reduce_elementwise(_GENERATOR[kind], agree(fake=fake), where=where, reduction=reduction)


def _negative(logits: jax.Array) -> jax.Array:
    return -logits


def _negative_log_sigmoid(logits: jax.Array) -> jax.Array:
    return softplus(-logits)


def _distance_from_one(logits: jax.Array) -> jax.Array:
    return square(logits - 1)


_Loss = Callable[[jax.Array], jax.Array]
_DISCRIMINATOR: dict[str, tuple[_Loss, _Loss]] = {  # for real and for generated samples
    "non_saturating": (_negative_log_sigmoid, softplus),
    "hinge": (lambda real: positive_part(1 - real), lambda fake: positive_part(1 + fake)),
    "wasserstein": (_negative, lambda fake: fake),
    "least_squares": (_distance_from_one, square),
}
_GENERATOR: dict[str, _Loss] = {
    "non_saturating": _negative_log_sigmoid,
    "hinge": _negative,
    "wasserstein": _negative,
    "least_squares": _distance_from_one,
}
