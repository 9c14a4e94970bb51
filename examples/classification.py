"""Classification: one step on random data, then 1797 handwritten digits.

In PyTorch: Linear(784, 128), ReLU() and Linear(128, 10), with CrossEntropyLoss() and Adam(lr=0.001).
"""

import argparse
import functools
from collections.abc import Sequence

import jax
import numpy as np
import optax
from flax import nnx
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from sklearn.metrics import accuracy_score, confusion_matrix
from sklearn.model_selection import KFold

from examples._common import Result, open_checkpoints, parse_arguments, print_end, save_figure
from jaxloss import cross_entropy
from jaxloss.models import Classifier
from jaxloss.training import create_train_state, evaluate, train_epoch, train_step


def main(argv: Sequence[str] | None = None) -> Result:
    """Runs the example and returns the accuracy on the held-out digits."""
    arguments = parse_arguments(
        argv, prog="python -m examples.classification", description=__doc__, steps=440
    )
    rngs = nnx.Rngs(arguments.seed)
    step_on_random_data(rngs)
    labels, predictions = cross_validate(arguments, rngs)
    share = np.bincount(labels).max() / len(labels)
    accuracy = float(accuracy_score(labels, predictions))
    result = Result("Accuracy on held-out digits", accuracy, "most frequent digit", share)
    print(result)
    if arguments.plot:
        save_figure(draw(labels, predictions, result), arguments.plot)
    print_end(arguments, "bind label_smoothing=0.1 to cross_entropy with functools.partial.")
    return result


def step_on_random_data(rngs: nnx.Rngs) -> None:
    """Takes one optimizer step, and prints the loss before and after it."""
    print(
        "One step on random data. In PyTorch: Linear(784, 128), ReLU(), Linear(128, 10), "
        "CrossEntropyLoss(), Adam(lr=0.001), batch of 64"
    )
    inputs = jax.random.normal(rngs(), (64, 784))
    targets = jax.random.randint(rngs(), (64,), 0, 10)
    model = Classifier(rngs=rngs)
    criterion = cross_entropy
    optimizer = optax.adam(learning_rate=0.001)
    print(f"Initial Loss: {criterion(model(inputs), targets):.4f}")

    # One compiled function for loss.backward() and optimizer.step(). It changes nothing in place: the new
    # weights are in the state that it returns.
    state = create_train_state(model, optimizer)
    state, _ = train_step(state, inputs, targets, loss=criterion)
    nnx.update(model, state.params)
    print(f"Loss after one optimization step: {criterion(model(inputs), targets):.4f}")


def cross_validate(arguments: argparse.Namespace, rngs: nnx.Rngs) -> tuple[np.ndarray, np.ndarray]:
    """Trains five times, and returns labels and predictions of the digits that were held out."""
    images, labels = load_digits(return_X_y=True)
    inputs = enlarge(images)
    predictions = np.empty_like(labels)
    summed_loss = functools.partial(cross_entropy, reduction="sum_and_weight")
    optimizer = optax.adam(learning_rate=0.002)
    key, batch_size = jax.random.key(arguments.seed), 64
    print(f"Real data: {len(inputs)} digits, a fifth of them held out of each of five trainings")
    folds = KFold(n_splits=5, shuffle=True, random_state=arguments.seed)
    for fold, (train, test) in enumerate(folds.split(inputs), start=1):
        state = create_train_state(Classifier(rngs=rngs), optimizer)
        with open_checkpoints(arguments, f"fold_{fold}") as checkpoints:
            state = checkpoints.restore(state)
            while (step := int(state.step)) < arguments.steps:
                rows = train[: batch_size * (arguments.steps - step)]  # fewer only if steps end mid-epoch
                state, _ = train_epoch(
                    state,
                    inputs[rows],
                    labels[rows],
                    loss=cross_entropy,
                    batch_size=batch_size,
                    key=jax.random.fold_in(key, step),
                )
                checkpoints.save(state)
        loss = evaluate(state, inputs[test], labels[test], loss=summed_loss, batch_size=100)
        print(f"  Fold {fold}: held-out loss {loss:.3f} after {state.step} steps")
        predictions[test] = state.apply_fn(state.params, inputs[test]).argmax(axis=-1)
    return labels, predictions


def enlarge(images: np.ndarray) -> np.ndarray:
    """Returns flattened images of 28x28 pixels in [0, 1] from 8x8 pixels in [0, 16].

    Each pixel becomes a square of 3x3, and the margin is 2 wide.
    """
    pixels = np.kron(images.reshape(-1, 8, 8) / 16, np.ones((3, 3)))
    return np.pad(pixels, ((0, 0), (2, 2), (2, 2))).reshape(-1, 784).astype(np.float32)


def draw(labels: np.ndarray, predictions: np.ndarray, result: Result) -> Figure:
    """Returns a figure with the number of errors for each pair of digits."""
    errors = confusion_matrix(labels, predictions, labels=range(10))
    np.fill_diagonal(errors, 0)
    figure = Figure(figsize=(5.2, 5.2), layout="constrained")
    axes = figure.subplots()
    axes.set_facecolor("lightgray")
    axes.imshow(np.ma.masked_array(errors, np.eye(10, dtype=bool)), cmap="Blues")
    for row, column in np.argwhere(errors):
        color = "white" if 2 * errors[row, column] > errors.max() else "black"
        axes.text(column, row, str(errors[row, column]), ha="center", va="center", color=color)
    axes.set(
        title=f"Number of errors on held-out digits; {result.value:.1%} are right",
        xlabel="predicted digit",
        ylabel="true digit",
        xticks=range(10),
        yticks=range(10),
    )
    return figure


if __name__ == "__main__":
    main()
