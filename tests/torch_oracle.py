"""What PyTorch answers to the catalogue: recorded here once, asked live where torch is installed.

`python -m tests.torch_oracle` writes the records anew, for torch 2.13.
"""

import importlib.util
import inspect
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np

import jaxloss
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
    parameters = inspect.signature(getattr(jaxloss, case.loss)).parameters
    options_of_ours = {name for name, p in parameters.items() if p.kind is inspect.Parameter.KEYWORD_ONLY}
    is_named = {name: "." in name or name in options_of_ours for name in tensors}
    positional = [tensors[name] for name in tensors if not is_named[name]]
    named = {name: tensors[name] for name in tensors if is_named[name]}

    def loss(first: Any, *others: Any) -> Any:
        is_module = case.loss == "adaptive_log_softmax"
        function = _adaptive_log_softmax if is_module else getattr(torch.nn.functional, case.loss)
        with warnings.catch_warnings():  # that the mean of kl_div is not one over the batch
            warnings.simplefilter("ignore")
            return function(first, *others, **named, **options, reduction=reduction)

    value = loss(*positional)
    # To the derivative of ctc_loss PyTorch adds exp(log_probs): so far down that is nothing, and a shift does
    # not change the derivative.
    contracted = loss(positional[0] - 40, *positional[1:]) if case.loss == "ctc_loss" else value
    (contracted * torch.tensor(cotangent(tuple(value.shape)), dtype=value.dtype)).sum().backward()
    answer = {"value": value.detach().numpy()}
    for name in case.gradients:
        gradient = tensors[name].grad
        if gradient is None:  # of a tail that holds none of the labels
            gradient = torch.zeros_like(tensors[name])
        gradient = gradient.numpy()
        moved = case.axis is not None and gradient.ndim > 1 and _has_classes(case, case.arrays[name])
        answer[name] = np.moveaxis(gradient, 1, case.axis) if moved else gradient
    return answer


def _adaptive_log_softmax(
    hidden: Any, targets: Any, *, cutoffs: tuple[int, ...], reduction: str, **params: Any
) -> Any:
    """Returns the loss of PyTorch's module with the parameters of ours."""
    import torch

    sizes = hidden.shape[-1], cutoffs[-1] + params[f"params.tail.{len(cutoffs) - 1}.up"].shape[1]
    module = torch.nn.AdaptiveLogSoftmaxWithLoss(*sizes, cutoffs, 1.0, "params.head.bias" in params)
    places = {"head.kernel": "head.weight", "head.bias": "head.bias"}
    for i in range(len(cutoffs)):
        places |= {f"tail.{i}.down": f"tail.{i}.0.weight", f"tail.{i}.up": f"tail.{i}.1.weight"}
    weights = {places[name.removeprefix("params.")]: tensor.t() for name, tensor in params.items()}
    output, mean = torch.func.functional_call(module, weights, (hidden, targets))
    return {"none": -output, "sum": -output.sum(), "mean": mean}[reduction]


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
