"""Names, options and defaults are PyTorch's."""

import inspect
import json

import pytest

import jaxloss
from tests import torch_oracle
from tests.catalogue import CASES

RECORDED = json.loads(torch_oracle.SIGNATURES.read_text())
# Deprecated in PyTorch for `reduction`.
LEFT_OUT = {"size_average", "reduce"}
# What jaxloss has beyond PyTorch, with its default.
ADDED = {"axis": -1, "axis_name": None, "where": None}
# What PyTorch has as a module only.
MODULES = {"adaptive_log_softmax"}
# What is not here yet.
MISSING = {"linear_cross_entropy"}


def test_every_loss_of_pytorch_is_here():
    assert set(RECORDED) - set(vars(jaxloss)) == MISSING
    assert {case.loss for case in CASES} - set(RECORDED) == MODULES


@pytest.mark.parametrize("name", sorted({case.loss for case in CASES} - MODULES))
def test_options_and_defaults_are_pytorchs(name: str):
    parameters = inspect.signature(getattr(jaxloss, name)).parameters.values()
    ours = {p.name: p.default for p in parameters if p.default is not inspect.Parameter.empty}
    theirs = {option: default for option, default in RECORDED[name].items() if option not in LEFT_OUT}
    assert ours == theirs | {option: default for option, default in ADDED.items() if option in ours}
    assert "where" in ours


if torch_oracle.IS_INSTALLED:

    def test_the_record_is_pytorchs():
        assert torch_oracle.signatures() == RECORDED
