"""All examples on one device, in turn. Each also runs alone, as in `python -m examples.regression`."""

from collections.abc import Sequence

from examples import (
    binary_classification,
    classification,
    contrastive,
    language_model,
    preference,
    quantile_regression,
    regression,
    segmentation,
)
from examples._common import parse_arguments

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
    """Runs every example; a plot is saved once for each, with its name appended to that of the file."""
    arguments = parse_arguments(argv, prog="python -m examples", description=__doc__, steps=None)
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
        example.main(options)


if __name__ == "__main__":
    main()
