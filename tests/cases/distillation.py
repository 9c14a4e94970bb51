"""Losses of a student and a teacher: formulas, entries and rows of the certificate."""

from collections.abc import Callable
from decimal import Decimal

import numpy as np

from tests.case import Arrays, add
from tests.formulas import beyond_pytorch, exp, log_softmax, times, total
from tests.situation import row


def kl_of_logits(logits, targets, temperature):
    """Returns temperature² · KL of the softmax of a teacher's logits, `targets`, from that of a student's."""
    temperature = Decimal(np.asarray(temperature, object).item())
    log_q, log_p = (log_softmax([z / temperature for z in scores]) for scores in (logits, targets))
    return temperature**2 * total(times(exp(p), p - q) for p, q in zip(log_p, log_q, strict=True))


@beyond_pytorch(None)
def linear_distillation_loss(
    hidden, kernel, teacher_hidden, teacher_kernel, bias=0, teacher_bias=0, temperature=1
):
    logits, targets = hidden @ kernel + bias, teacher_hidden @ teacher_kernel + teacher_bias
    losses = [
        kl_of_logits(logits[place], targets[place], temperature) for place in np.ndindex(logits.shape[:-1])
    ]
    return np.array(losses, object).reshape(logits.shape[:-1])


def _layers(
    *positions: int, sizes: tuple[int, int] = (3, 2), classes: int = 8, bias: bool = False
) -> Callable[[np.random.RandomState], Arrays]:
    def make(rng: np.random.RandomState) -> Arrays:
        arrays: dict[str, np.ndarray] = {}
        for name, size in zip(("", "teacher_"), sizes, strict=True):
            arrays[f"{name}hidden"] = rng.randn(*positions, size)
            arrays[f"{name}kernel"] = rng.randn(size, classes)
        if bias:
            arrays |= {name: rng.randn(classes) for name in ("bias", "teacher_bias")}
        return arrays

    return make


def _masked_vocabulary(rng: np.random.RandomState) -> Arrays:
    arrays = dict(_layers(5, bias=True)(rng))
    for name in ("bias", "teacher_bias"):
        arrays[name] = np.where(np.arange(8) % 3 == 1, -np.inf, arrays[name])
    return arrays


add("linear_distillation_loss", "rows", _layers(6))
add("linear_distillation_loss", "sequences-bias", _layers(2, 4, classes=6, bias=True), temperature=2.0)
add("linear_distillation_loss", "one", _layers(classes=5))
add(
    "linear_distillation_loss",
    "masked-vocabulary",
    _masked_vocabulary,
    smooth=False,
    gradients=("hidden", "kernel", "teacher_hidden", "teacher_kernel"),
    temperature=0.5,
)
add(
    "linear_distillation_loss",
    "temperature",
    lambda rng: {**_layers(4)(rng), "temperature": np.array(0.75)},
)

_COLUMNS = [[1.0, 0.5, -1.0], [0.25, 2.0, 1.5]]
_OTHERS = [[0.5, -1.5, 0.25], [1.0, 0.75, -0.5]]
row(
    "linear_distillation_loss",
    "hidden kernel teacher_hidden teacher_kernel",
    "hidden kernel teacher_hidden teacher_kernel",
    {"temperature": 2.0},
    zeros=[([0.0, 0.0], _COLUMNS, [0.0, 0.0], _OTHERS)],
    plus="none: an infinite feature gives NaN",
    minus="none: an infinite feature gives NaN",
    far=[([1e4, -1e4], _COLUMNS, [0.5, 1.0], _OTHERS), ([0.5, 1.0], _COLUMNS, [1e4, 1e4], _OTHERS)],
    same=[([0.5, -1.25], _COLUMNS, [0.5, -1.25], _COLUMNS)],
    half=[([0.5, -1.25], _COLUMNS, [1.0, 0.5], _OTHERS), ([3.0, -2.0], _COLUMNS, [0.5, 1.0], _OTHERS)],
)
