"""PyTorch's losses and parameters over twenty training steps, the reference of `tests.training.test_step`.

`python -m tests.torch_trajectories` runs the installed PyTorch and writes `torch_trajectories.npz` again.
Initial parameters and batches come from seeded NumPy generators on both sides, so the record holds only
PyTorch's results.
"""

import dataclasses
import itertools
import pathlib
from collections.abc import Iterator

import numpy as np

RECORD = pathlib.Path(__file__).with_suffix(".npz")
DTYPES = ("float32", "float64")
STEPS = 20


@dataclasses.dataclass(frozen=True)
class Run:
    """One kind of training; criterion and optimizer by their names in `torch.nn` and `torch.optim`."""

    layer_sizes: tuple[int, ...]
    batch_size: int
    criterion: str
    optimizer: str
    learning_rate: float


RUNS = {
    "regression": Run((10, 1), 32, "MSELoss", "SGD", 0.01),
    "classification": Run((784, 128, 10), 64, "CrossEntropyLoss", "Adam", 0.001),
    "binary_classification": Run((20, 16, 1), 16, "BCEWithLogitsLoss", "SGD", 0.005),
}


@dataclasses.dataclass(frozen=True)
class Trajectory:
    """The loss before each step, and the parameters after the last one, ordered as `initial_parameters`."""

    losses: np.ndarray
    parameters: list[np.ndarray]


def initial_parameters(run: Run, dtype: str) -> list[np.ndarray]:
    """Returns weight `(out, in)` and bias `(out,)` of each layer in turn, uniform in ±1/√in as in PyTorch."""
    random = np.random.RandomState(0)
    parameters = []
    for fan_in, fan_out in itertools.pairwise(run.layer_sizes):
        bound = fan_in**-0.5
        parameters += [random.uniform(-bound, bound, shape) for shape in ((fan_out, fan_in), (fan_out,))]
    return [parameter.astype(dtype) for parameter in parameters]


def batches(run: Run, dtype: str) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yields the inputs and targets of each step."""
    random = np.random.RandomState(1)
    for _ in range(STEPS):
        inputs = random.normal(size=(run.batch_size, run.layer_sizes[0])).astype(dtype)
        match run.criterion:
            case "MSELoss":
                yield inputs, random.normal(size=(run.batch_size, 1)).astype(dtype)
            case "CrossEntropyLoss":
                yield inputs, random.randint(run.layer_sizes[-1], size=run.batch_size)
            case _:
                yield inputs, random.randint(2, size=(run.batch_size, 1)).astype(dtype)


def train_in_torch(run: Run, dtype: str) -> Trajectory:
    """Trains in PyTorch."""
    import torch

    layers = []
    for fan_in, fan_out in itertools.pairwise(run.layer_sizes):
        layers += [torch.nn.Linear(fan_in, fan_out, dtype=getattr(torch, dtype)), torch.nn.ReLU()]
    model = torch.nn.Sequential(*layers[:-1])
    for parameter, initial in zip(model.parameters(), initial_parameters(run, dtype), strict=True):
        parameter.data = torch.from_numpy(initial)
    criterion = getattr(torch.nn, run.criterion)()
    optimizer = getattr(torch.optim, run.optimizer)(model.parameters(), lr=run.learning_rate)

    losses = []
    for inputs, targets in batches(run, dtype):
        optimizer.zero_grad()
        loss = criterion(model(torch.from_numpy(inputs)), torch.from_numpy(targets))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return Trajectory(
        np.array(losses, dtype), [parameter.detach().numpy() for parameter in model.parameters()]
    )


def recorded(name: str, dtype: str) -> Trajectory:
    """Reads the recorded trajectory."""
    with np.load(RECORD) as record:
        count = len(initial_parameters(RUNS[name], dtype))
        return Trajectory(
            record[f"{name}/{dtype}/losses"], [record[f"{name}/{dtype}/{index}"] for index in range(count)]
        )


def main() -> None:
    """Trains every run in every dtype in PyTorch and writes the record."""
    record = {}
    for (name, run), dtype in itertools.product(RUNS.items(), DTYPES):
        trajectory = train_in_torch(run, dtype)
        record[f"{name}/{dtype}/losses"] = trajectory.losses
        record |= {f"{name}/{dtype}/{index}": array for index, array in enumerate(trajectory.parameters)}
    np.savez_compressed(RECORD, **record)


if __name__ == "__main__":
    main()
