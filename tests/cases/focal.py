"""Focal losses."""

from collections.abc import Callable

import numpy as np

from tests.case import Arrays, add


def _binary(*shape: int) -> Callable[[np.random.RandomState], Arrays]:
    return lambda rng: {"logits": rng.randn(*shape) * 2, "targets": rng.rand(*shape)}


add("sigmoid_focal_loss", "matrix", _binary(6, 3))
add("sigmoid_focal_loss", "scalar", _binary())
add("sigmoid_focal_loss", "options", _binary(6), alpha=0.75, gamma=0.5)
add("sigmoid_focal_loss", "unweighted", _binary(6), alpha=None, gamma=1.0)
_hard = {"logits": np.array([0.0, 2.0, -3.0, 8.0, -8.0, 5.0]), "targets": np.array([1.0, 0, 1, 1, 0, 0])}
add("sigmoid_focal_loss", "hard", lambda rng: _hard)
add("sigmoid_focal_loss", "cross-entropy", _binary(6), gamma=0.0)
