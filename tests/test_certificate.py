"""The edge-case certificate is complete, correct and up to date."""

import inspect
import json

import jax
import numpy as np
import pytest

import jaxloss
from tests import certificate, torch_oracle
from tests.situations import SUBJECTS


@pytest.fixture(scope="module")
def found():
    with jax.enable_x64(True):
        return certificate.certified()


def test_every_loss_has_a_row():
    losses = {name for name in vars(jaxloss) if inspect.isfunction(getattr(jaxloss, name))}
    without = {
        "reduce",
        "linear_log_probs",
        "adaptive_log_probs",
        "adaptive_predict",
        "init_adaptive_log_softmax",
    }
    assert {subject.loss for subject in SUBJECTS} == losses - without


@pytest.mark.slow
def test_no_verdict_is_wrong(found):
    wrong = [
        (title, situation, quantity, finding.ours, finding.theirs)
        for title, situations in found.items()
        for situation, points in situations.items()
        for point in points
        for quantity, finding in point.items()
        if finding.verdict == certificate.WRONG
    ]
    assert not wrong


@pytest.mark.slow
def test_the_page_is_up_to_date(found):
    written = certificate.PAGE.read_text(encoding="utf-8")
    assert certificate.page(found).splitlines() == written.splitlines(), "run python -m tests.certificate"


if torch_oracle.IS_INSTALLED:

    def test_recorded_answers_equal_live_pytorch():
        recorded, live = json.loads(torch_oracle.EDGES.read_text()), torch_oracle.edges()
        assert live.keys() == recorded.keys()
        for name, points in recorded.items():
            for ours, theirs in zip(points, live[name], strict=True):
                assert ours.pop("digest") == theirs.pop("digest")
                assert ours.keys() == theirs.keys(), name
                for quantity, answer in ours.items():
                    np.testing.assert_allclose(answer, theirs[quantity], rtol=1e-5, atol=1e-12, err_msg=name)
