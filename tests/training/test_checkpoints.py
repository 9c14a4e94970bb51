"""Checkpoints: saving and restoring, errors, and runs that are killed and resumed."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from jaxloss import cross_entropy
from jaxloss.models import Classifier
from jaxloss.training import Checkpoints, create_train_state, train_step
from tests.training.killed_runs import ADAM, assert_equal, batch, check_killed_runs, names

STEPS, EVERY = 12, 4
# For each step at which a run is killed: which of the sorted names in its folder are complete checkpoints.
COMPLETE = {6: [True], 8: [False, True]}


class Dropped(nnx.Module):
    """A model with a typed key in its state, wide enough that writing it takes a while."""

    def __init__(self, *, rngs):
        self.classifier = Classifier(20, 20_000, 3, rngs=rngs)
        self.dropout = nnx.Dropout(0.2, rngs=rngs)

    def __call__(self, inputs):
        return self.classifier(self.dropout(inputs))


def new_state():
    return create_train_state(Dropped(rngs=nnx.Rngs(0)), ADAM)


def run(folder, kill=None):
    """Resumes training, and kills its own process after step `kill`, between two saves or during one."""
    with Checkpoints(folder) as checkpoints:
        state = checkpoints.restore(new_state())
        for step in range(int(state.step) + 1, STEPS + 1):
            state, _ = train_step(state, *batch(step), loss=cross_entropy)
            if step % EVERY == 0:
                checkpoints.save(state)
            # At step 6 the checkpoint of step 4 is complete; at step 8 a second one is pending.
            while step == kill and sorted(map(str.isdigit, names(folder))) != COMPLETE[kill]:
                time.sleep(0.001)
            if step == kill:
                os.kill(os.getpid(), signal.SIGKILL)
    return state


def test_a_killed_and_resumed_run_equals_an_uninterrupted_one(tmp_path):
    expected = run(tmp_path / "whole")
    folder = tmp_path / "killed"
    for kill in COMPLETE:
        program = (
            "import pathlib; from tests.training.test_checkpoints import run; "
            f"run(pathlib.Path({str(folder)!r}), {kill})"
        )
        child = subprocess.run(
            [sys.executable, "-c", program],
            cwd=pathlib.Path(__file__).parents[2],
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert child.returncode == -signal.SIGKILL, child.stderr[-2000:]
        left = names(folder)
        assert sorted(map(str.isdigit, left)) == COMPLETE[kill], left
        assert "4" in left
    assert_equal(run(folder), expected)
    assert names(folder) == ["12", "8"]


def test_a_restored_state_equals_the_saved_one(tmp_path):
    state, _ = train_step(new_state(), *batch(1), loss=cross_entropy)
    kept = jax.tree.map(jnp.copy, state)
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.newest is None
        checkpoints.save(state)
        # The next step donates arrays that are still being written.
        state, _ = train_step(state, *batch(2), loss=cross_entropy)
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.newest == 1
        restored = checkpoints.restore(new_state())
        assert_equal(restored, kept)
        again, _ = train_step(restored, *batch(2), loss=cross_entropy)
        assert_equal(again, state)


def small_state(*sizes, optimizer=ADAM):
    return create_train_state(Classifier(*sizes, rngs=nnx.Rngs(0)), optimizer)


# Errors name a parameter first.
FIRST_MISMATCH = r"\['params'\]\['hidden'\]\['bias'\] is float32\[5\], expected "


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (lambda: small_state(6, 7, 3), FIRST_MISMATCH + r"float32\[7\]; "),
        (
            lambda: small_state(6, 5, 3, optimizer=optax.sgd(0.1)),
            r".*mu.* is float32\[.*\], expected nothing",
        ),
        (new_state, r"\['params'\]\['classifier'\].* is missing, expected .*; and \d+ more"),
        (
            lambda: jax.tree.map(lambda a: a.astype(jnp.bfloat16), small_state(6, 5, 3)),
            FIRST_MISMATCH + r"bfloat16\[5\]; ",
        ),
    ],
    ids=["shape", "optimizer", "model", "dtype"],
)
def test_a_checkpoint_that_does_not_match_the_state_raises(other, message, saved_once):
    files = sorted(saved_once.rglob("*"))
    with (
        Checkpoints(saved_once) as checkpoints,
        pytest.raises(ValueError, match=rf"checkpoint of step 0 in .* does not match this state: {message}"),
    ):
        checkpoints.restore(other())
    assert sorted(saved_once.rglob("*")) == files
    with Checkpoints(saved_once) as checkpoints:
        assert_equal(checkpoints.restore(small_state(6, 5, 3)), small_state(6, 5, 3))


@pytest.fixture(scope="module")
def saved_once(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoints")
    with Checkpoints(folder) as checkpoints:
        checkpoints.save(small_state(6, 5, 3))
        checkpoints.save(small_state(6, 5, 3))  # the same step: nothing happens
    return folder


@pytest.mark.parametrize(
    ("part", "number", "name"),
    [
        ("params", jnp.nan, r"\['params'\]\['output'\]\['bias'\]"),
        ("params", -jnp.inf, r"\['params'\]\['output'\]\['bias'\]"),
        ("momentum", jnp.nan, r"\['opt_state'\]\[0\].mu\['output'\]\['bias'\]"),
    ],
)
def test_a_non_finite_state_is_not_saved(part, number, name, tmp_path):
    state = small_state(6, 5, 3)
    broken = jax.tree.map(jnp.copy, state)
    tree = broken.params if part == "params" else broken.opt_state[0].mu
    tree["output"]["bias"] = jnp.array([0.0, number, 0.0])
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state)
        with pytest.raises(FloatingPointError, match=rf"^{name} of the state .* at step 1.* of step 0"):
            checkpoints.save(broken.replace(step=broken.step + 1))
        assert checkpoints.newest == 0


def test_an_infinite_best_loss_in_the_optimizer_state_is_saved(tmp_path):
    state = small_state(6, 5, 3, optimizer=optax.chain(ADAM, optax.contrib.reduce_on_plateau()))
    assert any(np.isinf(leaf).any() for leaf in jax.tree.leaves(state.opt_state))
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state)
        assert checkpoints.newest == 0


def test_restore_waits_for_a_pending_save(tmp_path):
    first = new_state()
    second = first.replace(step=first.step + 1)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(first)
        assert (tmp_path / str(checkpoints.newest)).is_dir()
        checkpoints.save(second)
        assert_equal(checkpoints.restore(new_state()), second)


def test_close_waits_for_a_pending_save(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(new_state())
    checkpoints.close()
    assert names(tmp_path) == ["0"]


def test_use_after_close_raises(tmp_path):
    state = small_state(6, 5, 3)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state)
    checkpoints.close()  # closing twice is allowed
    uses = checkpoints.save, checkpoints.restore, lambda _: checkpoints.newest
    for use in uses:
        with pytest.raises(ValueError, match=r"the checkpoints in .* are closed"):
            use(state.replace(step=state.step + 1))
    assert names(tmp_path) == ["0"]


def test_a_float64_checkpoint_is_not_rounded_to_float32(tmp_path):
    with jax.enable_x64(True), Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(create_train_state((jnp.multiply, np.ones(3)), ADAM))
    state = create_train_state((jnp.multiply, np.ones(3)), ADAM)
    message = r"\['params'\] is float64\[3\], expected float32\[3\]"
    with Checkpoints(tmp_path) as checkpoints, pytest.raises(ValueError, match=message):
        checkpoints.restore(state)


def test_a_state_that_cannot_be_saved_raises(tmp_path):
    state = create_train_state((lambda params, inputs: inputs, {"w": jnp.ones(2), "b": jnp.ones(0)}), ADAM)
    with Checkpoints(tmp_path) as checkpoints:
        with pytest.raises(ValueError, match=r"cannot hold arrays of size 0, got .*\['b'\]"):
            checkpoints.save(state)
        jax.tree.map(lambda array: array.delete(), state)
        with pytest.raises(ValueError, match="state was donated to an earlier train_step"):
            checkpoints.save(state)
    assert not list(tmp_path.iterdir())


def test_saving_or_restoring_anything_but_a_train_state_raises(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        for use in (checkpoints.save, checkpoints.restore):
            with pytest.raises(TypeError, match=r"state must be a TrainState, .*; got None"):
                use(None)


def test_saving_a_step_before_the_newest_raises(tmp_path):
    state = small_state(6, 5, 3)
    with Checkpoints(tmp_path) as checkpoints:
        for step in (20, 30):
            checkpoints.save(state.replace(step=jnp.int32(step)))
        for step in (10, 20):
            with pytest.raises(ValueError, match=rf"newest .* is of step 30, later than step {step} of"):
                checkpoints.save(state.replace(step=jnp.int32(step)))
    assert names(tmp_path) == ["20", "30"]


def test_saving_another_state_of_the_same_step_raises(tmp_path):
    first = small_state(6, 5, 3)
    second = first.replace(params=jax.tree.map(lambda parameter: parameter + 1, first.params))
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(first)
        checkpoints.save(first)
        with pytest.raises(ValueError, match=r"of step 0, too, and has another state; restore it, or use"):
            checkpoints.save(second)
        assert_equal(checkpoints.restore(second), first)


@pytest.mark.parametrize(
    ("name", "keep", "error", "message"),
    [
        ("folder", 0, ValueError, "keep must be at least 1, got 0"),
        ("folder", None, TypeError, "keep must be an integer, got None"),
        ("gs://bucket/run", 2, ValueError, "directory must be local or mounted, got gs://bucket/run"),
        (__file__, 2, NotADirectoryError, "directory must not be a file, got .*test_checkpoints.py"),
    ],
)
def test_invalid_directories_and_options_raise(name, keep, error, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=message):
        Checkpoints(name, keep=keep)
    assert not list(tmp_path.iterdir())


def test_only_the_newest_checkpoints_are_kept(tmp_path):
    state = small_state(6, 5, 3)
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        for step in range(4):
            checkpoints.save(state.replace(step=jnp.int32(step)))
    assert names(tmp_path) == ["2", "3"]


def test_a_run_killed_at_random_and_resumed_equals_an_uninterrupted_one():
    steps, _ = check_killed_runs(2)
    assert steps > 4
