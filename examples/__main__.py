"""All examples but data_parallel, in turn. Each also runs alone, as in `python -m examples.regression`."""

import time
from collections.abc import Sequence

from examples import (
    STARTED,
    binary_classification,
    classification,
    contrastive,
    language_model,
    preference,
    quantile_regression,
    regression,
    segmentation,
)
from examples._common import Result, parse_arguments

EXAMPLES = (
    regression,
    classification,
    binary_classification,
    quantile_regression,
    segmentation,
    contrastive,
    language_model,
    preference,
)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs every example; with --plot, each appends its name to that of the file."""
    arguments = parse_arguments(argv, prog="python -m examples", description=__doc__, steps=None)
    results: dict[str, tuple[Result, float]] = {}
    for example in EXAMPLES:
        name = example.__name__.removeprefix("examples.")
        options = ["--seed", str(arguments.seed)]
        if arguments.steps:
            options += ["--steps", str(arguments.steps)]
        if arguments.checkpoint:
            options += ["--checkpoint", str(arguments.checkpoint / name)]
        if arguments.plot:
            options += ["--plot", str(arguments.plot.with_stem(f"{arguments.plot.stem}_{name}"))]
        print(f"\n{name.replace('_', ' ').capitalize()}\n{'-' * len(name)}")
        started = time.perf_counter()
        result = example.main(options)
        results[name] = result, time.perf_counter() - started
    print_summary(results)


def print_summary(results: dict[str, tuple[Result, float]]) -> None:
    """Prints a table of the results, their baselines and the times."""
    rows = [("example", "quantity", "result", "baseline", "", "seconds")]
    for name, (result, seconds) in results.items():
        value, baseline_value = (
            format(number, result.form) for number in (result.value, result.baseline_value)
        )
        rows.append((name, result.quantity, value, result.baseline, baseline_value, f"{seconds:.1f}"))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    print("\nSummary\n-------")
    for row in rows:
        cells = [f"{cell:{side}{width}}" for cell, side, width in zip(row, "<<><>>", widths, strict=True)]
        print("  ".join(cells))
    print(f"All examples: {time.perf_counter() - STARTED:.1f} s, with imports")


if __name__ == "__main__":
    main()
