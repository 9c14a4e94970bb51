"""A row of the certificate: one loss of one sample, at the points where losses often fail."""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

import jaxloss
from tests.case import Case
from tests.formulas import BEYOND_PYTORCH

# The situations, under the names that rows use; "empty" and "masked" need no points.
SITUATIONS = {
    "zeros": "zero inputs",
    "kinks": "kinks, ties",
    "plus": "+∞",
    "minus": "-∞",
    "far": "saturated",
    "same": "identical vectors",
    "empty": "empty batch",
    "masked": "all masked",
    "float16": "float16",
    "bfloat16": "bfloat16",
}
INF = np.inf


class Point(NamedTuple):
    """One sample, and the expected answer where neither PyTorch nor a limit gives one."""

    values: tuple[Any, ...]
    above: tuple[str, ...] = ()  # arguments whose zeros are approached from above
    documented: str = ""  # the docstring's words for a NaN or a convention
    convention: Mapping[str, float] = {}  # expected entries of the value, gradient, jvp or HVP


class Subject(NamedTuple):
    """A row: one loss with options, and its points in each situation or the reason why there are none."""

    loss: str
    options: dict[str, Any]
    names: tuple[str, ...]
    moved: tuple[str, ...]
    points: dict[str, list[Point] | str]

    @property
    def title(self) -> str:
        """The name of the row: the loss, its options and its optional arrays."""
        given = [f"{name}={value}" for name, value in self.options.items()]
        given += [name for name in self.names if name in ("weight", "pos_weight")]
        soft = self.loss == "cross_entropy" and "targets" in self.moved
        return ", ".join([self.loss, *given, *(["probabilities"] if soft else [])])

    @property
    def is_beyond_pytorch(self) -> bool:
        """Whether PyTorch does not have the loss, so that the row has no PyTorch answers."""
        return self.loss in BEYOND_PYTORCH

    def cases(self) -> dict[str, list[Case]]:
        """Returns the points of each situation as catalogue entries."""
        found = {
            situation: [self._case(point.values) for point in points]
            for situation, points in self.points.items()
            if not isinstance(points, str)
        }
        if "where" in inspect.signature(getattr(jaxloss, self.loss)).parameters:
            found |= _empty_batches(found["float16"][0])
        return found

    def _case(self, values: tuple[Any, ...]) -> Case:
        arrays = {name: np.asarray(value) for name, value in zip(self.names, values, strict=True)}
        return Case(self.title, self.loss, arrays, self.options, False, self.moved)


def _empty_batches(one: Case) -> dict[str, list[Case]]:
    """Returns batches without any valid sample: no rows, all rows masked, or all labels ignored."""
    is_batch = bool(one.shape(one.arrays))  # a batch of one, if the loss does not accept a single sample

    def rows(count: int, fill: float | None = None) -> dict[str, np.ndarray]:
        filled = {n: a * fill if fill and a.dtype.kind == "f" else a for n, a in one.arrays.items()}
        if one.relates_rows:  # it is a batch already
            return {n: filled[n][:count] if n in one.batched else array for n, array in one.arrays.items()}
        axes = {name: one.batch_axis(name) for name in filled if not one.is_per_class(name)}
        batch = {n: filled[n] if is_batch else np.expand_dims(filled[n], axis) for n, axis in axes.items()}
        return one.arrays | {name: np.repeat(array, count, axes[name]) for name, array in batch.items()}

    masked = [one._replace(arrays=rows(2, np.nan), options={**one.options, "where": np.array(False)})]
    options = inspect.signature(getattr(jaxloss, one.loss)).parameters
    if "ignore_index" in options and one.arrays["targets"].dtype.kind == "i":
        masked.append(one._replace(arrays=rows(2) | {"targets": np.full_like(rows(2)["targets"], -100)}))
    return {"empty": [one._replace(arrays=rows(0))], "masked": masked}


def dtype_of(situation: str) -> str:
    """Returns the dtype in which a situation is tested; every dtype represents its numbers exactly."""
    return situation if situation in ("float16", "bfloat16") else "float64"


def reduction_in(case: Case, situation: str) -> str | None:
    """Returns the reduction: "sum" for one sample, "mean" for an empty batch, None for distances."""
    if "reduction" not in inspect.signature(getattr(jaxloss, case.loss)).parameters:
        return None
    return "mean" if situation in ("empty", "masked") else "sum"


def direction(size: int) -> np.ndarray:
    """Returns the direction of the jvp and HVP, of numbers that every dtype represents exactly."""
    return np.resize([1.0, -0.5, 0.75, 0.25, -1.25], size)


SUBJECTS: list[Subject] = []
SMOOTH, NO_VECTORS = "smooth everywhere", "takes no vectors"


def at(*values: Any, **decides: Any) -> Point:
    return Point(values, **decides)


def row(
    loss: str, names: str, moved: str, options: dict[str, Any] | None = None, **points: str | Sequence[Any]
) -> None:
    """Adds a row; each situation is a list of points (or bare values), or why it does not apply."""
    points = {"kinks": SMOOTH, "same": NO_VECTORS, **points}
    points["float16"] = points["bfloat16"] = points.pop("half")
    listed = {
        name: found if isinstance(found, str) else [p if isinstance(p, Point) else Point(p) for p in found]
        for name, found in points.items()
    }
    SUBJECTS.append(Subject(loss, options or {}, tuple(names.split()), tuple(moved.split()), listed))
