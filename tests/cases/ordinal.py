"""Ordinal losses: formulas, entries and certificate rows."""

from collections.abc import Callable

import numpy as np

from tests.case import Arrays, add
from tests.formulas import beyond_pytorch, softplus, total
from tests.situation import INF, row


def binary_cross_entropy(logit, is_above):
    return softplus(-logit if is_above else logit)


@beyond_pytorch("(k),()->()")
def coral_loss(logits, targets):
    return total(binary_cross_entropy(logit, targets > k) for k, logit in enumerate(logits))


@beyond_pytorch("(k),()->(),()")
def corn_loss(logits, targets):
    asked = min(targets + 1, len(logits))
    return total(binary_cross_entropy(logits[k], targets > k) for k in range(asked)), asked


def _labelled(*shape: int) -> Callable[[np.random.RandomState], Arrays]:
    return lambda rng: {
        "logits": rng.randn(*shape, 3),
        "targets": np.arange(np.prod(shape)).reshape(shape) % 4,
    }


for _loss in ("coral_loss", "corn_loss"):
    add(_loss, "matrix", _labelled(6))
    add(_loss, "image", _labelled(2, 2))
    row(
        _loss,
        "logits targets",
        "logits",
        zeros=[([0.0, 0.0], 1)],
        plus=[([INF, 0.0], 1), ([INF, 0.0], 0)],
        minus=[([0.0, -INF], 1), ([-INF, 0.0], 2)],
        far=[([1e200, -1e200], 1), ([1e4, 1e4], 0)],
        half=[([0.5, -1.25], 2), ([-2.0, 3.0], 0)],
    )
