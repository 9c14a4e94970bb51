"""Preferences: a language model learns from pairs of its own samples to write more upper-case letters.

The model of `examples.language_model` is trained on Python's documentation, then continues each prompt twice.
The answer with more upper-case letters is the chosen one, the other is rejected. Direct preference
optimization (DPO) raises the probability of chosen answers above that of rejected ones, relative to the model
from before. The log-probabilities of the answers are computed without holding the logits.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import lax

from examples._common import fit, parse_arguments, save_curves
from examples.language_model import WIDTH, CharacterModel, Outputs, encode, read_text, split, train
from jaxloss import dpo_loss, linear_log_probs

PROMPT, ANSWER = 16, 48  # characters; a prompt has as many as the model sees
BETA = 0.1

Targets = tuple[np.ndarray, np.ndarray]  # characters (pairs, 2, length), and log-probabilities (pairs, 2)


def log_probs(outputs: Outputs, characters: np.ndarray) -> jax.Array:
    """Returns the log-probabilities of answers, summed over their characters, without the prompts.

    The characters have shape `(..., length)`; each is the one after the position of the hidden features.
    """
    hidden, kernel = outputs
    is_answer = np.arange(characters.shape[-1]) >= PROMPT - 1
    found = linear_log_probs(hidden, kernel, characters, where=np.broadcast_to(is_answer, characters.shape))
    return jnp.sum(found.log_prob, axis=-1)


def criterion(outputs: Outputs, targets: Targets) -> jax.Array:
    """Returns the DPO loss of pairs whose first answer is the chosen one."""
    characters, reference = targets
    return dpo_loss(*log_probs(outputs, characters).T, *reference.T, beta=BETA)


def margin(targets: Targets, outputs: Outputs) -> float:
    """Returns by how much the mean reward of chosen answers exceeds that of rejected ones."""
    characters, reference = targets
    chosen, rejected = BETA * (log_probs(outputs, characters) - reference).T
    return float(jnp.mean(chosen - rejected))


def main(argv: Sequence[str] | None = None) -> dict[str, float]:
    """Runs the example; returns the share of upper-case letters before and after, and the held-out loss."""
    arguments = parse_arguments(argv, prog="python -m examples.preference", description=__doc__, steps=200)
    alphabet, codes = encode(read_text())
    model = CharacterModel(len(alphabet), WIDTH, tied=True, rngs=nnx.Rngs(arguments.seed))
    print("Training on the text")
    first = train(model, codes, arguments)

    keys = jax.random.split(jax.random.key(arguments.seed), 5)
    learned, held_out = split(codes)
    test_prompts = draw_prompts(held_out, 250, keys[0])
    pairs = make_pairs(model, draw_prompts(learned, 1000, keys[1]), alphabet, keys[2])
    test_pairs = make_pairs(model, test_prompts, alphabet, keys[3])
    data = (*with_reference(model, pairs), *with_reference(model, test_pairs))
    before = report("before", sample(model, test_prompts, keys[4]), alphabet)

    print(f"Tuning on {len(pairs)} pairs of answers, {len(test_pairs)} held out")
    if arguments.checkpoint:  # a reference trained for longer needs a tuning of its own
        arguments.checkpoint /= f"tuning_after_{len(first.losses)}_steps"
    history = fit(
        model,
        optax.adam(learning_rate=3e-4),
        data,
        loss=criterion,
        metric=margin,
        batch_size=32,
        arguments=arguments,
        fold=1,
    )
    after = report("after", sample(model, test_prompts, keys[4]), alphabet)
    *_, test_inputs, test_targets = data
    loss = float(criterion(model(jnp.asarray(test_inputs)), test_targets))
    print(f"Held-out pairs: loss {loss:.3f}, margin {history.metrics[-1]:.3f}")
    save_curves([history], "held-out margin", "DPO for upper-case letters", arguments.plot)
    return {"before": before, "after": after, "loss": loss}


def draw_prompts(codes: np.ndarray, count: int, key: jax.Array) -> jax.Array:
    """Returns passages that begin anywhere in the text."""
    starts = jax.random.randint(key, (count, 1), 0, len(codes) - PROMPT)
    return jnp.asarray(codes[np.asarray(starts) + np.arange(PROMPT)])


@nnx.jit
def sample(model: CharacterModel, prompts: jax.Array, key: jax.Array) -> jax.Array:
    """Returns prompts with the answers that the model draws, character by character."""

    def draw(window: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        hidden, kernel = model(window)
        character = jax.random.categorical(key, hidden[:, -1] @ kernel)
        return jnp.concatenate([window[:, 1:], character[:, None]], axis=1), character

    _, characters = lax.scan(draw, prompts, jax.random.split(key, ANSWER))
    return jnp.concatenate([prompts, characters.T], axis=1)


def make_pairs(model: CharacterModel, prompts: jax.Array, alphabet: np.ndarray, key: jax.Array) -> np.ndarray:
    """Draws two answers to each prompt, and returns what `preferred_first` makes of them."""
    texts = np.asarray(sample(model, jnp.repeat(prompts, 2, axis=0), key))
    return preferred_first(texts.reshape(len(prompts), 2, -1), alphabet)


def preferred_first(pairs: np.ndarray, alphabet: np.ndarray) -> np.ndarray:
    """Puts the answer with more upper-case letters first, and leaves out pairs that have as many in both."""
    shares = uppercase_shares(pairs, alphabet)
    order = np.argsort(-shares, axis=1)
    return np.take_along_axis(pairs, order[..., None], axis=1)[shares[:, 0] != shares[:, 1]]


def uppercase_shares(texts: np.ndarray, alphabet: np.ndarray) -> np.ndarray:
    """Returns the share of upper-case letters among the characters of each answer."""
    return np.mean(np.strings.isupper(alphabet[texts[..., PROMPT:]]), axis=-1)


def report(time: str, samples: jax.Array, alphabet: np.ndarray) -> float:
    """Prints and returns the share of upper-case letters in samples, and prints some of them."""
    texts = np.asarray(samples)
    share = float(uppercase_shares(texts, alphabet).mean())
    print(f"Upper-case letters {time}: {share:.1%} of the characters in answers such as")
    for text in alphabet[texts[:3]]:
        print(f"  {''.join(text[:PROMPT])!r} -> {''.join(text[PROMPT:])!r}")
    return share


def with_reference(model: CharacterModel, pairs: np.ndarray) -> tuple[np.ndarray, Targets]:
    """Returns inputs and targets; the model as it is now is the reference."""
    inputs, characters = pairs[..., :-1], pairs[..., 1:]
    return inputs, (characters, np.asarray(log_probs(model(jnp.asarray(inputs)), characters)))


if __name__ == "__main__":
    main()
