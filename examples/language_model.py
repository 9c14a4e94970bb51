"""A language model: predict each character of Python's own documentation from the sixteen before it.

The loss takes the last hidden features and the kernel of the last layer, and never holds the logits. With the
hundred different characters of this text that saves little; the example also prints what it saves with 32,000
classes. The batch is sharded over all devices. To try it with eight virtual devices on one CPU, with the same
losses:

    JAX_NUM_CPU_DEVICES=8 python -m examples.language_model

In PyTorch: Embedding, two causal Conv1d, LayerNorm and a linear layer without bias that shares the weight of
the embedding, with LinearCrossEntropyLoss and Adam(lr=0.01).
"""

import argparse
import codecs
import contextlib
import functools
import io
import math
import timeit
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.typing import ArrayLike
from matplotlib.figure import Figure

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
from jaxloss import cross_entropy, linear_cross_entropy
from jaxloss.training import (
    TrainState,
    create_train_state,
    evaluate,
    shard_batch,
    shard_train_state,
    train_epoch,
)

LENGTH, BATCH_SIZE, WIDTH = 64, 32, 64

Outputs = tuple[jax.Array, jax.Array]


class CharacterModel(nnx.Module):
    """An embedding and two causal convolutions; returns the two factors of the logits."""

    def __init__(self, vocabulary: int, width: int, *, tied: bool, rngs: nnx.Rngs):
        self.tied = tied
        # Small weights: the first logits are near 0, and the first loss near the logarithm of the vocabulary.
        small = nnx.initializers.normal(0.02)
        self.embedding = nnx.Embed(vocabulary, width, embedding_init=small, rngs=rngs)
        # The first layer sees 4 characters, the second 4 such groups: together the last 16 characters.
        self.near = nnx.Conv(width, width, kernel_size=4, padding="CAUSAL", rngs=rngs)
        self.far = nnx.Conv(width, width, kernel_size=4, kernel_dilation=4, padding="CAUSAL", rngs=rngs)
        self.norm = nnx.LayerNorm(width, rngs=rngs)
        if not tied:
            self.output = nnx.Linear(width, vocabulary, use_bias=False, kernel_init=small, rngs=rngs)

    def __call__(self, characters: jax.Array) -> Outputs:
        """Returns hidden features `(batch, length, width)` and the last layer's kernel `(width, vocabulary)`.

        Their product are the logits of the next character at each position of `characters`, an integer array
        of shape `(batch, length)`.
        """
        hidden = self.embedding(characters)
        hidden = hidden + jax.nn.gelu(self.near(hidden))
        hidden = hidden + jax.nn.gelu(self.far(hidden))
        kernel = self.embedding.embedding[...].T if self.tied else self.output.kernel[...]
        return self.norm(hidden), kernel


# The kernel is an output of the model, so it is part of what is differentiated. A loss that read it from a
# module outside of the state would always see the kernel from before the training.
def criterion(outputs: Outputs, targets: ArrayLike, **options: Any) -> Any:
    """Returns the cross-entropy of the next character, in nats; `options` are those of the loss."""
    hidden, kernel = outputs
    return linear_cross_entropy(hidden, kernel, targets, **options)


def plain_criterion(outputs: Outputs, targets: ArrayLike) -> jax.Array:
    """Returns the same loss, computed from the logits."""
    hidden, kernel = outputs
    return cross_entropy(jnp.dot(hidden, kernel), targets)


def main(argv: Sequence[str] | None = None) -> Result:
    """Runs the example and returns the loss on the held-out text."""
    enlarge_thread_pool()
    arguments = parse_arguments(
        argv,
        prog="python -m examples.language_model",
        description=__doc__,
        steps=400,
        flags={"--untied": "give the last layer a kernel of its own instead of the embedding's transpose"},
    )
    alphabet, codes = encode(read_text())
    print(f"Text: {len(codes)} characters, {len(alphabet)} different ones")
    for classes in (len(alphabet), 32_000):
        ours, plain = (cost(loss, BATCH_SIZE * LENGTH, classes) for loss in (criterion, plain_criterion))
        print(
            f"Loss and gradient of {BATCH_SIZE * LENGTH} positions, {classes} classes: {ours}; plain: {plain}"
        )

    model = CharacterModel(len(alphabet), WIDTH, tied=not arguments.untied, rngs=nnx.Rngs(arguments.seed))
    state = train(model, codes, arguments)
    inputs, targets = passages(split(codes)[1])
    loss = functools.partial(criterion, reduction="sum_and_weight")
    held_out = float(evaluate(state, inputs, targets, loss=loss, batch_size=100))
    shares = np.bincount(codes) / len(codes)
    entropy = float(-shares @ np.log(shares))
    result = Result("Held-out loss in nats per character", held_out, "unigram entropy", entropy)
    print(result)
    if arguments.plot:
        inputs, targets = inputs[:8], targets[:8]
        losses = criterion(state.apply_fn(state.params, inputs), targets, reduction="none")
        save_figure(draw(alphabet[targets], np.asarray(losses)), arguments.plot)
    print_end(arguments, "--steps 4000 lowers the loss; python -m examples.preference tunes this model.")
    return result


def read_text() -> str:
    """Returns the documentation that comes with Python, or the Zen of Python if it is not installed."""
    try:
        from pydoc_data.topics import topics
    except ImportError:
        with contextlib.redirect_stdout(io.StringIO()):  # the import prints the text
            import this
        return codecs.decode(this.s, "rot13")
    return "\n".join(topics[name] for name in sorted(topics))


def encode(text: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns the alphabet of a text, and the index in it of each character of the text."""
    alphabet, codes = np.unique(list(text), return_inverse=True)
    return alphabet, codes.astype(np.int32)


def split(codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the first nine tenths of a text, and the last; a few passages occur in both."""
    end = len(codes) * 9 // 10
    return codes[:end], codes[end:]


def passages(codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns inputs and targets of a text cut into passages, each of shape `(passages, LENGTH)`."""
    windows = np.lib.stride_tricks.sliding_window_view(codes, LENGTH + 1)[::LENGTH]
    return windows[:, :-1], windows[:, 1:]


def train(model: CharacterModel, codes: np.ndarray, arguments: argparse.Namespace) -> TrainState:
    """Trains a copy of the model on passages from anywhere in the text, except for the held-out part."""
    windows = np.lib.stride_tricks.sliding_window_view(split(codes)[0], LENGTH + 1)
    data = windows[:, :-1], windows[:, 1:]
    mesh = mesh_of_all_devices()
    state = shard_train_state(create_train_state(model, optax.adam(learning_rate=0.01)), mesh)
    with open_checkpoints(arguments, "tied" if model.tied else "untied") as checkpoints:
        state = checkpoints.restore(state)
        while (step := int(state.step)) < arguments.steps:
            steps = range(step, min(step + 100, arguments.steps))
            drawn = batches(data, BATCH_SIZE, steps, arguments.seed)
            state, losses = train_epoch(
                state, (shard_batch(batch, mesh, "data") for batch in drawn), loss=criterion
            )
            if step == 0:
                print(f"  Step {1:3}/{arguments.steps}  Loss: {losses[0]:.3f}")
            print(f"  Step {state.step:3}/{arguments.steps}  Loss: {losses.mean():.3f}", flush=True)
            checkpoints.save(state)
    return state


def cost(loss: Callable[[Outputs, ArrayLike], jax.Array], positions: int, classes: int) -> str:
    """Returns the time of value and gradient, and their memory besides arguments and results."""
    keys = jax.random.split(jax.random.key(0), 3)
    outputs = jax.random.normal(keys[0], (positions, WIDTH)), jax.random.normal(keys[1], (WIDTH, classes))
    labels = jax.random.randint(keys[2], (positions,), 0, classes)
    compiled = jax.jit(jax.value_and_grad(loss)).lower(outputs, labels).compile()
    times = timeit.repeat(lambda: jax.block_until_ready(compiled(outputs, labels)), repeat=3, number=1)
    memory = compiled.memory_analysis()
    megabytes = memory.temp_size_in_bytes / 1e6 if memory else math.nan
    return f"{megabytes:.1f} MB, {1e3 * min(times):.1f} ms"


def draw(characters: np.ndarray, losses: np.ndarray) -> Figure:
    """Returns a figure of passages whose characters are colored by their loss."""
    figure = Figure(figsize=(9, 2.6), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(losses, cmap="Oranges", vmin=0, vmax=6, aspect="auto")
    figure.colorbar(image, label="loss (nats)")
    for (row, column), character in np.ndenumerate(characters):
        text = "↵" if character == "\n" else character
        color = "white" if losses[row, column] > 4 else "black"
        axes.text(
            column, row, text, color=color, ha="center", va="center", family="monospace", parse_math=False
        )
    axes.set(
        title="Loss of each character of held-out passages",
        xlabel="position in the passage (characters)",
        ylabel="passage",
        yticks=range(len(characters)),
    )
    return figure


if __name__ == "__main__":
    main()
