"""The examples run with few steps, learn from the first one, and answer their command line."""

import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest

from examples import __main__, binary_classification, classification, regression

EXAMPLES = [regression, classification, binary_classification]
LOSSES = re.compile(
    r"^Initial Loss: (\d+\.\d{4})\nLoss after one optimization step: (\d+\.\d{4})\n", re.MULTILINE
)


@pytest.mark.parametrize("example", EXAMPLES)
@pytest.mark.parametrize("seed", range(3))
def test_one_step_lowers_the_loss(example, seed, capsys):
    metric = example.main(["--steps", "3", "--seed", str(seed)])
    [(before, after)] = LOSSES.findall(capsys.readouterr().out)
    assert float(after) < float(before)
    assert np.isfinite(metric)


@pytest.mark.parametrize(
    ("example", "metric"), [(regression, 0.45), (classification, 0.97), (binary_classification, 0.95)]
)
def test_the_default_number_of_steps_suffices(example, metric):
    assert example.main([]) > metric


def test_all_run_one_after_the_other_and_draw_a_plot_each(tmp_path, capsys):
    __main__.main(["--steps", "3", "--plot", str(tmp_path / "loss.png")])
    output = capsys.readouterr().out
    assert len(LOSSES.findall(output)) == 3
    assert len(re.findall(r"^(?:R²|Accuracy) on held-out \w+: -?\d\.\d{3}$", output, re.MULTILINE)) == 3
    for name in ("regression", "classification", "binary_classification"):
        assert (tmp_path / f"loss_{name}.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("example", [*EXAMPLES, __main__])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--steps", "0"], "argument --steps: must be at least 1, got 0"),
        (["--steps", "-5"], "argument --steps: must be at least 1, got -5"),
        (["--steps", "many"], "argument --steps: invalid integer value: 'many'"),
        (["--seed", "-1"], "argument --seed: must be at least 0, got -1"),
        (["--plot", "no/such/loss.png"], "argument --plot: there is no folder no/such"),
    ],
)
def test_a_wrong_option_is_named(example, options, message, capsys):
    with pytest.raises(SystemExit):
        example.main(options)
    assert message in capsys.readouterr().err


@pytest.mark.parametrize("example", EXAMPLES)
def test_help(example, capsys):
    with pytest.raises(SystemExit, match=r"^0$"):
        example.main(["--help"])
    assert is_help(capsys.readouterr().out, example.__name__)


def test_help_of_all_in_a_process_of_its_own():
    answer = subprocess.run(
        [sys.executable, "-m", "examples", "--help"],
        cwd=pathlib.Path(__file__).parents[1],
        capture_output=True,
        check=True,
        text=True,
        timeout=120,
    )
    assert is_help(answer.stdout, "examples")


def is_help(text, module):
    return text.startswith(f"usage: python -m {module} ") and {"--steps", "--seed", "--plot"} <= set(
        text.split()
    )
