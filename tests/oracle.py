"""Reference values of a catalogue entry: PyTorch's recorded answers or, beyond PyTorch, a formula."""

from decimal import Decimal, localcontext

import numpy as np

from tests import formulas, torch_oracle
from tests.case import Case, cotangent

RECORD = torch_oracle.read()
_COMPUTED: dict[str, dict[str, np.ndarray]] = {}


def truth(case: Case, reduction: str, name: str) -> np.ndarray:
    """Returns the true value, or the gradient with respect to the argument `name`, in float64."""
    if not case.is_beyond_pytorch:
        return RECORD[f"{case.name}/float64/{reduction}/{name}"]
    if case.name not in _COMPUTED:
        with localcontext(formulas.CONTEXT):
            _COMPUTED[case.name] = _answers(case)
    return _COMPUTED[case.name][f"{reduction}/{name}"]


def in_float32(case: Case, reduction: str, name: str) -> np.ndarray:
    """Returns PyTorch's answer in float32; beyond PyTorch, the truth."""
    if not case.is_beyond_pytorch:
        return RECORD[f"{case.name}/float32/{reduction}/{name}"]
    return truth(case, reduction, name)


def decimals(array: np.ndarray) -> np.ndarray:
    """Returns an array of Python numbers, floating-point ones as decimals."""
    return np.vectorize(Decimal, otypes=[object])(array) if array.dtype.kind == "f" else array.astype(object)


def _answers(case: Case) -> dict[str, np.ndarray]:
    """Returns the formula's values and gradients: "reduction/name" to array."""
    arrays = {name: decimals(array) for name, array in case.arrays.items()}
    point = np.concatenate([arrays[name].ravel() for name in case.gradients])
    losses = formulas.evaluate_batch(case.loss, arrays, case.options).losses
    weights = decimals(cotangent(losses.shape))

    def reduced(point: np.ndarray) -> np.ndarray:
        losses, weight, share = formulas.evaluate_batch(case.loss, case.at_point(arrays, point), case.options)
        total = np.sum(losses * share)
        return np.array([np.sum(losses * weights), total / np.sum(weight), total])

    formula = formulas.FiniteDifferences(reduced, point)
    _, mean, total = formula(point)
    answers = {"none/value": losses, "mean/value": mean, "sum/value": total}
    for reduction, slopes in zip(("none", "mean", "sum"), formula.slopes(point).T, strict=True):
        moved = case.at_point(arrays, slopes)
        answers |= {f"{reduction}/{name}": moved[name] for name in case.gradients}
    return {name: np.asarray(answer).astype(float) for name, answer in answers.items()}
