"""Segmentation: which pixels belong to which of the handwritten digits that are scattered on a noisy canvas.

A small convolutional network is trained three times: with the cross-entropy of the pixels, with the dice loss
of the classes, and with the sum of both. Faint pixels at the border of a digit belong to no class for sure,
and are ignored by the losses and by the metric.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from sklearn.metrics import jaccard_score

from examples._common import fit, parse_arguments
from jaxloss import cross_entropy, dice_loss

SIZE, CLASSES, IGNORED = 32, 11, -100  # class 0 is the background, class 1 + d the digit d


class Segmenter(nnx.Module):
    """Three convolutions; each pixel sees the 15 x 15 around it."""

    def __init__(self, *, rngs: nnx.Rngs):
        self.near = nnx.Conv(1, 32, kernel_size=(11, 11), rngs=rngs)
        self.far = nnx.Conv(32, 32, kernel_size=(3, 3), kernel_dilation=2, rngs=rngs)
        self.output = nnx.Conv(32, CLASSES, kernel_size=(1, 1), rngs=rngs)

    def __call__(self, images: jax.Array) -> jax.Array:
        """Takes images `(batch, height, width, 1)` to logits `(batch, height, width, CLASSES)`."""
        return self.output(jax.nn.relu(self.far(jax.nn.relu(self.near(images)))))


def dice(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Returns the dice loss of the classes, each over the pixels of the whole batch."""
    return dice_loss(jax.nn.softmax(logits), labels, batch=True)


def both(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Returns the sum of cross-entropy and dice loss."""
    return cross_entropy(logits, labels) + dice(logits, labels)


LOSSES: dict[str, Callable[..., jax.Array]] = {"cross-entropy": cross_entropy, "dice loss": dice, "sum": both}


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    """Runs the example and returns the mean IoU on held-out images, by loss, and that of the baseline."""
    arguments = parse_arguments(argv, prog="python -m examples.segmentation", description=__doc__, steps=300)
    rng = np.random.default_rng(arguments.seed)
    digits, labels = load_digits(return_X_y=True)
    train, test = np.split(rng.permutation(len(digits)), [len(digits) * 4 // 5])
    inputs, targets = scatter(digits[train], labels[train], 800, rng)
    test_inputs, test_targets = scatter(digits[test], labels[test], 50, rng)
    found = {"baseline": mean_iou(test_targets, np.eye(CLASSES)[np.zeros_like(test_targets)])}
    predictions = {}
    for fold, (name, loss) in enumerate(LOSSES.items(), start=1):
        print(f"Training with {name}")
        model = Segmenter(rngs=nnx.Rngs(arguments.seed))
        history = fit(
            model,
            optax.adam(learning_rate=0.01),
            (inputs, targets, test_inputs, test_targets),
            loss=loss,
            metric=mean_iou,
            batch_size=16,
            arguments=arguments,
            fold=fold,
        )
        found[name] = float(history.metrics[-1])
        predictions[name] = np.asarray(model(jnp.asarray(test_inputs[:4]))).argmax(-1)
    for name, iou in found.items():
        print(f"Mean IoU on held-out images, {name}: {iou:.3f}")
    save_pictures(test_inputs, test_targets, predictions, arguments.plot)
    return found


def scatter(
    digits: np.ndarray, labels: np.ndarray, count: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Returns noisy canvases with a digit in most cells of a grid, and the class of each pixel."""
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


def mean_iou(labels: np.ndarray, logits: jax.Array | np.ndarray) -> float:
    """Returns the intersection over union of the pixels that are not ignored, averaged over the classes."""
    kept = labels != IGNORED
    return float(jaccard_score(labels[kept], np.asarray(logits).argmax(-1)[kept], average="macro"))


def save_pictures(
    images: np.ndarray, labels: np.ndarray, predictions: dict[str, np.ndarray], file: Path | None
) -> None:
    """Draws image, truth and the prediction of each loss side by side, where a file is given."""
    if file is None:
        return
    truth = np.ma.masked_equal(labels, IGNORED)
    columns = {"image": images[..., 0], "truth (white: ignored)": truth, **predictions}
    rows = len(next(iter(predictions.values())))
    figure = Figure(figsize=(2.2 * len(columns), 2.2 * rows), layout="constrained")
    for axes, (name, pictures) in zip(figure.subplots(rows, len(columns)).T, columns.items(), strict=True):
        axes[0].set_title(name)
        for place, picture in zip(axes, pictures, strict=False):
            style = {"cmap": "gray"} if name == "image" else {"cmap": "tab20", "vmin": 0, "vmax": 19}
            place.imshow(picture, interpolation="nearest", **style)
            place.set_axis_off()
    figure.savefig(file, dpi=150)
    print(f"Images, truth and predictions: {file}")


if __name__ == "__main__":
    main()
