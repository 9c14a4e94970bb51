"""Names, options and defaults equal those of PyTorch's functions and classes."""

import inspect
import json
from typing import Any

import pytest

import jaxloss
from tests import torch_oracle
from tests.case import public_losses
from tests.catalogue import CASES
from tests.test_documentation import PORTED

RECORDED = json.loads(torch_oracle.SIGNATURES.read_text())
FUNCTIONS, CLASSES = RECORDED["functional"], RECORDED["nn"]
# Deprecated in PyTorch in favour of `reduction`.
OMITTED = {"size_average", "reduce"}
# Chunking options of PyTorch; jaxloss chooses block sizes itself.
OMITTED |= {"options"}
# Options that jaxloss adds, with their defaults.
ADDITIONAL = {"axis": -1, "axis_name": None, "where": None, "z_loss": 0.0, "soft_cap": None}
# Losses that PyTorch has only as a module.
MODULES = {"adaptive_log_softmax"}
# PyTorch's default is None, which stands for this value.
EFFECTIVE_DEFAULTS = {("linear_cross_entropy", "ignore_index"): -100}
RENAMED = {"linear_bias": "bias"}
# PyTorch functions and classes without a counterpart, and why.
WITHOUT_COUNTERPART = {
    "pdist": "not a loss; vmap pairwise_distance for all distances within one array",
    "NLLLoss2d": "the old name of NLLLoss",
}
# Options of PyTorch's classes that are not options of the loss, and where they are instead.
CLASS_OPTIONS_ELSEWHERE = {
    "device": "JAX places arrays on devices",
    "dtype": "the parameters are arrays, which have a dtype",
    "div_value": "an option of init_adaptive_log_softmax",
    "head_bias": "an option of init_adaptive_log_softmax",
    "dim": "named axis, -1 by default",
    "out_features": "linear_cross_entropy takes the layer's kernel",
}
LOSS_OF = {criterion: loss for loss, criterion, _ in PORTED}
BEYOND = public_losses() - {*LOSS_OF.values()}


def defaults(function: Any) -> dict[str, Any]:
    parameters = inspect.signature(function).parameters.values()
    return {p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty}


def options_of(loss: str, theirs: dict[str, Any], omitted: set[str] = OMITTED) -> dict[str, Any]:
    """Returns PyTorch's options under jaxloss's names, with their effective defaults."""
    found = {
        RENAMED.get(option, option): default for option, default in theirs.items() if option not in omitted
    }
    return {option: EFFECTIVE_DEFAULTS.get((loss, option), default) for option, default in found.items()}


def test_every_pytorch_loss_has_a_counterpart():
    assert set(FUNCTIONS) - set(vars(jaxloss)) - set(WITHOUT_COUNTERPART) == set()
    assert {case.loss for case in CASES} - set(FUNCTIONS) == MODULES | BEYOND
    assert set(CLASSES) - set(LOSS_OF) - set(WITHOUT_COUNTERPART) == set()
    assert set(LOSS_OF) <= set(CLASSES)
    assert set(WITHOUT_COUNTERPART) <= set(FUNCTIONS) | set(CLASSES)


@pytest.mark.parametrize("name", sorted({case.loss for case in CASES} - MODULES - BEYOND))
def test_options_and_defaults_equal_those_of_the_function(name: str):
    ours = defaults(getattr(jaxloss, name))
    theirs = options_of(name, FUNCTIONS[name])
    assert ours == theirs | {option: default for option, default in ADDITIONAL.items() if option in ours}
    assert "where" in ours


@pytest.mark.parametrize("name", sorted(LOSS_OF))
def test_options_and_defaults_equal_those_of_the_class(name: str):
    ours = defaults(getattr(jaxloss, LOSS_OF[name]))
    theirs = options_of(LOSS_OF[name], CLASSES[name], omitted=OMITTED | {*CLASS_OPTIONS_ELSEWHERE})
    if "kernel" in inspect.signature(getattr(jaxloss, LOSS_OF[name])).parameters:
        del theirs["bias"]  # whether the layer of the class has one
    assert theirs.items() <= ours.items()
    # Only functions have element weights, and PyTorch's adaptive softmax supports only the mean.
    assert ours.keys() - theirs.keys() <= ADDITIONAL.keys() | {"weight", "reduction", "bias"}


def test_init_adaptive_log_softmax_has_the_remaining_options_of_the_class():
    ours = defaults(jaxloss.init_adaptive_log_softmax)
    theirs = CLASSES["AdaptiveLogSoftmaxWithLoss"]
    assert ours == {option: theirs[option] for option in ("div_value", "head_bias")}


if torch_oracle.IS_INSTALLED:

    def test_recorded_signatures_equal_live_pytorch():
        assert torch_oracle.signatures() == RECORDED
