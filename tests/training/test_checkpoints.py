"""Checkpoints: what comes back, what is refused, and runs that are killed for real."""

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
from tests.training.killed_runs import ADAM, batch, check_killed_runs, equal, names

STEPS, EVERY = 12, 4
# Which of the names in the folder are those of complete checkpoints when a run is killed.
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
    """Trains on, and kills its own process after the step `kill`, between two saves or during one."""
    with Checkpoints(folder) as checkpoints:
        state = checkpoints.restore(new_state())
        for step in range(int(state.step) + 1, STEPS + 1):
            state, _ = train_step(state, *batch(step), loss=cross_entropy)
            if step % EVERY == 0:
                checkpoints.save(state)
            # At step 6 the checkpoint of step 4 is complete, and at step 8 there is one more, under way.
            while step == kill and sorted(map(str.isdigit, names(folder))) != COMPLETE[kill]:
                time.sleep(0.001)
            if step == kill:
                os.kill(os.getpid(), signal.SIGKILL)
    return state


def test_a_killed_run_ends_as_one_that_was_not(tmp_path):
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
    equal(run(folder), expected)
    assert names(folder) == ["12", "8"]


def test_a_state_comes_back_as_it_was(tmp_path):
    state, _ = train_step(new_state(), *batch(1), loss=cross_entropy)
    kept = jax.tree.map(jnp.copy, state)
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.newest is None
        checkpoints.save(state)
        # The next step takes the arrays that are still being written.
        state, _ = train_step(state, *batch(2), loss=cross_entropy)
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.newest == 1
        restored = checkpoints.restore(new_state())
        equal(restored, kept)
        again, _ = train_step(restored, *batch(2), loss=cross_entropy)
        equal(again, state)


def small(*sizes, optimizer=ADAM):
    return create_train_state(Classifier(*sizes, rngs=nnx.Rngs(0)), optimizer)


# The parameters are named first.
FIRST = r"\['params'\]\['hidden'\]\['bias'\] is float32\[5\], expected "


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (lambda: small(6, 7, 3), FIRST + r"float32\[7\]; "),
        (lambda: small(6, 5, 3, optimizer=optax.sgd(0.1)), r".*mu.* is float32\[.*\], expected nothing"),
        (new_state, r"\['params'\]\['classifier'\].* is missing, expected .*; and \d+ more"),
        (
            lambda: jax.tree.map(lambda a: a.astype(jnp.bfloat16), small(6, 5, 3)),
            FIRST + r"bfloat16\[5\]; ",
        ),
    ],
    ids=["shape", "optimizer", "model", "dtype"],
)
def test_a_checkpoint_of_something_else_is_refused(other, message, saved_once):
    files = sorted(saved_once.rglob("*"))
    with (
        Checkpoints(saved_once) as checkpoints,
        pytest.raises(ValueError, match=rf"checkpoint of step 0 in .* does not match this state: {message}"),
    ):
        checkpoints.restore(other())
    assert sorted(saved_once.rglob("*")) == files
    with Checkpoints(saved_once) as checkpoints:
        equal(checkpoints.restore(small(6, 5, 3)), small(6, 5, 3))


@pytest.fixture(scope="module")
def saved_once(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoints")
    with Checkpoints(folder) as checkpoints:
        checkpoints.save(small(6, 5, 3))
        checkpoints.save(small(6, 5, 3))  # the same step: nothing happens
    return folder


@pytest.mark.parametrize(
    ("part", "number", "name"),
    [
        ("params", jnp.nan, r"\['params'\]\['output'\]\['bias'\]"),
        ("params", -jnp.inf, r"\['params'\]\['output'\]\['bias'\]"),
        ("momentum", jnp.nan, r"\['opt_state'\]\[0\].mu\['output'\]\['bias'\]"),
    ],
)
def test_what_is_not_finite_is_not_saved(part, number, name, tmp_path):
    state = small(6, 5, 3)
    broken = jax.tree.map(jnp.copy, state)
    tree = broken.params if part == "params" else broken.opt_state[0].mu
    tree["output"]["bias"] = jnp.array([0.0, number, 0.0])
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state)
        with pytest.raises(FloatingPointError, match=rf"^{name} of the state .* at step 1.* of step 0"):
            checkpoints.save(broken.replace(step=broken.step + 1))
        assert checkpoints.newest == 0


def test_the_best_loss_of_an_optimizer_may_be_infinite(tmp_path):
    state = small(6, 5, 3, optimizer=optax.chain(ADAM, optax.contrib.reduce_on_plateau()))
    assert any(np.isinf(leaf).any() for leaf in jax.tree.leaves(state.opt_state))
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state)
        assert checkpoints.newest == 0


def test_what_was_just_saved_is_waited_for(tmp_path):
    first = new_state()
    second = first.replace(step=first.step + 1)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(first)
        assert (tmp_path / str(checkpoints.newest)).is_dir()
        checkpoints.save(second)
        equal(checkpoints.restore(new_state()), second)


def test_a_folder_that_is_closed_is_complete(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(new_state())
    checkpoints.close()
    assert names(tmp_path) == ["0"]


def test_a_folder_that_is_closed_takes_and_gives_nothing(tmp_path):
    state = small(6, 5, 3)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state)
    checkpoints.close()  # once more does no harm
    uses = checkpoints.save, checkpoints.restore, lambda _: checkpoints.newest
    for use in uses:
        with pytest.raises(ValueError, match=r"the checkpoints in .* are closed"):
            use(state.replace(step=state.step + 1))
    assert names(tmp_path) == ["0"]


def test_a_checkpoint_of_64_bits_is_not_rounded(tmp_path):
    with jax.enable_x64(True), Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(create_train_state((jnp.multiply, np.ones(3)), ADAM))
    state = create_train_state((jnp.multiply, np.ones(3)), ADAM)
    message = r"\['params'\] is float64\[3\], expected float32\[3\]"
    with Checkpoints(tmp_path) as checkpoints, pytest.raises(ValueError, match=message):
        checkpoints.restore(state)


def test_what_cannot_be_saved_is_named(tmp_path):
    state = create_train_state((lambda params, inputs: inputs, {"w": jnp.ones(2), "b": jnp.ones(0)}), ADAM)
    with Checkpoints(tmp_path) as checkpoints:
        with pytest.raises(ValueError, match=r"cannot hold arrays of size 0, got .*\['b'\]"):
            checkpoints.save(state)
        jax.tree.map(lambda array: array.delete(), state)
        with pytest.raises(ValueError, match="state was donated to an earlier train_step"):
            checkpoints.save(state)
    assert not list(tmp_path.iterdir())


def test_what_is_no_state_is_neither_saved_nor_restored(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        for use in (checkpoints.save, checkpoints.restore):
            with pytest.raises(TypeError, match=r"state must be a TrainState, .*; got None"):
                use(None)


def test_a_step_before_the_newest_is_refused(tmp_path):
    state = small(6, 5, 3)
    with Checkpoints(tmp_path) as checkpoints:
        for step in (20, 30):
            checkpoints.save(state.replace(step=jnp.int32(step)))
        for step in (10, 20):
            with pytest.raises(ValueError, match=rf"newest .* is of step 30, after step {step}; restore it"):
                checkpoints.save(state.replace(step=jnp.int32(step)))
    assert names(tmp_path) == ["20", "30"]


def test_another_state_of_the_same_step_is_refused(tmp_path):
    first = small(6, 5, 3)
    second = first.replace(params=jax.tree.map(lambda parameter: parameter + 1, first.params))
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(first)
        checkpoints.save(first)
        with pytest.raises(ValueError, match=r"of step 0, too, and has another state; restore it, or use"):
            checkpoints.save(second)
        equal(checkpoints.restore(second), first)


@pytest.mark.parametrize(
    ("name", "keep", "error", "message"),
    [
        ("folder", 0, ValueError, "keep must be at least 1, got 0"),
        ("folder", None, TypeError, "keep must be an integer, got None"),
        ("gs://bucket/run", 2, ValueError, "directory must be local or mounted, got gs://bucket/run"),
        (__file__, 2, NotADirectoryError, "directory must not be a file, got .*test_checkpoints.py"),
    ],
)
def test_what_can_hold_no_checkpoints_is_refused(name, keep, error, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=message):
        Checkpoints(name, keep=keep)
    assert not list(tmp_path.iterdir())


def test_only_so_many_are_kept(tmp_path):
    state = small(6, 5, 3)
    with Checkpoints(tmp_path, keep=2) as checkpoints:
        for step in range(4):
            checkpoints.save(state.replace(step=jnp.int32(step)))
    assert names(tmp_path) == ["2", "3"]


def scored(tmp_path, accuracies, **options):
    """Saves one checkpoint per accuracy, and returns the steps that are left and the best."""
    state = small(6, 5, 3)
    with Checkpoints(tmp_path, best="accuracy", **options) as checkpoints:
        for step, accuracy in enumerate(accuracies):
            checkpoints.save(state.replace(step=jnp.int32(step)), {"accuracy": accuracy, "loss": 1.0})
        best = checkpoints.best
    return names(tmp_path), best


@pytest.mark.parametrize(
    ("accuracies", "options", "left", "best"),
    [
        ([0.1, 0.9, 0.5, 0.4, 0.3], {}, ["1", "3", "4"], 1),
        ([0.1, 0.9, 0.5, 0.4, 0.3], {"best_mode": "min", "keep": 1}, ["0", "4"], 0),
        ([0.1, 0.9, 0.5, 0.9, 0.3], {"keep": 1}, ["3", "4"], 3),
        ([0.1, 0.2, 0.3], {"keep": 1}, ["2"], 2),
        ([jnp.nan, 0.2, np.nan, 0.1], {"keep": 1}, ["1", "3"], 1),
        ([0.5, np.nan, 0.6], {"keep": 1, "best_mode": "min"}, ["0", "2"], 0),
        ([np.nan, np.nan], {"keep": 2}, ["0", "1"], None),
        ([jnp.float32(0.25), np.float64(0.125), 1], {"keep": 1}, ["2"], 2),
        ([0.9, 0.5, 0.4, 0.3, 0.2, 0.1], {"keep": 1, "keep_period": 2}, ["0", "2", "4", "5"], 0),
    ],
)
def test_the_best_and_the_newest_are_kept(accuracies, options, left, best, tmp_path):
    assert scored(tmp_path, accuracies, **options) == (left, best)
    # Another process finds the same.
    with Checkpoints(tmp_path, best="accuracy", best_mode=options.get("best_mode", "max")) as checkpoints:
        assert checkpoints.best == best
        assert checkpoints.newest == len(accuracies) - 1
        if best is not None:
            assert int(checkpoints.restore(small(6, 5, 3), step=checkpoints.best).step) == best
    with Checkpoints(tmp_path, best="other") as checkpoints:
        assert checkpoints.best is None


@pytest.mark.parametrize(
    ("options", "metrics", "error", "message"),
    [
        ({"best": "accuracy"}, None, ValueError, "metrics must hold the metric of best='accuracy', got None"),
        ({"best": "accuracy"}, {"loss": 1.0}, ValueError, r"best='accuracy', got \['loss'\]"),
        ({}, {"loss": 1.0}, ValueError, r"metrics need .* Checkpoints\(directory, best="),
        ({"best": "a"}, {"a": jnp.ones(2)}, TypeError, r"real scalars, got .*1., 1.* for 'a'"),
        ({"best": "a"}, {"a": "0.5"}, TypeError, "real scalars, got '0.5' for 'a'"),
        ({"best": "a"}, {"a": None}, TypeError, "real scalars, got None for 'a'"),
        ({"best": "a"}, {"a": 1j}, TypeError, "real scalars, got 1j for 'a'"),
    ],
)
def test_what_is_no_metric_is_refused(options, metrics, error, message, tmp_path):
    with Checkpoints(tmp_path, **options) as checkpoints, pytest.raises(error, match=message):
        checkpoints.save(small(6, 5, 3), metrics)
    assert not names(tmp_path)


def test_the_best_needs_a_metric(tmp_path):
    for options, message in (
        ({"best_mode": "most"}, "best_mode must be 'max' or 'min', got 'most'"),
        ({"keep_period": 0}, "keep_period must be at least 1, got 0"),
    ):
        with pytest.raises(ValueError, match=message):
            Checkpoints(tmp_path, **options)
    with Checkpoints(tmp_path) as checkpoints, pytest.raises(ValueError, match='best="accuracy"'):
        _ = checkpoints.best


def test_any_step_can_be_restored(tmp_path):
    state = small(6, 5, 3)
    with Checkpoints(tmp_path, keep=3) as checkpoints:
        with pytest.raises(ValueError, match=r"no checkpoint of step 4 in .*; there are none"):
            checkpoints.restore(state, step=4)
        for step in (4, 8, 12):
            checkpoints.save(state.replace(step=jnp.int32(step)))
        for step in (4, 8, 12):
            assert int(checkpoints.restore(state, step=step).step) == step
        for use in (checkpoints.restore, lambda state, step: checkpoints.restore_params(state.params, step)):
            with pytest.raises(
                ValueError, match=r"no checkpoint of step 5 in .*; there are of steps 4, 8, 12"
            ):
                use(state, step=5)


def test_parameters_come_back_without_their_optimizer(tmp_path):
    saved, _ = train_step(
        small(6, 5, 3), np.ones((4, 6), np.float32), np.array([0, 1, 2, 0]), loss=cross_entropy
    )
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(saved)
        # Nothing but the parameters is read.
        new = small(6, 5, 3, optimizer=optax.sgd(0.1))
        equal(checkpoints.restore_params(new.params), saved.params)
        equal(checkpoints.restore_params(jax.tree.map(np.asarray, new.params), step=1), saved.params)
        for other, message in (
            (small(6, 7, 3).params, FIRST + r"float32\[7\]; "),
            (small(6, 5, 3).params["hidden"], r"\['params'\]\['bias'\] is missing, expected float32\[5\]; "),
        ):
            with pytest.raises(ValueError, match=f"does not match these parameters: {message}"):
                checkpoints.restore_params(other)


def test_the_restored_step_is_logged(tmp_path, caplog):
    state = small(6, 5, 3)
    caplog.set_level("INFO", "jaxloss.training")
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.restore(state)
        checkpoints.save(state.replace(step=jnp.int32(20)))
        checkpoints.restore(state)
        checkpoints.restore_params(state.params)
    messages = [record.getMessage() for record in caplog.records if record.name == "jaxloss.training"]
    assert messages == [
        f"no checkpoint in {tmp_path}",
        f"restored step 20 from {tmp_path}",
        f"restored the parameters of step 20 from {tmp_path}",
    ]


def test_nothing_is_printed(tmp_path):
    program = f"""
from jaxloss.training import Checkpoints
from tests.training.test_checkpoints import small
for best in None, "accuracy":
    for _ in range(2):
        with Checkpoints({str(tmp_path)!r} + str(best), best=best) as checkpoints:
            state = checkpoints.restore(small(6, 5, 3))
            state = state.replace(step=state.step + 1)
            checkpoints.save(state, best and {{"accuracy": 0.5}})
            checkpoints.restore_params(state.params)
"""
    child = subprocess.run(
        [sys.executable, "-c", program],
        cwd=pathlib.Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    assert (child.stdout, child.stderr) == ("", "")


LEAVES = {
    "array": np.arange(3, dtype=np.int16),
    "bfloat16": np.ones(2, jnp.bfloat16),
    "scalar": np.float32(0.5),
    "flag": np.bool_(True),
    "int": 3,
    "float": 0.1,
    "bool": True,
}


def test_leaves_of_numpy_and_python_are_saved(tmp_path):
    state = small(6, 5, 3).replace(model_state=LEAVES, step=7)
    zeros = jax.tree.map(lambda leaf: leaf ^ leaf if isinstance(leaf, bool | np.bool) else leaf * 0, LEAVES)
    expected = {name: jnp.asarray(leaf, jnp.result_type(leaf)) for name, leaf in LEAVES.items()}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state)
        checkpoints.save(state)  # the same one
        restored = checkpoints.restore(small(6, 5, 3).replace(model_state=zeros, step=0))
        assert int(restored.step) == 7
        assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(restored))
        equal(restored.model_state, expected)
        assert {name: leaf.dtype.name for name, leaf in restored.model_state.items()} == {
            "array": "int16",
            "bfloat16": "bfloat16",
            "scalar": "float32",
            "flag": "bool",
            "int": "int32",
            "float": "float32",
            "bool": "bool",
        }
        equal(checkpoints.restore(restored).model_state, expected)


def test_a_numpy_array_is_saved_as_it_was(tmp_path):
    counts = np.zeros(100_000, np.float32)
    state = small(6, 5, 3).replace(model_state={"counts": counts})
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state)
        counts[:] = 1  # while it is written
        assert not checkpoints.restore(state).model_state["counts"].any()


@pytest.mark.parametrize(
    ("leaf", "found"),
    [
        (np.ones(2), "float64"),
        (np.int64(2**40), "int64"),
        (2**40, "int"),
        ("text", "str"),
        (np.array(["text"]), "<U4"),
        (np.array([object()]), "object"),
        (np.ones(2, ">f4"), ">f4"),
    ],
)
def test_a_leaf_that_jax_cannot_hold_is_named(leaf, found, tmp_path):
    state = small(6, 5, 3)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state)
        broken = state.replace(model_state={"leaf": leaf}, step=state.step + 1)
        for use in (checkpoints.save, checkpoints.restore):
            with pytest.raises(
                TypeError, match=rf"that JAX can hold, got {found} for \['model_state'\]\['leaf'\]"
            ):
                use(broken)
        assert checkpoints.newest == 0


def test_a_run_that_is_killed_at_random_ends_as_one_that_was_not():
    steps, _ = check_killed_runs(2)
    assert steps > 4
