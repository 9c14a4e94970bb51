"""The command line of the examples: invalid options are named, and `--help` lists all options."""

import subprocess
import sys

import pytest

from examples import __main__
from tests.test_documentation import ROOT

EXAMPLES = __main__.EXAMPLES


@pytest.mark.parametrize("example", [*EXAMPLES, __main__])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--steps", "0"], "argument --steps: must be at least 1, got 0"),
        (["--steps", "-5"], "argument --steps: must be at least 1, got -5"),
        (["--steps", "many"], "argument --steps: invalid integer value: 'many'"),
        (["--seed", "-1"], "argument --seed: must be at least 0, got -1"),
        (["--plot", "no/such/loss.png"], "argument --plot: there is no folder no/such"),
        (["--plot", "loss"], "argument --plot: 'loss' must end in a format, such as .png; there are eps, "),
        (["--plot", "loss.txt"], "argument --plot: 'loss.txt' must end in a format, such as .png"),
    ],
)
def test_invalid_options_are_named(example, options, message, capsys):
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
        cwd=ROOT,
        capture_output=True,
        check=True,
        text=True,
        timeout=120,
    )
    assert is_help(answer.stdout, "examples")


def is_help(text, module):
    return text.startswith(f"usage: python -m {module} ") and {
        "--steps",
        "--seed",
        "--plot",
        "--checkpoint",
    } <= set(text.split())
