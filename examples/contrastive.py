"""Contrastive learning: embeddings of handwritten digits that do not change when a digit is moved or turned.

    python -m examples.contrastive

A network sees each digit in two random views. It is trained twice: with NT-Xent, which knows only which two
views belong together, and with the supervised contrastive loss, which knows the labels. Held-out digits, also
moved and turned, then get the label of their nearest neighbour among the digits of the training: by their
pixels, and by their embeddings before and after training.

The batch is sharded over all devices, and each digit is compared with those on other devices, too. To try it
with eight virtual devices on one CPU:

    JAX_NUM_CPU_DEVICES=8 python -m examples.contrastive
"""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from matplotlib.figure import Figure
from scipy.ndimage import affine_transform
from sklearn.datasets import load_digits
from sklearn.decomposition import PCA
from sklearn.neighbors import KNeighborsClassifier

from examples._common import (
    Result,
    batches,
    enlarge_thread_pool,
    mesh_of_all_devices,
    open_checkpoints,
    parse_arguments,
    print_end,
    save_figure,
)
from jaxloss import nt_xent_loss, supervised_contrastive_loss
from jaxloss.training import create_train_state, shard_batch, shard_train_state, train_epoch

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


def main(argv: Sequence[str] | None = None) -> Result:
    """Runs the example and returns the accuracy of the nearest neighbour after supervised training."""
    enlarge_thread_pool()
    arguments = parse_arguments(argv, prog="python -m examples.contrastive", description=__doc__, steps=300)
    mesh = mesh_of_all_devices()
    rng = np.random.default_rng(arguments.seed)
    digits, labels = load_digits(return_X_y=True)
    order = rng.permutation(len(digits))
    digits, labels = digits[order], labels[order]
    known = len(digits) * 4 // 5  # the others are held out
    pairs = np.stack([moved(np.repeat(digits[:known], VIEWS, 0), rng) for _ in range(2)], 1)
    data = pairs, np.repeat(labels[:known], VIEWS)
    pixels = moved(digits, rng)

    vectors = {"pixels": pixels}
    for name, loss in LOSSES.items():
        state = create_train_state(Encoder(rngs=nnx.Rngs(arguments.seed)), optax.adam(learning_rate=0.002))
        vectors["untrained"] = np.asarray(state.apply_fn(state.params, pixels))
        state = shard_train_state(state, mesh)
        print(f"Training with {name} on {len(pairs)} pairs of views, {jax.device_count()} device(s)")
        with open_checkpoints(arguments, name) as checkpoints:
            state = checkpoints.restore(state)
            while (step := int(state.step)) < arguments.steps:
                steps = range(step, min(step + 100, arguments.steps))
                sharded = (shard_batch(b, mesh, "data") for b in batches(data, 256, steps, arguments.seed))
                state, losses = train_epoch(state, sharded, loss=loss)
                print(f"  Step {state.step:3}/{arguments.steps}  Loss: {losses.mean():.4f}", flush=True)
                checkpoints.save(state)
        vectors[name] = np.asarray(state.apply_fn(state.params, pixels))
    found = {name: nearest_neighbour_accuracy(array, labels, known) for name, array in vectors.items()}
    chance = float(np.mean(labels[:known, None] == labels[known:]))
    for name, accuracy in found.items():
        print(Result(f"Nearest neighbour of held-out digits, {name}", accuracy, "chance", chance))
    if arguments.plot:
        save_figure(
            draw({name: array[known:] for name, array in vectors.items()}, labels[known:], found),
            arguments.plot,
        )
    print_end(arguments, "pass another temperature to nt_xent_loss, or --steps 1000.")
    return Result(
        "Nearest neighbour of held-out digits, supervised", found["supervised"], "pixels", found["pixels"]
    )


def nearest_neighbour_accuracy(vectors: np.ndarray, labels: np.ndarray, known: int) -> float:
    """Returns the share of held-out digits whose nearest neighbour among the known ones has their label."""
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    neighbours = KNeighborsClassifier(n_neighbors=1).fit(unit[:known], labels[:known])
    return float(neighbours.score(unit[known:], labels[known:]))


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


def draw(vectors: dict[str, np.ndarray], labels: np.ndarray, accuracies: dict[str, float]) -> Figure:
    """Returns a figure of the directions of the held-out vectors in their two principal components."""
    figure = Figure(figsize=(7, 7), layout="constrained")
    panels = figure.subplots(2, 2).ravel()
    for axes, (name, array) in zip(panels, vectors.items(), strict=True):
        x, y = PCA(2).fit_transform(array / np.linalg.norm(array, axis=1, keepdims=True)).T
        for label in range(10):
            chosen = labels == label
            axes.scatter(x[chosen], y[chosen], s=8, color=f"C{label}", label=str(label))
        axes.set(title=f"{name}: {accuracies[name]:.1%} right", xticks=[], yticks=[])
        axes.set(xlabel="first principal component", ylabel="second principal component")
    handles = panels[0].get_legend_handles_labels()
    figure.legend(
        *handles, loc="outside lower center", ncols=10, title="held-out digit", markerscale=2, columnspacing=1
    )
    return figure


if __name__ == "__main__":
    main()
