"""Segmentation: find the pixels of handwritten digits that are scattered on noisy images.

A small convolutional network is trained three times: with the cross-entropy of the pixels, with the Dice loss
of the classes, and with the sum of both. Faint pixels at the edge of a digit have no clear class; the losses
and the metric ignore them.
"""

import functools
from collections.abc import Callable, Sequence

import jax
import numpy as np
import optax
from flax import nnx
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from sklearn.datasets import load_digits

import jaxloss
from examples._common import Result, batches, open_checkpoints, parse_arguments, print_end, save_figure
from jaxloss import cross_entropy, dice_loss
from jaxloss.training import TrainState, create_train_state, evaluate, train_epoch

SIZE, CLASSES, IGNORED = 32, 11, -100  # class 0 is the background, class 1 + d the digit d
COLORS = ["white", *(f"C{digit}" for digit in range(10))]


class Segmenter(nnx.Module):
    """Three convolutions; each pixel sees the 15 x 15 pixels around it."""

    def __init__(self, *, rngs: nnx.Rngs):
        self.near = nnx.Conv(1, 32, kernel_size=(11, 11), rngs=rngs)
        self.far = nnx.Conv(32, 32, kernel_size=(3, 3), kernel_dilation=2, rngs=rngs)
        self.output = nnx.Conv(32, CLASSES, kernel_size=(1, 1), rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        """Returns logits `(batch, height, width, CLASSES)` of images `(batch, height, width, 1)`."""
        return self.output(jax.nn.relu(self.far(jax.nn.relu(self.near(images)))))


def dice(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Returns the Dice loss of the classes, each over the pixels of the whole batch."""
    return dice_loss(jax.nn.softmax(logits), labels, batch=True)


def both(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Returns the sum of cross-entropy and Dice loss."""
    return cross_entropy(logits, labels) + dice(logits, labels)


LOSSES: dict[str, Callable[..., jax.Array]] = {"cross-entropy": cross_entropy, "Dice loss": dice, "sum": both}


def iou(label: int, logits: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns intersection and union of a class in pixels: `evaluate` sums both, and divides at the end."""
    expected, predicted = labels == label, logits.argmax(axis=-1) == label
    union = (expected | predicted) & (labels != IGNORED)
    return jaxloss.reduce(expected & predicted, where=union, reduction="sum_and_weight")


IOUS = {str(label): functools.partial(iou, label) for label in range(CLASSES)}


def main(argv: Sequence[str] | None = None) -> Result:
    """Runs the example and returns the mean IoU on held-out images after training with the sum."""
    arguments = parse_arguments(argv, prog="python -m examples.segmentation", description=__doc__, steps=300)
    rng = np.random.default_rng(arguments.seed)
    digits, labels = load_digits(return_X_y=True)
    train, test = np.split(rng.permutation(len(digits)), [len(digits) * 4 // 5])
    data = scatter(digits[train], labels[train], 800, rng)
    test_images, test_labels = scatter(digits[test], labels[test], 50, rng)
    baseline = np.mean(test_labels[test_labels != IGNORED] == 0) / CLASSES  # the IoU of the digits is 0
    results: list[Result] = []
    predictions: dict[str, np.ndarray] = {}
    for name, loss in LOSSES.items():
        print(f"Training with {name} on {len(data[0])} images")
        state = create_train_state(Segmenter(rngs=nnx.Rngs(arguments.seed)), optax.adam(learning_rate=0.01))
        with open_checkpoints(arguments, name.replace(" ", "_")) as checkpoints:
            state = checkpoints.restore(state)
            while (step := int(state.step)) < arguments.steps:
                steps = range(step, min(step + 100, arguments.steps))
                # In batches, as XLA's convolutions on a CPU are slow in the compiled loop that takes arrays.
                state, losses = train_epoch(state, batches(data, 16, steps, arguments.seed), loss=loss)
                print(f"  Step {state.step:3}/{arguments.steps}  Loss: {losses.mean():.4f}", flush=True)
                checkpoints.save(state)
        found = mean_iou(state, test_images, test_labels)
        results.append(Result(f"Mean IoU on held-out images, {name}", found, "all background", baseline))
        predictions[name] = np.asarray(state.apply_fn(state.params, test_images[:3])).argmax(axis=-1)
    print(*results, sep="\n")
    if arguments.plot:
        save_figure(draw(test_images, test_labels, predictions), arguments.plot)
    print_end(arguments, "add jaxloss.lovasz_softmax_loss of the probabilities to LOSSES.")
    return results[-1]


def scatter(
    digits: np.ndarray, labels: np.ndarray, count: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Returns noisy images with a digit in most cells of a grid, and the class of each pixel."""
    images = 0.1 * rng.standard_normal((count, SIZE, SIZE, 1), np.float32)
    classes = np.zeros((count, SIZE, SIZE), np.int32)
    for image, target in zip(images, classes, strict=True):
        for corner in np.ndindex(SIZE // 10, SIZE // 10):
            if rng.random() < 0.7:
                chosen = rng.integers(len(digits))
                ink = digits[chosen].reshape(8, 8) / 16
                y, x = 10 * np.array(corner) + rng.integers(0, 3, 2)
                image[y : y + 8, x : x + 8, 0] += ink
                faint = np.where(ink > 0.2, IGNORED, 0)
                target[y : y + 8, x : x + 8] = np.where(ink > 0.5, 1 + labels[chosen], faint)
    return images, classes


def mean_iou(state: TrainState, images: np.ndarray, labels: np.ndarray) -> float:
    """Returns the intersection over union, averaged over the classes that are there."""
    loss = functools.partial(cross_entropy, reduction="sum_and_weight")
    _, ious = evaluate(state, images, labels, loss=loss, batch_size=50, metrics=IOUS)
    return float(np.nanmean(list(ious.values())))


def draw(images: np.ndarray, labels: np.ndarray, predictions: dict[str, np.ndarray]) -> Figure:
    """Returns a figure of images, labels and the predictions after training with each loss."""
    rows = len(next(iter(predictions.values())))
    columns = {"image": images[..., 0], "labels": np.where(labels == IGNORED, 0, labels), **predictions}
    figure = Figure(figsize=(1.6 * len(columns), 1.6 * rows + 0.7), layout="constrained")
    for axes, (name, pictures) in zip(figure.subplots(rows, len(columns)).T, columns.items(), strict=True):
        axes[0].set_title(name)
        for place, picture in zip(axes, pictures, strict=False):
            style = {"cmap": "gray_r"}
            if name != "image":
                style = {"cmap": ListedColormap(COLORS), "vmin": 0, "vmax": CLASSES - 1}
            place.imshow(picture, interpolation="nearest", **style)
            place.set(xticks=[], yticks=[])
    patches = [Patch(color=COLORS[1 + digit], label=str(digit)) for digit in range(10)]
    figure.legend(handles=patches, loc="outside lower center", ncols=10, title="predicted digit of a pixel")
    return figure


if __name__ == "__main__":
    main()
