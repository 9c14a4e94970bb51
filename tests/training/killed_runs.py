"""Runs that are killed at random times and resumed end with the same bits as an uninterrupted run.

python -m tests.training.killed_runs 30
"""

import multiprocessing
import pathlib
import random
import sys
import tempfile
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxloss import cross_entropy
from jaxloss.training import Checkpoints, create_train_state, train_step

ADAM = optax.adam(0.01)
EVERY = 2
MAX_DELAY = 1.0  # seconds from the first save until the kill


def noisy(params, key, inputs):
    """A model with a typed key in its state, wide enough that writing it takes a while."""
    key, now = jax.random.split(key)
    kept = jax.random.bernoulli(now, 0.8, inputs.shape)
    hidden = jax.nn.relu(jnp.where(kept, inputs, 0) @ params["hidden"])
    return hidden @ params["output"], key


def new_state():
    random = np.random.default_rng(0)
    sizes = {"hidden": (20, 20_000), "output": (20_000, 3)}
    params = {name: random.normal(0, 0.05, size).astype(np.float32) for name, size in sizes.items()}
    return create_train_state((noisy, params, jax.random.key(0)), ADAM)


def batch(step):
    """Returns the batch of a step, which depends only on the step number."""
    random = np.random.default_rng((0, step))
    return random.normal(size=(8, 20)).astype(np.float32), random.integers(3, size=8)


def names(folder):
    """Returns the names in a folder, except the lock file of its writer."""
    return sorted(path.name for path in folder.iterdir() if path.name != ".writer")


def assert_equal(actual, expected):
    def compare(actual, expected):
        assert actual.dtype == expected.dtype
        bits = jax.random.key_data if jnp.issubdtype(actual.dtype, jax.dtypes.prng_key) else np.asarray
        np.testing.assert_array_equal(bits(actual), bits(expected))

    jax.tree.map(compare, actual, expected)


def train(folder, steps, started=None):
    """Resumes from the newest checkpoint and trains up to a step, or endlessly if `steps` is None."""
    with Checkpoints(folder) as checkpoints:
        state = checkpoints.restore(new_state())
        while steps is None or state.step < steps:
            step = int(state.step) + 1
            state, _ = train_step(state, *batch(step), loss=cross_entropy)
            if step % EVERY == 0:
                checkpoints.save(state)
                if started:
                    started.set()
    return state


def uninterrupted(steps):
    state = new_state()
    for step in range(1, steps + 1):
        state, _ = train_step(state, *batch(step), loss=cross_entropy)
    return state


def check_killed_runs(kills, seed=0):
    """Kills and resumes a run; returns the number of steps, and of kills that interrupted a save."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.training.killed_runs"])
    chance = random.Random(seed)
    during_save = 0
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        for _ in range(kills):
            started = context.Event()
            child = context.Process(target=train, args=(folder, None, started), daemon=True)
            child.start()
            try:
                if not started.wait(timeout=120):
                    raise RuntimeError(f"a run does not start; its exit code is {child.exitcode}")
                time.sleep(chance.uniform(0, MAX_DELAY))
            finally:
                child.kill()
                child.join()
            during_save += not all(map(str.isdigit, names(folder)))
        with Checkpoints(folder) as checkpoints:
            steps = (checkpoints.newest or 0) + 2 * EVERY
        assert_equal(train(folder, steps), uninterrupted(steps))
        # A kill may have interrupted a deletion, which then leaves empty folders.
        assert {path.relative_to(folder).parts[0] for path in folder.rglob("*") if path.is_file()} == {
            ".writer",
            str(steps - EVERY),
            str(steps),
        }
    return steps, during_save


if __name__ == "__main__":
    count = int(sys.argv[1])
    steps, during_save = check_killed_runs(count)
    print(f"{count} kills, {during_save} of them during a save, in {steps} steps: the same bits")
