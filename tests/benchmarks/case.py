"""A benchmark case: a loss on arrays of several sizes, with its counterparts in other libraries.

A counterpart takes the same arrays in the same order and returns a scalar. The one-line form, `line`, is the
formula as a JAX user would write it by hand: no checks, no masks, no special treatment of infinities or ties.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

import jaxloss
from tests.case import public_losses

Loss = Callable[..., Any]


class Case(NamedTuple):
    """One loss with one set of options, at several sizes."""

    loss: str
    make: Callable[..., tuple[np.ndarray, ...]]  # takes a RandomState and the numbers of a size
    sizes: dict[str, tuple[int, ...]]
    jaxloss: Loss
    line: Loss | None
    torch: Loss  # its first argument is the module torch
    optax: Loss | None  # its first argument is the module optax
    moved: tuple[int, ...]  # the positions of the arrays that are differentiated


CASES: list[Case] = []
ELEMENTS = {"small": (1_000,), "cached": (1_000_000,), "large": (16_000_000,)}
BOXES = {"small": (1_000, 4), "cached": (100_000, 4), "large": (2_000_000, 4)}
PAIRS = {"small": (64, 64), "cached": (1024, 128), "large": (8192, 128)}
CLASSES = {"small": (64, 10), "cached": (4096, 1000), "large": (2048, 32_000)}


def add(
    loss: str,
    make: Callable[..., tuple[np.ndarray, ...]],
    sizes: dict[str, tuple[int, ...]],
    *,
    line: Loss | None,
    ours: Loss | None = None,
    torch: Loss | None = None,
    optax: Loss | None = None,
    moved: tuple[int, ...] = (0,),
) -> None:
    """Adds a case; by default PyTorch's counterpart has the same name and takes the same arguments."""

    def namesake(torch: Any, *arrays: Any) -> Any:
        return getattr(torch.nn.functional, loss)(*arrays)

    ours = ours or getattr(jaxloss, loss)
    CASES.append(Case(loss, make, sizes, ours, line, torch or namesake, optax, moved))


def publics() -> set[str]:
    """Returns the names of all public losses and distances."""
    return public_losses() | {"pairwise_distance", "cosine_similarity"}


def normal(rng: np.random.RandomState, *shape: int) -> np.ndarray:
    """Returns standard normal numbers."""
    return rng.standard_normal(shape).astype(np.float32)


def uniform(rng: np.random.RandomState, *shape: int) -> np.ndarray:
    """Returns numbers well within (0, 1)."""
    return rng.uniform(0.01, 0.99, shape).astype(np.float32)


def signs(rng: np.random.RandomState, *shape: int) -> np.ndarray:
    """Returns 1 and -1."""
    return np.where(rng.random_sample(shape) < 0.5, -1, 1).astype(np.float32)


def normals(count: int) -> Callable[..., tuple[np.ndarray, ...]]:
    """Returns a function that makes `count` arrays of standard normal numbers."""
    return lambda rng, *shape: tuple(normal(rng, *shape) for _ in range(count))


def apart(rng: np.random.RandomState, *shape: int) -> tuple[np.ndarray, ...]:
    """Returns two arrays without equal elements, where some one-line forms have a wrong derivative."""
    first = normal(rng, *shape)
    return first, first + (0.01 + np.abs(normal(rng, *shape))) * signs(rng, *shape)


def labelled(rng: np.random.RandomState, *shape: int, axis: int = -1) -> tuple[np.ndarray, ...]:
    """Returns scores and class labels."""
    return normal(rng, *shape), rng.randint(0, shape[axis], np.delete(shape, axis)).astype(np.int32)


def softplus(x: Any) -> Any:
    """Returns log(1 + exp(x)) without overflow."""
    return jnp.maximum(x, 0) + jnp.log1p(jnp.exp(-jnp.abs(x)))
