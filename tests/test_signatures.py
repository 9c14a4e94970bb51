"""Names, options and defaults are those of PyTorch's functions and classes."""

import inspect
import json
import re
from typing import Any

import pytest

import jaxloss
from tests import torch_oracle
from tests.catalogue import CASES
from tests.test_documentation import BEYOND, README

RECORDED = json.loads(torch_oracle.SIGNATURES.read_text())
FUNCTIONS, CLASSES = RECORDED["functional"], RECORDED["nn"]
# Deprecated in PyTorch for `reduction`.
LEFT_OUT = {"size_average", "reduce"}
# How PyTorch should chunk; ours chooses.
LEFT_OUT |= {"options"}
# What jaxloss has beyond PyTorch, with its default.
ADDED = {"axis": -1, "axis_name": None, "where": None, "z_loss": 0.0, "soft_cap": None}
# What PyTorch has as a module only.
MODULES = {"adaptive_log_softmax"}
# PyTorch's default is None there, which means this one.
MEANT = {("linear_cross_entropy", "ignore_index"): -100}
RENAMED = {"linear_bias": "bias"}
# What is not here for a reason.
NOT_HERE = {
    "pdist": "no loss, but all distances within one array: vmap of pairwise_distance",
    "NLLLoss2d": "the old name of NLLLoss",
}
# Options of PyTorch's classes that are not options of the loss.
ELSEWHERE = {
    "device": "arrays are put on devices by JAX",
    "dtype": "parameters are arrays that have one",
    "div_value": "an option of init_adaptive_log_softmax",
    "head_bias": "an option of init_adaptive_log_softmax",
    "dim": "is axis, in which classes and vectors are last",
    "out_features": "the layer of linear_cross_entropy is its argument",
}
# The README's table says which loss is which class.
LOSS_OF = {c: loss for loss, c in re.findall(r"^\| `(\w+)` \| [^|]* \| `(\w+)` \|", README, re.MULTILINE)}


def defaults(function: Any) -> dict[str, Any]:
    parameters = inspect.signature(function).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty}


def options_of(loss: str, theirs: dict[str, Any], left_out: set[str] = LEFT_OUT) -> dict[str, Any]:
    """Returns PyTorch's options under our names, with what their defaults mean."""
    found = {
        RENAMED.get(option, option): default for option, default in theirs.items() if option not in left_out
    }
    return {option: MEANT.get((loss, option), default) for option, default in found.items()}


def test_every_pytorch_loss_has_a_counterpart():
    assert set(FUNCTIONS) - set(vars(jaxloss)) - set(NOT_HERE) == set()
    assert {case.loss for case in CASES} - set(FUNCTIONS) == MODULES | {*BEYOND}
    assert set(CLASSES) - set(LOSS_OF) - set(NOT_HERE) == set()
    assert set(LOSS_OF) <= set(CLASSES)
    assert set(NOT_HERE) <= set(FUNCTIONS) | set(CLASSES)


@pytest.mark.parametrize("name", sorted({case.loss for case in CASES} - MODULES - {*BEYOND}))
def test_options_and_defaults_equal_those_of_the_function(name: str):
    ours = defaults(getattr(jaxloss, name))
    theirs = options_of(name, FUNCTIONS[name])
    assert ours == theirs | {option: default for option, default in ADDED.items() if option in ours}
    assert "where" in ours


@pytest.mark.parametrize("name", sorted(LOSS_OF))
def test_options_and_defaults_equal_those_of_the_class(name: str):
    ours = defaults(getattr(jaxloss, LOSS_OF[name]))
    theirs = options_of(LOSS_OF[name], CLASSES[name], left_out=LEFT_OUT | {*ELSEWHERE})
    if "kernel" in inspect.signature(getattr(jaxloss, LOSS_OF[name])).parameters:
        del theirs["bias"]  # whether the class's own layer has one
    assert theirs.items() <= ours.items()
    # Weights of elements are options of functions only, and PyTorch's adaptive softmax knows the mean only.
    assert ours.keys() - theirs.keys() <= ADDED.keys() | {"weight", "reduction", "bias"}


def test_init_adaptive_log_softmax_has_the_remaining_options_of_the_class():
    ours = defaults(jaxloss.init_adaptive_log_softmax)
    theirs = CLASSES["AdaptiveLogSoftmaxWithLoss"]
    assert ours == {option: theirs[option] for option in ("div_value", "head_bias")}


if torch_oracle.IS_INSTALLED:

    def test_recorded_signatures_equal_live_pytorch():
        assert torch_oracle.signatures() == RECORDED
