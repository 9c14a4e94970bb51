"""Classification: one step on random numbers, then 1797 handwritten digits.

In PyTorch: Linear(784, 128), ReLU() and Linear(128, 10), with CrossEntropyLoss() and Adam(lr=0.001).
"""

from collections.abc import Sequence

import jax
import numpy as np
import optax
from flax import nnx
from sklearn.datasets import load_digits
from sklearn.metrics import accuracy_score

from examples._common import History, fit, folds, parse_arguments, save_curves
from jaxloss import cross_entropy
from jaxloss.models import Classifier
from jaxloss.training import create_train_state, train_step


def main(argv: Sequence[str] | None = None) -> float:
    """Runs the example and returns the accuracy on the held-out digits."""
    arguments = parse_arguments(
        argv, prog="python -m examples.classification", description=__doc__, steps=1000
    )
    rngs = nnx.Rngs(arguments.seed)

    inputs = jax.random.normal(rngs(), (64, 784))
    targets = jax.random.randint(rngs(), (64,), 0, 10)
    model = Classifier(rngs=rngs)
    criterion = cross_entropy
    optimizer = optax.adam(learning_rate=0.001)
    print(f"Initial Loss: {criterion(model(inputs), targets):.4f}")

    # What loss.backward() and optimizer.step() do, in one compiled function. It changes nothing in place:
    # the new weights are in the state that it returns.
    state = create_train_state(model, optimizer)
    state, _ = train_step(state, inputs, targets, loss=criterion)
    nnx.update(model, state.params)
    print(f"Loss after one optimization step: {criterion(model(inputs), targets):.4f}")

    # Images of 8x8 pixels with values from 0 to 16, and the digit that each shows.
    histories: list[History] = []
    for inputs, targets, test_inputs, test_targets in folds(load_digits, arguments.seed):
        inputs, test_inputs = _enlarge(inputs), _enlarge(test_inputs)
        history = fit(
            Classifier(rngs=rngs),
            optimizer,
            (inputs, targets, test_inputs, test_targets),
            loss=criterion,
            metric=_accuracy,
            batch_size=64,
            arguments=arguments,
            fold=len(histories) + 1,
        )
        histories.append(history)
    save_curves(
        histories, "accuracy on held-out digits", "Classification of handwritten digits", arguments.plot
    )
    accuracy = float(np.mean([history.metrics[-1] for history in histories]))
    print(f"Accuracy on held-out digits: {accuracy:.3f}")
    return accuracy


def _accuracy(labels: np.ndarray, logits: jax.Array) -> float:
    return float(accuracy_score(labels, logits.argmax(axis=-1)))


def _enlarge(images: np.ndarray) -> np.ndarray:
    """From 8x8 pixels in [0, 16] to 28x28 in [0, 1], flattened: each pixel tripled, and a margin of 2."""
    pixels = np.kron(images.reshape(-1, 8, 8) / 16, np.ones((3, 3)))
    return np.pad(pixels, ((0, 0), (2, 2), (2, 2))).reshape(-1, 784)


if __name__ == "__main__":
    main()
