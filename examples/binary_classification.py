"""Binary classification: one step on random numbers, then 569 breast tumours.

In PyTorch: Linear(20, 16), ReLU() and Linear(16, 1), with BCEWithLogitsLoss() and SGD(lr=0.005).
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from sklearn.datasets import load_breast_cancer
from sklearn.metrics import accuracy_score

from examples._common import History, fit, folds, parse_arguments, save_curves, standardize
from jaxloss import binary_cross_entropy_with_logits
from jaxloss.models import BinaryClassifier
from jaxloss.training import create_train_state, train_step


def main(argv: Sequence[str] | None = None) -> float:
    """Runs the example and returns the accuracy on the held-out tumours."""
    arguments = parse_arguments(
        argv, prog="python -m examples.binary_classification", description=__doc__, steps=2000
    )
    rngs = nnx.Rngs(arguments.seed)

    inputs = jax.random.normal(rngs(), (16, 20))
    targets = jax.random.bernoulli(rngs(), shape=(16, 1)).astype(jnp.float32)
    model = BinaryClassifier(rngs=rngs)
    criterion = binary_cross_entropy_with_logits
    optimizer = optax.sgd(learning_rate=0.005)
    print(f"Initial Loss: {criterion(model(inputs), targets):.4f}")

    # What loss.backward() and optimizer.step() do, in one compiled function. It changes nothing in place:
    # the new weights are in the state that it returns.
    state = create_train_state(model, optimizer)
    state, _ = train_step(state, inputs, targets, loss=criterion)
    nnx.update(model, state.params)
    print(f"Loss after one optimization step: {criterion(model(inputs), targets):.4f}")

    # Means and standard errors of ten measurements of each tumour's cell nuclei, and whether it is benign.
    optimizer = optax.sgd(learning_rate=0.1)
    histories: list[History] = []
    for inputs, targets, test_inputs, test_targets in folds(load_breast_cancer, arguments.seed):
        inputs, test_inputs = standardize(inputs[:, :20], test_inputs[:, :20])
        targets = targets[:, None]
        history = fit(
            BinaryClassifier(rngs=rngs),
            optimizer,
            (inputs, targets, test_inputs, test_targets),
            loss=criterion,
            metric=_accuracy,
            batch_size=16,
            arguments=arguments,
            fold=len(histories) + 1,
        )
        histories.append(history)
    save_curves(
        histories, "accuracy on held-out tumours", "Binary classification of breast tumours", arguments.plot
    )
    accuracy = float(np.mean([history.metrics[-1] for history in histories]))
    print(f"Accuracy on held-out tumours: {accuracy:.3f}")
    return accuracy


def _accuracy(targets: np.ndarray, logits: jax.Array) -> float:
    return float(accuracy_score(targets, logits > 0))  # a probability above one half


if __name__ == "__main__":
    main()
