"""The benchmarks run, leave out who is absent or wrong, and README shows what they measured."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import numpy as np

from tests.benchmarks import measuring, report
from tests.benchmarks.cases import CASES, publics

ROOT = Path(__file__).parent.parent


def test_every_public_loss_is_timed():
    assert {case.loss for case in CASES} == publics()


def test_a_quick_run_appends_a_line_for_the_value_and_one_for_the_gradient(tmp_path: Path):
    output = tmp_path / "results.jsonl"
    command = [sys.executable, "-m", "tests.benchmarks", "--quick", "--output", str(output)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    records = [json.loads(line) for line in output.read_text().splitlines()]
    assert [(record["loss"], record["what"]) for record in records] == [
        (loss, what) for loss in ("mse_loss", "cross_entropy") for what in measuring.WHATS
    ]
    for record in records:
        assert record["seconds"].keys() == {"jaxloss", "jax", "optax", "floor"}
        assert record["versions"]["jax"]
        assert record["device"]
        assert report.line(record) in done.stdout


def test_peers_that_are_not_installed_are_left_out_and_said_to_be(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for record in measuring.measure("mse_loss", "small", measuring.PEERS, 1, 0):
        assert record["seconds"].keys() == {"jaxloss", "jax", "floor"}
        assert record["left_out"] == dict.fromkeys({*measuring.PEERS} - {"jax"}, "not installed")


def test_a_peer_that_is_wrong_is_left_out_and_said_to_be():
    def side(value: float, slope: float) -> measuring.Side:
        return measuring.Side(lambda: value, lambda: (value, [np.float32([slope, 1])]), lambda result: result)

    def failing() -> None:
        raise NotImplementedError("not yet\nor ever")

    sides = {
        "jaxloss": side(2, 3),
        "off": side(2.1, 3),
        "steep": side(2, 3.1),
        "none": measuring.Side(None, failing, failing),
    }
    calls, wrong = measuring._agreeing(sides, "gradient", (np.float64(2), np.float32([3, 1])))
    assert [*calls] == ["jaxloss"]
    assert wrong == {
        "off": "wrong value, 2.1 for 2",
        "steep": "wrong gradient, off by 0.033 of its greatest",
        "none": "NotImplementedError: not yet",
    }
    calls, wrong = measuring._agreeing(sides, "forward", (np.float64(2), np.float32([3, 1])))
    assert [*calls] == ["jaxloss", "steep"]


def test_readme_shows_what_was_measured():
    readme = report.README.read_text(encoding="utf-8")
    records = report.read()
    assert report.written(readme, report.table(records)) == readme
    assert readme.count("\n| `cross_entropy` | 4096, 1000 |") == len({*map(report.setting, records)})
