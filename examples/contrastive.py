"""Contrastive learning: embeddings of handwritten digits that survive being moved, turned and scaled.

    python -m examples.contrastive

A network sees each digit in two random views. It is trained twice: with NT-Xent, which knows only that the
two views belong together, and with the supervised contrastive loss, which knows the labels. Held-out digits,
moved and turned as well, then get the label of their nearest neighbour among the digits of the training: by
their pixels, and by their embeddings before and after training.

The batch is spread over all devices, and each digit is compared with those on other devices, too. Eight
devices on one CPU, to try it out:

    JAX_NUM_CPU_DEVICES=8 python -m examples.contrastive
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import AxisType
from matplotlib.figure import Figure
from scipy.ndimage import affine_transform
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from sklearn.neighbors import KNeighborsClassifier

from examples._common import enlarge_thread_pool, fit, parse_arguments
from jaxloss import nt_xent_loss, supervised_contrastive_loss

SIZE, FEATURES, VIEWS = 12, 32, 10


class Encoder(nnx.Module):
    """Two hidden layers, from pixels to an embedding."""

    def __init__(self, *, rngs: nnx.Rngs):
        self.first = nnx.Linear(SIZE**2, 256, rngs=rngs)
        self.second = nnx.Linear(256, 256, rngs=rngs)
        self.output = nnx.Linear(256, FEATURES, rngs=rngs)

    def __call__(self, pixels: jax.Array) -> jax.Array:
        """Takes pixels `(..., SIZE * SIZE)` to embeddings `(..., FEATURES)`."""
        return self.output(jax.nn.relu(self.second(jax.nn.relu(self.first(pixels)))))


def of_views(embeddings: jax.Array, labels: jax.Array) -> jax.Array:
    """Returns the NT-Xent loss of embeddings `(batch, 2, FEATURES)`, which needs no labels."""
    return nt_xent_loss(embeddings[:, 0], embeddings[:, 1])


def of_labels(embeddings: jax.Array, labels: jax.Array) -> jax.Array:
    """Returns the supervised contrastive loss of embeddings `(batch, 2, FEATURES)`."""
    return supervised_contrastive_loss(embeddings.reshape(-1, FEATURES), jnp.repeat(labels, 2))


LOSSES: dict[str, Callable[..., jax.Array]] = {"NT-Xent": of_views, "supervised": of_labels}


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    """Runs the example and returns the accuracy of the nearest neighbour, by what is compared."""
    enlarge_thread_pool()
    arguments = parse_arguments(argv, prog="python -m examples.contrastive", description=__doc__, steps=300)
    mesh = jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))
    rng = np.random.default_rng(arguments.seed)
    digits, labels = load_digits(return_X_y=True)
    order = rng.permutation(len(digits))
    digits, labels = digits[order], labels[order]
    known = len(digits) * 4 // 5  # the others are held out
    pairs = np.stack([moved(np.repeat(digits[:known], VIEWS, 0), rng) for _ in range(2)], 1)
    pixels = moved(digits, rng)

    def nearest(labels: np.ndarray, vectors: jax.Array | np.ndarray) -> float:
        """Returns how many held-out digits have the label of their nearest neighbour among the known ones."""
        unit = np.asarray(vectors) / np.linalg.norm(vectors, axis=1, keepdims=True)
        neighbours = KNeighborsClassifier(n_neighbors=1).fit(unit[:known], labels[:known])
        return float(neighbours.score(unit[known:], labels[known:]))

    vectors = {"pixels": pixels}
    for fold, (name, loss) in enumerate(LOSSES.items(), start=1):
        model = Encoder(rngs=nnx.Rngs(arguments.seed))
        vectors["untrained"] = np.asarray(model(jnp.asarray(pixels)))
        print(f"Training with {name} on {jax.device_count()} devices")
        fit(
            model,
            optax.adam(learning_rate=0.002),
            (pairs, np.repeat(labels[:known], VIEWS), pixels, labels),
            loss=loss,
            metric=nearest,
            batch_size=256,
            arguments=arguments,
            fold=fold,
            mesh=mesh,
        )
        vectors[name] = np.asarray(model(jnp.asarray(pixels)))
    found = {name: nearest(labels, array) for name, array in vectors.items()}
    for name, accuracy in found.items():
        print(f"Nearest neighbour of held-out digits, {name}: {accuracy:.3f}")
    save_maps({name: array[known:] for name, array in vectors.items()}, labels[known:], found, arguments.plot)
    return found


def moved(digits: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Returns digits turned, scaled and moved at random on a larger, noisy canvas, as rows of pixels."""
    angles, scales = rng.uniform(-0.4, 0.4, len(digits)), rng.uniform(0.85, 1.2, len(digits))
    shifts = rng.uniform(-1.5, 1.5, (len(digits), 2))
    rows = 0.05 * rng.standard_normal((len(digits), SIZE, SIZE), np.float32)
    for row, digit, angle, scale, shift in zip(rows, digits, angles, scales, shifts, strict=True):
        turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) / scale
        start = 3.5 - turn @ (shift + (SIZE - 1) / 2)
        row += affine_transform(digit.reshape(8, 8) / 16, turn, start, (SIZE, SIZE), order=1)
    return rows.reshape(len(digits), -1)


def save_maps(
    vectors: dict[str, np.ndarray], labels: np.ndarray, accuracies: dict[str, float], file: Path | None
) -> None:
    """Draws the directions of the held-out vectors in their two principal components, if a file is given."""
    if file is None:
        return
    figure = Figure(figsize=(4 * len(vectors), 4.4), layout="constrained")
    panels = figure.subplots(1, len(vectors))
    for axes, (name, array) in zip(panels, vectors.items(), strict=True):
        x, y = PCA(2).fit_transform(array / np.linalg.norm(array, axis=1, keepdims=True)).T
        for label in range(10):
            chosen = labels == label
            axes.scatter(x[chosen], y[chosen], s=8, color=f"C{label}", label=str(label))
        axes.set(title=f"{name}: {accuracies[name]:.1%}", xticks=[], yticks=[])
    figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=10)
    figure.savefig(file, dpi=150)
    print(f"Maps of the held-out digits: {file}")


if __name__ == "__main__":
    main()
