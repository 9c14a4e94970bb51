"""Preferences: a language model learns from pairs of its own samples to write more upper-case letters.

The model of `examples.language_model` is trained on Python's documentation, then continues each prompt twice.
The answer with more upper-case letters is the chosen one, the other is rejected. Direct preference
optimization (DPO) raises the probability of chosen answers above that of rejected ones, relative to the model
before the tuning, the reference. The log-probabilities of the answers are computed without the logits.
"""

import argparse
import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax import lax
from matplotlib.figure import Figure

import jaxloss
from examples._common import (
    Result,
    batches,
    bins_from_zero,
    open_checkpoints,
    parse_arguments,
    print_end,
    save_figure,
)
from examples.language_model import WIDTH, CharacterModel, Outputs, encode, read_text, split, train
from jaxloss import dpo_loss, linear_log_probs
from jaxloss.training import TrainState, create_train_state, evaluate, train_epoch

PROMPT, ANSWER = 16, 48  # characters; a prompt has as many as the model sees
BETA = 0.1

Targets = tuple[np.ndarray, np.ndarray]  # characters (pairs, 2, length), and log-probabilities (pairs, 2)


def log_probs(outputs: Outputs, characters: np.ndarray) -> jax.Array:
    """Returns the log-probabilities of answers, summed over their characters, without the prompts.

    The characters `(..., length)` are the targets at the positions of the hidden features.
    """
    hidden, kernel = outputs
    is_answer = np.arange(characters.shape[-1]) >= PROMPT - 1
    found = linear_log_probs(hidden, kernel, characters, where=np.broadcast_to(is_answer, characters.shape))
    return jnp.sum(found.log_prob, axis=-1)


def criterion(outputs: Outputs, targets: Targets, **options: Any) -> Any:
    """Returns the DPO loss of pairs whose first answer is the chosen one; `options` are those of the loss."""
    characters, reference = targets
    return dpo_loss(*log_probs(outputs, characters).T, *reference.T, beta=BETA, **options)


def margins(outputs: Outputs, targets: Targets) -> jax.Array:
    """Returns the reward of each chosen answer minus that of the rejected one."""
    characters, reference = targets
    chosen, rejected = BETA * (log_probs(outputs, characters) - reference).T
    return chosen - rejected


def accuracy(outputs: Outputs, targets: Targets) -> tuple[jax.Array, jax.Array]:
    """Returns the number of pairs whose chosen answer has the higher reward, and the number of pairs."""
    return jaxloss.reduce(margins(outputs, targets) > 0, reduction="sum_and_weight")


def main(argv: Sequence[str] | None = None) -> Result:
    """Runs the example and returns the share of upper-case letters after the tuning and before it."""
    arguments = parse_arguments(argv, prog="python -m examples.preference", description=__doc__, steps=200)
    alphabet, codes = encode(read_text())
    model = CharacterModel(len(alphabet), WIDTH, tied=True, rngs=nnx.Rngs(arguments.seed))
    print("Training on the text")
    trained = train(model, codes, arguments)
    nnx.update(model, trained.params)

    keys = jax.random.split(jax.random.key(arguments.seed), 5)
    learned, held_out = split(codes)
    test_prompts = draw_prompts(held_out, 250, keys[0])
    pairs = make_pairs(model, draw_prompts(learned, 1000, keys[1]), alphabet, keys[2])
    test_pairs = make_pairs(model, test_prompts, alphabet, keys[3])
    data, test_data = with_reference(model, pairs), with_reference(model, test_pairs)
    before = report("before", sample(model, test_prompts, keys[4]), alphabet)

    print(f"Tuning on {len(pairs)} pairs of answers, {len(test_pairs)} held out")
    # A reference that was trained for longer needs a tuning of its own.
    state = tune(model, data, arguments, f"tuning_after_{trained.step}_steps")
    nnx.update(model, state.params)
    after = report("after", sample(model, test_prompts, keys[4]), alphabet)
    loss, measured = evaluate(
        state,
        *test_data,
        loss=functools.partial(criterion, reduction="sum_and_weight"),
        batch_size=len(test_pairs),
        metrics={"accuracy": accuracy},
    )
    print(Result("Loss on held-out pairs", float(loss), "before", math.log(2)))
    print(Result("Held-out pairs in the right order", float(measured["accuracy"]), "chance", 0.5))
    result = Result("Upper-case letters in answers", after, "before", before, ".1%")
    print(result)
    if arguments.plot:
        found = margins(state.apply_fn(state.params, test_data[0]), test_data[1])
        save_figure(draw(np.asarray(found)), arguments.plot)
    print_end(arguments, "pass kind='hinge' to dpo_loss, or a larger BETA.")
    return result


def tune(model: CharacterModel, data: Any, arguments: argparse.Namespace, name: str) -> TrainState:
    """Trains a copy of the model on pairs of answers."""
    state = create_train_state(model, optax.adam(learning_rate=3e-4))
    with open_checkpoints(arguments, name) as checkpoints:
        state = checkpoints.restore(state)
        while (step := int(state.step)) < arguments.steps:
            steps = range(step, min(step + 100, arguments.steps))
            state, losses = train_epoch(state, batches(data, 32, steps, arguments.seed), loss=criterion)
            print(f"  Step {state.step:3}/{arguments.steps}  Loss: {losses.mean():.4f}", flush=True)
            checkpoints.save(state)
    return state


def draw_prompts(codes: np.ndarray, count: int, key: jax.Array) -> jax.Array:
    """Returns prompts that begin at random positions of the text."""
    starts = jax.random.randint(key, (count, 1), 0, len(codes) - PROMPT)
    return jnp.asarray(codes[np.asarray(starts) + np.arange(PROMPT)])


@nnx.jit
def sample(model: CharacterModel, prompts: jax.Array, key: jax.Array) -> jax.Array:
    """Returns prompts with answers that are sampled from the model, character by character."""

    def draw(window: jax.Array, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        hidden, kernel = model(window)
        character = jax.random.categorical(key, hidden[:, -1] @ kernel)
        return jnp.concatenate([window[:, 1:], character[:, None]], axis=1), character

    _, characters = lax.scan(draw, prompts, jax.random.split(key, ANSWER))
    return jnp.concatenate([prompts, characters.T], axis=1)


def make_pairs(model: CharacterModel, prompts: jax.Array, alphabet: np.ndarray, key: jax.Array) -> np.ndarray:
    """Samples two answers to each prompt, and returns `preferred_first` of the pairs."""
    texts = np.asarray(sample(model, jnp.repeat(prompts, 2, axis=0), key))
    return preferred_first(texts.reshape(len(prompts), 2, -1), alphabet)


def preferred_first(pairs: np.ndarray, alphabet: np.ndarray) -> np.ndarray:
    """Puts the answer with more upper-case letters first, and drops pairs with equally many."""
    shares = uppercase_shares(pairs, alphabet)
    order = np.argsort(-shares, axis=1)
    return np.take_along_axis(pairs, order[..., None], axis=1)[shares[:, 0] != shares[:, 1]]


def uppercase_shares(texts: np.ndarray, alphabet: np.ndarray) -> np.ndarray:
    """Returns the share of upper-case letters among the characters of each answer."""
    return np.mean(np.strings.isupper(alphabet[texts[..., PROMPT:]]), axis=-1)


def report(time: str, samples: jax.Array, alphabet: np.ndarray) -> float:
    """Prints some samples, and returns the share of upper-case letters in all of them."""
    texts = np.asarray(samples)
    print(f"Prompts and answers {time} the tuning:")
    for text in alphabet[texts[:3]]:
        print(f"  {''.join(text[:PROMPT])!r} -> {''.join(text[PROMPT:])!r}")
    return float(uppercase_shares(texts, alphabet).mean())


def with_reference(model: CharacterModel, pairs: np.ndarray) -> tuple[np.ndarray, Targets]:
    """Returns inputs and targets; the reference is the model as it is now."""
    inputs, characters = pairs[..., :-1], pairs[..., 1:]
    return inputs, (characters, np.asarray(log_probs(model(jnp.asarray(inputs)), characters)))


def draw(margins: np.ndarray) -> Figure:
    """Returns a histogram of the margins of the held-out pairs."""
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    axes.hist(margins, bins_from_zero(margins))
    axes.axvline(0, color="black", linewidth=1)
    axes.set(
        title=f"DPO: {np.mean(margins > 0):.1%} of the held-out pairs are in the right order",
        xlabel=f"reward of the chosen answer minus that of the rejected one, β = {BETA}",
        ylabel="number of pairs",
    )
    return figure


if __name__ == "__main__":
    main()
