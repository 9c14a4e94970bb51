"""A language model: predict each character of Python's own documentation from the sixteen before it.

The loss takes the last hidden features and the kernel of the last layer, and never holds the logits. Here
that saves nothing, for the text has a hundred different characters; what it saves with 32,000 is printed.
`--devices 8` trains on eight virtual CPU devices, with the same losses.

In PyTorch: Embedding, two Conv1d over the past, LayerNorm and a linear layer without bias, whose weight is
that of the embedding, with LinearCrossEntropyLoss and Adam(lr=0.01).
"""

import argparse
import codecs
import contextlib
import io
import math
import timeit
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.sharding import Mesh
from jax.typing import ArrayLike

from examples._common import History, fit, make_mesh, parse_arguments, save_curves
from jaxloss import cross_entropy, linear_cross_entropy

LENGTH, BATCH_SIZE, WIDTH = 64, 32, 64

Outputs = tuple[jax.Array, jax.Array]


class CharacterModel(nnx.Module):
    """An embedding and two convolutions over the past; it returns what its logits are made of."""

    def __init__(self, vocabulary: int, width: int, *, tied: bool, rngs: nnx.Rngs):
        self.tied = tied
        # So small that the first logits are near 0, and the first loss near the logarithm of the vocabulary.
        small = nnx.initializers.normal(0.02)
        self.embedding = nnx.Embed(vocabulary, width, embedding_init=small, rngs=rngs)
        # The first layer sees 4 characters, the second 4 such groups: together 16, none of them to come.
        self.near = nnx.Conv(width, width, kernel_size=4, padding="CAUSAL", rngs=rngs)
        self.far = nnx.Conv(width, width, kernel_size=4, kernel_dilation=4, padding="CAUSAL", rngs=rngs)
        self.norm = nnx.LayerNorm(width, rngs=rngs)
        if not tied:
            self.output = nnx.Linear(width, vocabulary, use_bias=False, kernel_init=small, rngs=rngs)

    def __call__(self, characters: jax.Array) -> Outputs:
        """Takes characters of shape `(batch, length)` to hidden features and the last layer's kernel.

        Their shapes are `(batch, length, width)` and `(width, vocabulary)`; the logits of the next character
        are their product.
        """
        hidden = self.embedding(characters)
        hidden = hidden + jax.nn.gelu(self.near(hidden))
        hidden = hidden + jax.nn.gelu(self.far(hidden))
        kernel = self.embedding.embedding[...].T if self.tied else self.output.kernel[...]
        return self.norm(hidden), kernel


# The kernel reaches the loss as an output of the model, so the gradient finds its way back into it. A loss
# that took it out of a model beside the state would see the kernel from before the training, for ever.
def criterion(outputs: Outputs, targets: ArrayLike) -> jax.Array:
    """Measures how surprised the model is by the next character, in nats."""
    hidden, kernel = outputs
    return linear_cross_entropy(hidden, kernel, targets)


def plain_criterion(outputs: Outputs, targets: ArrayLike) -> jax.Array:
    """Measures the same by way of the logits of all classes."""
    hidden, kernel = outputs
    return cross_entropy(jnp.dot(hidden, kernel), targets)


def main(argv: Sequence[str] | None = None) -> float:
    """Runs the example and returns the loss on the text that was held out."""
    arguments = parse_arguments(
        argv,
        prog="python -m examples.language_model",
        description=__doc__,
        steps=400,
        flags={"--untied": "give the last layer a kernel of its own instead of the embedding's transpose"},
        has_devices=True,
    )
    mesh = make_mesh(arguments.devices) if arguments.devices else None
    characters, codes = encode(read_text())
    print(f"Text: {len(codes)} characters, {len(characters)} different ones")
    shares = np.bincount(codes) / len(codes)
    print(f"Unigram entropy: {-shares @ np.log(shares):.3f} nats a character")
    sizes = (len(characters), 32_000) if mesh is None else ()
    for classes in sizes:
        ours, plain = (cost(loss, BATCH_SIZE * LENGTH, classes) for loss in (criterion, plain_criterion))
        print(
            f"Loss and gradient of {BATCH_SIZE * LENGTH} positions, {classes} classes: {ours}; plain: {plain}"
        )

    rngs = nnx.Rngs(arguments.seed)
    model = CharacterModel(len(characters), WIDTH, tied=not arguments.untied, rngs=rngs)
    history = train(model, codes, arguments, mesh)
    save_curves([history], "held-out loss", "Characters of Python's documentation", arguments.plot)
    loss = float(history.metrics[-1])
    print(f"First loss: {history.losses[0]:.3f} nats a character")
    print(f"Held-out loss: {loss:.3f} nats a character")
    return loss


def read_text() -> str:
    """Returns the documentation that comes with Python.

    Where it is missing there is still the Zen of Python, though that is too short to learn from.
    """
    try:
        from pydoc_data.topics import topics
    except ImportError:
        with contextlib.redirect_stdout(io.StringIO()):  # to import it is to print it
            import this
        return codecs.decode(this.s, "rot13")
    return "\n".join(topics[name] for name in sorted(topics))


def encode(text: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns the different characters of a text, and the number of each of its characters among them."""
    characters, codes = np.unique(list(text), return_inverse=True)
    return characters, codes.astype(np.int32)


def split(codes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the first nine tenths of a text, and the last, though some passages stand in both."""
    end = len(codes) * 9 // 10
    return codes[:end], codes[end:]


def train(
    model: CharacterModel, codes: np.ndarray, arguments: argparse.Namespace, mesh: Mesh | None = None
) -> History:
    """Trains the model on passages that begin anywhere in the text but for the part that is held out."""
    windows, test = (np.lib.stride_tricks.sliding_window_view(part, LENGTH + 1) for part in split(codes))
    test = test[::LENGTH]
    return fit(
        model,
        optax.adam(learning_rate=0.01),
        (windows[:, :-1], windows[:, 1:], test[:, :-1], test[:, 1:]),
        loss=criterion,
        metric=lambda targets, outputs: float(criterion(outputs, targets)),
        batch_size=BATCH_SIZE,
        arguments=arguments,
        fold=1,
        mesh=mesh,
    )


def cost(loss: Callable[[Outputs, ArrayLike], jax.Array], positions: int, classes: int) -> str:
    """Returns the memory that value and gradient need beside arguments and results, and their time."""
    keys = jax.random.split(jax.random.key(0), 3)
    outputs = jax.random.normal(keys[0], (positions, WIDTH)), jax.random.normal(keys[1], (WIDTH, classes))
    labels = jax.random.randint(keys[2], (positions,), 0, classes)
    compiled = jax.jit(jax.value_and_grad(loss)).lower(outputs, labels).compile()
    times = timeit.repeat(lambda: jax.block_until_ready(compiled(outputs, labels)), repeat=3, number=1)
    memory = compiled.memory_analysis()
    megabytes = memory.temp_size_in_bytes / 1e6 if memory else math.nan
    return f"{megabytes:.1f} MB, {1e3 * min(times):.1f} ms"


if __name__ == "__main__":
    main()
