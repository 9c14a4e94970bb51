"""What PyTorch answers to the catalogue: recorded here once, asked live where torch is installed.

`python -m tests.torch_oracle` writes the records anew, for torch 2.13.
"""

import importlib.util
import inspect
import json
from pathlib import Path
from typing import Any

import numpy as np

from tests.catalogue import CASES, REDUCTIONS, Case, cotangent

RECORD = Path(__file__).with_name("torch_answers.npz")
SIGNATURES = Path(__file__).with_name("torch_signatures.json")
IS_INSTALLED = importlib.util.find_spec("torch") is not None


def ask(case: Case, dtype: str, reduction: str) -> dict[str, np.ndarray]:
    """Returns PyTorch's value under "value" and its gradients under the names of the arguments."""
    import torch

    def tensor(name: str, array: np.ndarray) -> Any:
        if (
            case.axis is not None
            and array.ndim > 1
            and array.shape[case.axis :]
            and _has_classes(case, array)
        ):
            array = np.moveaxis(array, case.axis, 1)
        made = torch.tensor(array, dtype=getattr(torch, dtype) if array.dtype.kind == "f" else torch.int64)
        return made.requires_grad_(name in case.gradients)

    tensors = {name: tensor(name, array) for name, array in case.arrays.items()}
    options = {name: value for name, value in case.options.items() if name != "axis"}
    positional = [tensors[name] for name in list(tensors)[:2]]
    named = dict(list(tensors.items())[2:])
    value = getattr(torch.nn.functional, case.loss)(*positional, **named, **options, reduction=reduction)
    (value * torch.tensor(cotangent(tuple(value.shape)), dtype=value.dtype)).sum().backward()
    answer = {"value": value.detach().numpy()}
    for name in case.gradients:
        gradient = tensors[name].grad.numpy()
        moved = case.axis is not None and gradient.ndim > 1 and _has_classes(case, case.arrays[name])
        answer[name] = np.moveaxis(gradient, 1, case.axis) if moved else gradient
    return answer


def _has_classes(case: Case, array: np.ndarray) -> bool:
    return array.shape == next(iter(case.arrays.values())).shape


def read() -> dict[str, np.ndarray]:
    """Returns the record: "case/dtype/reduction/name" to array, and "case/digest"."""
    with np.load(RECORD) as archive:
        return dict(archive)


def record() -> dict[str, np.ndarray]:
    """Asks PyTorch everything and returns what `read` would."""
    answers = {}
    for case in CASES:
        answers[f"{case.name}/digest"] = np.array(case.digest())
        for dtype in ("float64", "float32"):
            for reduction in REDUCTIONS:
                for name, array in ask(case, dtype, reduction).items():
                    answers[f"{case.name}/{dtype}/{reduction}/{name}"] = array
    return answers


def signatures() -> dict[str, dict[str, Any]]:
    """Returns the options of each of `torch.nn.functional`'s losses with their defaults."""
    import torch.nn.functional

    names = [
        name for name in dir(torch.nn.functional) if name.endswith(("_loss", "_entropy", "_logits", "kl_div"))
    ]
    found = {name: inspect.signature(getattr(torch.nn.functional, name)).parameters for name in names}
    return {
        name: {p.name: p.default for p in parameters.values() if p.default is not inspect.Parameter.empty}
        for name, parameters in found.items()
    }


if __name__ == "__main__":
    np.savez_compressed(RECORD, **record())
    SIGNATURES.write_text(json.dumps(signatures(), indent=1) + "\n")
