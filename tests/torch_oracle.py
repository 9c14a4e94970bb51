"""PyTorch's answers to the catalogue: recorded in files, and computed live where torch is installed.

`python -m tests.torch_oracle` writes the records again.
"""

import functools
import importlib.util
import inspect
import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

import jaxloss
from tests.catalogue import CASES, REDUCTIONS, Case, cotangent
from tests.situation import direction, dtype_of, reduction_in
from tests.situations import SUBJECTS

RECORD = Path(__file__).with_name("torch_answers.npz")
VERSION = "2.13"
EDGES = Path(__file__).with_name("torch_edges.json")
SIGNATURES = Path(__file__).with_name("torch_signatures.json")
# PyTorch's mean of these over an empty batch is uninitialized memory.
UNWRITTEN = {"multi_margin_loss", "multilabel_margin_loss"}
IS_INSTALLED = importlib.util.find_spec("torch") is not None


def torch_answer(case: Case, dtype: str, reduction: str) -> dict[str, np.ndarray]:
    """Returns PyTorch's value under "value" and its gradients under the argument names."""
    import torch

    arrays = {
        name: np.moveaxis(array, case.axis, 1) if _is_moved(case, array) else array
        for name, array in case.arrays.items()
    }
    tensors = _tensors(case, arrays, dtype)
    value = _call(case, tensors, reduction)
    contracted = value
    if case.loss == "ctc_loss":
        # PyTorch adds exp(log_probs) to the derivative. A shift by -40 makes that term negligible and leaves
        # the derivative itself unchanged.
        contracted = _call(case, {**tensors, "log_probs": tensors["log_probs"] - 40}, reduction)
    (contracted * torch.tensor(cotangent(tuple(value.shape)), dtype=value.dtype)).sum().backward()
    answer = {"value": value.detach().numpy()}
    for name in case.gradients:
        gradient = tensors[name].grad
        if gradient is None:  # a tail without any of the labels
            gradient = torch.zeros_like(tensors[name])
        gradient = gradient.numpy()
        answer[name] = np.moveaxis(gradient, 1, case.axis) if _is_moved(case, case.arrays[name]) else gradient
    return answer


def _is_moved(case: Case, array: np.ndarray) -> bool:
    """Whether the class axis must be moved to axis 1 for PyTorch."""
    has_classes = array.shape == next(iter(case.arrays.values())).shape
    return case.axis is not None and array.ndim > 1 and has_classes


def _tensors(case: Case, arrays: Mapping[str, np.ndarray], dtype: str) -> dict[str, Any]:
    """Returns the arrays as tensors, floating-point ones in `dtype`, with gradients where needed."""
    import torch

    def tensor(name: str, array: np.ndarray) -> Any:
        is_floating = array.dtype.kind == "f"
        made = torch.tensor(array.astype(float) if is_floating else array)
        made = made.to(getattr(torch, dtype) if is_floating else torch.int64)
        return made.requires_grad_(name in case.gradients)

    return {name: tensor(name, array) for name, array in arrays.items()}


def _call(case: Case, tensors: Mapping[str, Any], reduction: str | None) -> Any:
    """Calls PyTorch's loss; `reduction` is None for a function without that option."""
    import torch

    own = ("axis", "where")
    options: dict[str, Any] = {name: value for name, value in case.options.items() if name not in own}
    if case.loss == "cosine_similarity":
        options["dim"] = -1
    if reduction is not None:
        options["reduction"] = reduction
    parameters = inspect.signature(getattr(jaxloss, case.loss)).parameters
    options_of_ours = {name for name, p in parameters.items() if p.kind is inspect.Parameter.KEYWORD_ONLY}
    is_named = {name: "." in name or name in options_of_ours for name in tensors}
    positional = [tensors[name] for name in tensors if not is_named[name]]
    named = {name: tensors[name] for name in tensors if is_named[name]}
    ours = {
        "adaptive_log_softmax": _adaptive_log_softmax,
        "linear_cross_entropy": _linear_cross_entropy,
        "sigmoid_focal_loss": _sigmoid_focal_loss,
    }
    function = ours.get(case.loss) or getattr(torch.nn.functional, case.loss)
    if "z_loss" in options or "soft_cap" in options:
        function = functools.partial(_beyond_pytorch, case.loss)
    with warnings.catch_warnings():  # kl_div warns that its mean is not over the batch
        warnings.simplefilter("ignore")
        return function(*positional, **named, **options)


def _adaptive_log_softmax(
    hidden: Any, targets: Any, *, cutoffs: tuple[int, ...], reduction: str, **params: Any
) -> Any:
    """Calls PyTorch's module with jaxloss's parameters."""
    import torch

    sizes = hidden.shape[-1], cutoffs[-1] + params[f"params.tail.{len(cutoffs) - 1}.up"].shape[1]
    module = torch.nn.AdaptiveLogSoftmaxWithLoss(*sizes, cutoffs, 1.0, "params.head.bias" in params)
    places = {"head.kernel": "head.weight", "head.bias": "head.bias"}
    for i in range(len(cutoffs)):
        places |= {f"tail.{i}.down": f"tail.{i}.0.weight", f"tail.{i}.up": f"tail.{i}.1.weight"}
    weights = {places[name.removeprefix("params.")]: tensor.t() for name, tensor in params.items()}
    output, mean = torch.func.functional_call(module, weights, (hidden, targets))
    return {"none": -output, "sum": -output.sum(), "mean": mean}[reduction]


def _sigmoid_focal_loss(
    logits: Any, targets: Any, *, alpha: float | None = 0.25, gamma: float = 2.0, reduction: str
) -> Any:
    """Computes torchvision's formula; the loss is not part of PyTorch."""
    import torch

    p = torch.sigmoid(logits)
    p_t = p * targets + (1 - p) * (1 - targets)
    losses = torch.nn.functional.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    losses = losses * (1 - p_t) ** gamma
    if alpha is not None:
        losses = losses * (alpha * targets + (1 - alpha) * (1 - targets))
    return {"none": losses, "sum": losses.sum(), "mean": losses.mean()}[reduction]


def _linear_cross_entropy(hidden: Any, kernel: Any, targets: Any, *, bias: Any = None, **options: Any) -> Any:
    """Calls PyTorch's loss; for sequences and probabilities, computes it from all logits instead."""
    import torch

    if targets.is_floating_point() or targets.ndim > 1:
        return _beyond_pytorch("linear_cross_entropy", hidden, kernel, targets, bias=bias, **options)
    return torch.nn.functional.linear_cross_entropy(hidden, kernel.T, targets, linear_bias=bias, **options)


def _beyond_pytorch(
    loss: str,
    *arrays: Any,
    bias: Any = None,
    z_loss: float = 0.0,
    soft_cap: float | None = None,
    reduction: str,
    **options: Any,
) -> Any:
    """Computes cross entropy in PyTorch with options that PyTorch's own function does not have."""
    import torch

    *layer, targets = arrays
    logits = layer[0] if loss == "cross_entropy" else layer[0] @ layer[1]
    logits = logits if bias is None else logits + bias
    logits = logits if soft_cap is None else soft_cap * torch.tanh(logits / soft_cap)
    rows = logits.flatten(0, -2)
    labels = targets.flatten(0, -2) if targets.is_floating_point() else targets.flatten()
    losses = torch.nn.functional.cross_entropy(rows, labels, reduction="none", **options)
    losses = (losses + z_loss * torch.logsumexp(rows, -1) ** 2).reshape(logits.shape[:-1])
    return {"none": losses, "sum": losses.sum(), "mean": losses.mean()}[reduction]


def torch_answer_at(case: Case, situation: str) -> dict[str, list[float]]:
    """Returns PyTorch's value, gradient and Hessian-vector product, as far as it has them.

    Gradients in several arguments are concatenated.
    """
    import torch

    tensors = _tensors(case, case.arrays, dtype_of(situation))
    moved = [tensors[name] for name in case.gradients]
    if "where" in case.options:  # PyTorch has no mask: select rows instead
        tensors = {
            name: tensor if case.is_per_class(name) else tensor.narrow(case.batch_axis(name), 0, 0)
            for name, tensor in tensors.items()
        }
    answer: dict[str, list[float]] = {}
    if situation in ("empty", "masked") and case.loss in UNWRITTEN:
        return answer
    try:
        value = _call(case, tensors, reduction_in(case, situation))
        answer["value"] = [value.item()]
        answer["gradient"], slope = _gradient(value, moved)
        answer["HVP"], _ = _gradient(torch.dot(slope, torch.tensor(direction(len(slope))).to(slope)), moved)
    except (RuntimeError, ValueError):  # invalid in PyTorch, or not differentiable
        pass
    return answer


def _gradient(scalar: Any, moved: list[Any]) -> tuple[list[float], Any]:
    import torch

    if not scalar.requires_grad:  # linear
        found = [torch.zeros_like(tensor) for tensor in moved]
    else:
        found = torch.autograd.grad(
            scalar, moved, create_graph=True, allow_unused=True, materialize_grads=True
        )
    flat = torch.cat([gradient.reshape(-1) for gradient in found])
    return flat.detach().double().tolist(), flat


def read() -> dict[str, np.ndarray]:
    """Returns the record: "case/dtype/reduction/name" to array, and "case/digest"."""
    with np.load(RECORD) as archive:
        return dict(archive)


def record() -> dict[str, np.ndarray]:
    """Computes PyTorch's answers to the whole catalogue, in the format of `read`."""
    answers = {}
    for case in (case for case in CASES if not case.is_beyond_pytorch):
        answers[f"{case.name}/digest"] = np.array(case.digest())
        for dtype in ("float64", "float32"):
            for reduction in REDUCTIONS:
                for name, array in torch_answer(case, dtype, reduction).items():
                    answers[f"{case.name}/{dtype}/{reduction}/{name}"] = array
    return answers


def edges() -> dict[str, list[dict[str, Any]]]:
    """Computes PyTorch's answers to each certificate row in each situation."""
    return {
        f"{subject.title} / {situation}": [
            {"digest": case.digest(), **torch_answer_at(case, situation)} for case in cases
        ]
        for subject in SUBJECTS
        if not subject.is_beyond_pytorch
        for situation, cases in subject.cases().items()
    }


def signatures() -> dict[str, dict[str, dict[str, Any]]]:
    """Returns options and defaults of PyTorch's losses and distances, both functions and classes."""
    import torch.nn

    every = {name: getattr(torch.nn.functional, name) for name in dir(torch.nn.functional)}
    functions = {name: _options(value) for name, value in every.items() if inspect.isroutine(value)}
    # Losses are the functions with a reduction.
    losses = {n: o for n, o in functions.items() if "reduction" in o or "dist" in n or "similarity" in n}
    classes = [*torch.nn.modules.loss.__all__, "AdaptiveLogSoftmaxWithLoss"]
    classes += torch.nn.modules.distance.__all__
    found = {"functional": losses, "nn": {name: _options(getattr(torch.nn, name)) for name in classes}}
    return json.loads(json.dumps(found))


def _options(function: Any) -> dict[str, Any]:
    try:
        parameters = inspect.signature(function).parameters.values()
    except ValueError:  # written in C++
        return {}
    return {p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty}


if __name__ == "__main__":
    np.savez_compressed(RECORD, **record())
    rows = ",\n".join(f"{json.dumps(name)}: {json.dumps(answers)}" for name, answers in edges().items())
    EDGES.write_text(f"{{\n{rows}\n}}\n")
    SIGNATURES.write_text(json.dumps(signatures(), indent=1) + "\n")
