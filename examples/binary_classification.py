"""Binary classification: one step on random data, then 569 breast tumours.

In PyTorch: Linear(20, 16), ReLU() and Linear(16, 1), with BCEWithLogitsLoss() and SGD(lr=0.005).
"""

import argparse
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from matplotlib.figure import Figure
from sklearn.datasets import load_breast_cancer
from sklearn.metrics import accuracy_score
from sklearn.model_selection import KFold
from sklearn.preprocessing import StandardScaler

from examples._common import Result, bins_from_zero, open_checkpoints, parse_arguments, print_end, save_figure
from jaxloss import binary_cross_entropy_with_logits
from jaxloss.models import BinaryClassifier
from jaxloss.training import create_train_state, evaluate, train_epoch, train_step


def main(argv: Sequence[str] | None = None) -> Result:
    """Runs the example and returns the accuracy on the held-out tumours."""
    arguments = parse_arguments(
        argv, prog="python -m examples.binary_classification", description=__doc__, steps=420
    )
    rngs = nnx.Rngs(arguments.seed)
    step_on_random_data(rngs)
    targets, logits = cross_validate(arguments, rngs)
    accuracy = float(accuracy_score(targets, logits > 0))  # a probability above one half
    share = max(targets.mean(), 1 - targets.mean())
    result = Result("Accuracy on held-out tumours", accuracy, "most frequent class", share)
    print(result)
    if arguments.plot:
        save_figure(draw(targets, logits, result), arguments.plot)
    print_end(
        arguments, "replace the loss by jaxloss.sigmoid_focal_loss, which gives hard samples more weight."
    )
    return result


def step_on_random_data(rngs: nnx.Rngs) -> None:
    """Takes one optimizer step, and prints the loss before and after it."""
    print(
        "One step on random data. In PyTorch: Linear(20, 16), ReLU(), Linear(16, 1), "
        "BCEWithLogitsLoss(), SGD(lr=0.005), batch of 16"
    )
    inputs = jax.random.normal(rngs(), (16, 20))
    targets = jax.random.bernoulli(rngs(), shape=(16, 1)).astype(jnp.float32)
    model = BinaryClassifier(rngs=rngs)
    criterion = binary_cross_entropy_with_logits
    optimizer = optax.sgd(learning_rate=0.005)
    print(f"Initial Loss: {criterion(model(inputs), targets):.4f}")

    # One compiled function for loss.backward() and optimizer.step(). It changes nothing in place: the new
    # weights are in the state that it returns.
    state = create_train_state(model, optimizer)
    state, _ = train_step(state, inputs, targets, loss=criterion)
    nnx.update(model, state.params)
    print(f"Loss after one optimization step: {criterion(model(inputs), targets):.4f}")


def cross_validate(arguments: argparse.Namespace, rngs: nnx.Rngs) -> tuple[np.ndarray, np.ndarray]:
    """Trains five times, and returns targets and logits of the tumours that were held out."""
    # Means and standard errors of ten measurements of the cell nuclei; the target is 1 for benign tumours.
    inputs, targets = map(np.asarray, load_breast_cancer(return_X_y=True))
    inputs, targets = inputs[:, :20], targets[:, None]
    logits = np.empty(targets.shape)
    summed_loss = functools.partial(binary_cross_entropy_with_logits, reduction="sum_and_weight")
    optimizer = optax.sgd(learning_rate=0.5)
    key, batch_size = jax.random.key(arguments.seed), 16
    print(f"Real data: {len(inputs)} tumours, a fifth of them held out of each of five trainings")
    folds = KFold(n_splits=5, shuffle=True, random_state=arguments.seed)
    for fold, (train, test) in enumerate(folds.split(inputs), start=1):
        scaled = StandardScaler().fit(inputs[train]).transform(inputs)
        state = create_train_state(BinaryClassifier(rngs=rngs), optimizer)
        with open_checkpoints(arguments, f"fold_{fold}") as checkpoints:
            state = checkpoints.restore(state)
            while (step := int(state.step)) < arguments.steps:
                rows = train[: batch_size * (arguments.steps - step)]  # fewer only if steps end mid-epoch
                state, _ = train_epoch(
                    state,
                    scaled[rows],
                    targets[rows],
                    loss=binary_cross_entropy_with_logits,
                    batch_size=batch_size,
                    key=jax.random.fold_in(key, step),
                )
                checkpoints.save(state)
        loss = evaluate(state, scaled[test], targets[test], loss=summed_loss, batch_size=100)
        print(f"  Fold {fold}: held-out loss {loss:.3f} after {state.step} steps")
        logits[test] = state.apply_fn(state.params, scaled[test])
    return targets, logits


def draw(targets: np.ndarray, logits: np.ndarray, result: Result) -> Figure:
    """Returns a figure with the logits of both classes."""
    figure = Figure(figsize=(6, 5), layout="constrained")
    axes = figure.subplots()
    bins = bins_from_zero(logits)
    for name, target, color in (("malignant", 0, "tab:orange"), ("benign", 1, "tab:blue")):
        axes.hist(logits[targets == target], bins, color=color, alpha=0.7, label=name)
    axes.axvline(0, color="black", linewidth=1)
    axes.set(
        title=f"Breast tumours by their logit: {result.value:.1%} are on the right side of 0",
        xlabel="logit of the probability that a held-out tumour is benign",
        ylabel="number of tumours",
    )
    axes.legend()
    return figure


if __name__ == "__main__":
    main()
