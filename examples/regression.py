"""Linear regression: one step on random numbers, then diabetes in 442 patients.

In PyTorch: Linear(10, 1), with MSELoss() and SGD(lr=0.01).
"""

from collections.abc import Sequence

import jax
import numpy as np
import optax
from flax import nnx
from sklearn.datasets import load_diabetes
from sklearn.metrics import r2_score

from examples._common import History, fit, folds, parse_arguments, save_curves, standardize
from jaxloss import mse_loss
from jaxloss.models import LinearRegression
from jaxloss.training import create_train_state, train_step


def main(argv: Sequence[str] | None = None) -> float:
    """Runs the example and returns R² on the held-out patients."""
    arguments = parse_arguments(argv, prog="python -m examples.regression", description=__doc__, steps=500)
    rngs = nnx.Rngs(arguments.seed)

    inputs = jax.random.normal(rngs(), (32, 10))
    targets = jax.random.normal(rngs(), (32, 1))
    model = LinearRegression(rngs=rngs)
    criterion = mse_loss
    optimizer = optax.sgd(learning_rate=0.01)
    print(f"Initial Loss: {criterion(model(inputs), targets):.4f}")

    # What loss.backward() and optimizer.step() do, in one compiled function. It changes nothing in place:
    # the new weights are in the state that it returns.
    state = create_train_state(model, optimizer)
    state, _ = train_step(state, inputs, targets, loss=criterion)
    nnx.update(model, state.params)
    print(f"Loss after one optimization step: {criterion(model(inputs), targets):.4f}")

    # Ten measurements of each patient, and how far the disease has come a year later.
    histories: list[History] = []
    for inputs, targets, test_inputs, test_targets in folds(load_diabetes, arguments.seed):
        inputs, test_inputs = standardize(inputs, test_inputs)
        targets, test_targets = standardize(targets[:, None], test_targets[:, None])
        history = fit(
            LinearRegression(rngs=rngs),
            optimizer,
            (inputs, targets, test_inputs, test_targets),
            loss=criterion,
            metric=r2_score,
            batch_size=32,
            arguments=arguments,
            fold=len(histories) + 1,
        )
        histories.append(history)
    save_curves(
        histories, "R² on held-out patients", "Linear regression on the diabetes data", arguments.plot
    )
    r2 = float(np.mean([history.metrics[-1] for history in histories]))
    print(f"R² on held-out patients: {r2:.3f}")
    return r2


if __name__ == "__main__":
    main()
