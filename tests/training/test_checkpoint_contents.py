"""Contents of checkpoints: the best step, any chosen step, parameters alone, NumPy and Python leaves."""

import pathlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxloss import cross_entropy
from jaxloss.training import Checkpoints, train_step
from tests.training.killed_runs import assert_equal, names
from tests.training.test_checkpoints import FIRST_MISMATCH, small_state


def scored(tmp_path, accuracies, **options):
    """Saves one checkpoint per accuracy, and returns the steps that are left and the best."""
    state = small_state(6, 5, 3)
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
def test_the_best_and_the_newest_checkpoints_are_kept(accuracies, options, left, best, tmp_path):
    assert scored(tmp_path, accuracies, **options) == (left, best)
    # A new object, as in another process, finds the same.
    with Checkpoints(tmp_path, best="accuracy", best_mode=options.get("best_mode", "max")) as checkpoints:
        assert checkpoints.best == best
        assert checkpoints.newest == len(accuracies) - 1
        if best is not None:
            assert int(checkpoints.restore(small_state(6, 5, 3), step=checkpoints.best).step) == best
    with Checkpoints(tmp_path, best="other") as checkpoints:
        assert checkpoints.best is None


@pytest.mark.parametrize(
    ("options", "metrics", "error", "message"),
    [
        ({"best": "accuracy"}, None, ValueError, "mapping that has 'accuracy', .*; got None"),
        ({"best": "accuracy"}, 0.9, ValueError, "mapping that has 'accuracy', .*; got 0.9"),
        ({"best": "accuracy"}, {"loss": 1.0}, ValueError, "has 'accuracy', .*; got metrics loss"),
        ({}, {"loss": 1.0}, ValueError, r"metrics can be saved only .* Checkpoints\(directory, best="),
        ({"best": "a"}, {"a": jnp.ones(2)}, TypeError, r"real scalars, got .*1., 1.* for 'a'"),
        ({"best": "a"}, {"a": "0.5"}, TypeError, "real scalars, got '0.5' for 'a'"),
        ({"best": "a"}, {"a": None}, TypeError, "real scalars, got None for 'a'"),
        ({"best": "a"}, {"a": 1j}, TypeError, "real scalars, got 1j for 'a'"),
    ],
)
def test_invalid_metrics_raise(options, metrics, error, message, tmp_path):
    with Checkpoints(tmp_path, **options) as checkpoints, pytest.raises(error, match=message):
        checkpoints.save(small_state(6, 5, 3), metrics)
    assert not names(tmp_path)


def test_invalid_options_raise(tmp_path):
    for options, message in (
        ({"best_mode": "most"}, "best_mode must be 'max' or 'min', got 'most'"),
        ({"keep_period": 0}, "keep_period must be at least 1, got 0"),
    ):
        with pytest.raises(ValueError, match=message):
            Checkpoints(tmp_path, **options)
    with Checkpoints(tmp_path) as checkpoints, pytest.raises(ValueError, match='best="accuracy"'):
        _ = checkpoints.best


def test_a_chosen_step_can_be_restored(tmp_path):
    state = small_state(6, 5, 3)
    with Checkpoints(tmp_path, keep=3) as checkpoints:
        with pytest.raises(ValueError, match=r"no checkpoint of step 4 in .*; the directory has none"):
            checkpoints.restore(state, step=4)
        for step in (4, 8, 12):
            checkpoints.save(state.replace(step=jnp.int32(step)))
        for step in (4, 8, 12):
            assert int(checkpoints.restore(state, step=step).step) == step
        for use in (checkpoints.restore, lambda state, step: checkpoints.restore_params(state.params, step)):
            with pytest.raises(ValueError, match=r"no checkpoint of step 5 in .*; available steps: 4, 8, 12"):
                use(state, step=5)


def test_parameters_are_restored_without_the_optimizer_state(tmp_path):
    saved, _ = train_step(
        small_state(6, 5, 3), np.ones((4, 6), np.float32), np.array([0, 1, 2, 0]), loss=cross_entropy
    )
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(saved)
        # Only the parameters are read.
        new = small_state(6, 5, 3, optimizer=optax.sgd(0.1))
        assert_equal(checkpoints.restore_params(new.params), saved.params)
        assert_equal(checkpoints.restore_params(jax.tree.map(np.asarray, new.params), step=1), saved.params)
        for other, message in (
            (small_state(6, 7, 3).params, FIRST_MISMATCH + r"float32\[7\]; "),
            (
                small_state(6, 5, 3).params["hidden"],
                r"\['params'\]\['bias'\] is missing, expected float32\[5\]; ",
            ),
        ):
            with pytest.raises(ValueError, match=f"does not match these parameters: {message}"):
                checkpoints.restore_params(other)


def test_the_restored_step_is_logged(tmp_path, caplog):
    state = small_state(6, 5, 3)
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
from tests.training.test_checkpoints import small_state
for best in None, "accuracy":
    for _ in range(2):
        with Checkpoints({str(tmp_path)!r} + str(best), best=best) as checkpoints:
            state = checkpoints.restore(small_state(6, 5, 3))
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


def test_numpy_and_python_leaves_are_saved(tmp_path):
    state = small_state(6, 5, 3).replace(model_state=LEAVES, step=7)
    zeros = jax.tree.map(lambda leaf: leaf ^ leaf if isinstance(leaf, bool | np.bool) else leaf * 0, LEAVES)
    expected = {name: jnp.asarray(leaf, jnp.result_type(leaf)) for name, leaf in LEAVES.items()}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state)
        checkpoints.save(state)  # the same state again
        restored = checkpoints.restore(small_state(6, 5, 3).replace(model_state=zeros, step=0))
        assert int(restored.step) == 7
        assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(restored))
        assert_equal(restored.model_state, expected)
        assert {name: leaf.dtype.name for name, leaf in restored.model_state.items()} == {
            "array": "int16",
            "bfloat16": "bfloat16",
            "scalar": "float32",
            "flag": "bool",
            "int": "int32",
            "float": "float32",
            "bool": "bool",
        }
        assert_equal(checkpoints.restore(restored).model_state, expected)


def test_a_numpy_array_may_change_while_it_is_saved(tmp_path):
    counts = np.zeros(100_000, np.float32)
    state = small_state(6, 5, 3).replace(model_state={"counts": counts})
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
def test_a_leaf_that_jax_cannot_hold_raises(leaf, found, tmp_path):
    state = small_state(6, 5, 3)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save(state)
        broken = state.replace(model_state={"leaf": leaf}, step=state.step + 1)
        for use in (checkpoints.save, checkpoints.restore):
            with pytest.raises(
                TypeError, match=rf"with JAX dtypes, got {found} for \['model_state'\]\['leaf'\]"
            ):
                use(broken)
        assert checkpoints.newest == 0
