"""Robustness of checkpoint folders: concurrent readers, a second writer, damage, and foreign files."""

import gc
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxloss.training import Checkpoints, create_train_state
from jaxloss.training.writer_lock import lock_for_writing

ROOT = pathlib.Path(__file__).parents[2]
WIDTH = 512  # wide enough that the array has a file of its own


ADAM = optax.adam(0.1)


def state_at(step):
    """Returns a state whose parameters all equal its step number."""
    state = create_train_state((jnp.multiply, {"w": jnp.full((WIDTH, 8), step, jnp.float32)}), ADAM)
    return state.replace(step=jnp.int32(step))


def save_steps(folder, *steps):
    with Checkpoints(folder, keep=10) as checkpoints:
        for step in steps:
            checkpoints.save(state_at(step))
    return folder


def snapshot(folder):
    """Returns everything in a folder that a reader could change."""
    found = {path: path.lstat() for path in [folder, *folder.rglob("*")]}
    return {path: (stat.st_mtime_ns, stat.st_size, stat.st_ino) for path, stat in found.items()}


def start_child(program, folder):
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", program, str(folder)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


# Readers


def test_a_reader_changes_nothing(tmp_path):
    folder = save_steps(tmp_path, 4, 8)
    # An unfinished save, of a killed run or of one that is still running.
    (folder / "12.orbax-checkpoint-tmp" / "default").mkdir(parents=True)
    before = snapshot(folder)
    with Checkpoints(folder, best="accuracy") as checkpoints:
        assert checkpoints.newest == 8
        assert checkpoints.best is None
        assert int(checkpoints.restore(state_at(0)).step) == 8
        assert checkpoints.restore_params(state_at(0).params)["w"][0, 0] == 8
    assert snapshot(folder) == before
    with Checkpoints(folder, keep=10) as checkpoints:
        checkpoints.save(state_at(12))
    assert sorted(path.name for path in folder.iterdir()) == [".writer", "12", "4", "8"]


def test_a_reader_creates_no_folder(tmp_path):
    with Checkpoints(tmp_path / "none") as checkpoints:
        assert checkpoints.newest is None
        state = state_at(3)
        assert checkpoints.restore(state) is state
        with pytest.raises(FileNotFoundError, match=r"no checkpoint in .*none"):
            checkpoints.restore_params(state.params)
    assert not list(tmp_path.iterdir())


def test_a_reader_sees_completed_checkpoints_of_a_writer(tmp_path):
    with Checkpoints(tmp_path) as reader, Checkpoints(tmp_path) as writer:
        for step in (1, 2, 3):
            writer.save(state_at(step))
            # The save may be pending.
            assert reader.newest in (None if step == 1 else step - 1, step)
            with Checkpoints(tmp_path) as another:
                assert another.newest in (None if step == 1 else step - 1, step)
            assert writer.newest == step
            assert int(reader.restore(state_at(0)).step) == step


READ = """
import pathlib, sys
import numpy as np
from jaxloss.training import Checkpoints
from tests.training.test_checkpoint_folders import state_at
seen = []
with Checkpoints(sys.argv[1]) as checkpoints:
    print("ready", flush=True)
    while not seen or seen[-1] < 30:
        state = checkpoints.restore(state_at(0))
        w = np.asarray(state.params["w"])
        assert (w == int(state.step)).all()
        seen.append(int(state.step))
assert seen == sorted(seen), seen
print(len(set(seen)))
"""


def test_a_concurrent_reader_finds_only_complete_checkpoints(tmp_path):
    reader = start_child(READ, tmp_path)
    try:
        assert reader.stdout.readline() == "ready\n"
        with Checkpoints(tmp_path, keep=1) as checkpoints:
            for step in range(1, 31):
                checkpoints.save(state_at(step))
        output, errors = reader.communicate(timeout=60)
    finally:
        reader.kill()
    assert reader.returncode == 0, errors[-2000:]
    assert int(output) > 1


# Writers

WRITE = """
import sys
from jaxloss.training import Checkpoints
from tests.training.test_checkpoint_folders import state_at
checkpoints = Checkpoints(sys.argv[1])
checkpoints.save(state_at(4))
print(checkpoints.newest, flush=True)
sys.stdin.read()
"""


def test_a_second_writer_raises_and_names_the_first(tmp_path):
    first = start_child(WRITE, tmp_path)
    with first, Checkpoints(tmp_path) as checkpoints:
        try:
            assert first.stdout.readline() == "4\n"
            assert int(checkpoints.restore(state_at(0)).step) == 4
            before = snapshot(tmp_path)
            message = rf"already have a writer, process {first.pid} on \S+ since 2\d\d\d-.*; close that one"
            with pytest.raises(RuntimeError, match=message):
                checkpoints.save(state_at(8))
            assert snapshot(tmp_path) == before
            first.send_signal(signal.SIGKILL)
            first.wait(timeout=30)
            checkpoints.save(state_at(8))  # the lock ended with the process
            assert checkpoints.newest == 8
        finally:
            first.kill()


def test_two_objects_in_one_process_are_two_writers(tmp_path):
    first, second = Checkpoints(tmp_path), Checkpoints(tmp_path)
    with first, second:
        first.save(state_at(1))
        with pytest.raises(RuntimeError, match=f"already have a writer, process {os.getpid()} on"):
            second.save(state_at(2))
        first.close()
        second.save(state_at(2))
        assert second.newest == 2


def test_an_unreferenced_object_releases_its_lock_after_the_save(tmp_path):
    Checkpoints(tmp_path).save(state_at(1))
    for _ in range(1000):
        gc.collect()
        try:
            lock_for_writing(tmp_path)()
        except RuntimeError:
            time.sleep(0.01)
        else:
            break
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.newest == 1
        checkpoints.save(state_at(2))


FORK = """
import os, pathlib, sys, time
from jaxloss.training.writer_lock import lock_for_writing
lock_for_writing(pathlib.Path(sys.argv[1]))
if os.fork() == 0:
    print("ready", flush=True)
    sys.stdin.read()
else:
    time.sleep(60)
"""


def test_a_forked_process_holds_no_lock(tmp_path):
    with start_child(FORK, tmp_path) as parent:
        assert parent.stdout.readline() == "ready\n"
        with pytest.raises(RuntimeError, match=f"process {parent.pid}"):
            lock_for_writing(tmp_path)
        parent.kill()
        parent.wait(timeout=30)
        lock_for_writing(tmp_path)()  # although the child is still running


def test_threads_share_one_object(tmp_path):
    errors = []

    def save(first):
        for step in range(first, 20, 2):
            try:
                checkpoints.save(state_at(step))
            except ValueError as error:  # the other thread saved a later step first
                errors.append(str(error))

    with Checkpoints(tmp_path) as checkpoints:
        threads = [threading.Thread(target=save, args=(first,), daemon=True) for first in (0, 1)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=60)
        assert not any(thread.is_alive() for thread in threads)
        assert checkpoints.newest in (18, 19)
        assert int(checkpoints.restore(state_at(0)).step) == checkpoints.newest
    assert all("is of step" in error for error in errors), errors


def test_a_file_system_without_locks_logs_a_warning(tmp_path, monkeypatch, caplog):
    import fcntl

    def refuse(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(fcntl, "flock", refuse)
    save_steps(tmp_path, 1)
    assert "cannot be locked: make sure that no other run saves there" in caplog.text


# Damage


@pytest.fixture
def abandoned_tasks():
    """Collects the tasks that Orbax abandons at the first error, while their warnings are ignored."""
    yield
    for _ in range(3):
        time.sleep(0.05)
        gc.collect()


def leaves_abandoned_tasks(test):
    ignored = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
    return pytest.mark.usefixtures("abandoned_tasks")(ignored(test))


def damage(path, kind):
    data = path.read_bytes()
    path.unlink()
    if kind != "missing":
        path.write_bytes(data[: len(data) // 2] if kind == "half" else b"")


@leaves_abandoned_tasks
@pytest.mark.parametrize("kind", ["missing", "empty", "half"])
def test_a_damaged_checkpoint_raises_with_a_remedy(kind, tmp_path):
    unharmed = save_steps(tmp_path / "unharmed", 4, 8)
    files = [path.relative_to(unharmed) for path in (unharmed / "8").rglob("*") if path.is_file()]
    found = 0
    for number, file in enumerate(files):
        folder = tmp_path / str(number)
        subprocess.run(["cp", "-r", str(unharmed), str(folder)], check=True)
        damage(folder / file, kind)
        said = ""
        with Checkpoints(folder) as checkpoints:
            assert checkpoints.newest == 8
            try:
                state = checkpoints.restore(state_at(0))
            except RuntimeError as error:
                said, caused = str(error), error.__cause__ is not None
                state = checkpoints.restore(state_at(0), step=4)
            # A reader does not need every file.
            assert (np.asarray(state.params["w"]) == (4 if said else 8)).all(), file
        if said:
            found += 1
            assert caused
            assert said == (
                f"the checkpoint of step 8 in {folder} cannot be read; the newest complete one before it is "
                f"of step 4: call restore(state, step=4), and delete {folder}/8 before training "
                "continues from there"
            )
    assert found >= 3


@leaves_abandoned_tasks
def test_the_remedy_suggests_only_complete_checkpoints(tmp_path):
    folder = save_steps(tmp_path, 4, 8, 12)
    for step in ("8", "12"):
        damage(folder / step / "default" / "manifest.ocdbt", "missing")
    with Checkpoints(folder) as checkpoints:
        with pytest.raises(
            RuntimeError, match=r"before it is of step 4: call restore_params\(params, step=4\)"
        ):
            checkpoints.restore_params(state_at(0).params)
        damage(folder / "4" / "default" / "manifest.ocdbt", "missing")
        with pytest.raises(RuntimeError, match=r"step 12 in .* cannot be read; no earlier one is complete"):
            checkpoints.restore(state_at(0))


@leaves_abandoned_tasks
def test_training_resumes_from_before_a_damaged_checkpoint(tmp_path):
    folder = save_steps(tmp_path, 4, 8)
    damage(folder / "8" / "default" / "manifest.ocdbt", "half")
    with Checkpoints(folder) as checkpoints:
        state = checkpoints.restore(state_at(0), step=4)
        with pytest.raises(ValueError, match="is of step 8, later than step 4 of the state; restore it, del"):
            checkpoints.save(state)
    subprocess.run(["rm", "-r", str(folder / "8")], check=True)
    with Checkpoints(folder) as checkpoints:
        checkpoints.save(state_at(8))
        assert checkpoints.newest == 8


def test_a_reader_falls_back_to_a_newer_checkpoint_when_its_own_is_deleted(tmp_path, monkeypatch):
    folder = save_steps(tmp_path, 4)
    with Checkpoints(folder) as checkpoints:
        from jaxloss.training import checkpoints as module

        read = module.read_arrays

        def late(directory, step, *arguments):
            if step == 4:
                save_steps(folder, 8)
                subprocess.run(["rm", "-r", str(folder / "4")], check=True)
            return read(directory, step, *arguments)

        monkeypatch.setattr(module, "read_arrays", late)
        assert int(checkpoints.restore(state_at(0)).step) == 8


@leaves_abandoned_tasks
@pytest.mark.parametrize("pattern", ["manifest.ocdbt", "d/*", "_METADATA"])
def test_a_flipped_byte_in_the_index_raises(pattern, tmp_path):
    (path,) = save_steps(tmp_path, 4).glob(f"4/default/{pattern}")
    data = path.read_bytes()
    with Checkpoints(tmp_path) as checkpoints:
        for position in range(0, len(data), len(data) // 9):
            path.write_bytes(data[:position] + bytes([data[position] ^ 128]) + data[position + 1 :])
            with pytest.raises(RuntimeError, match=r"step 4 in .* cannot be read; no earlier"):
                checkpoints.restore(state_at(0))
        path.write_bytes(data)
        assert int(checkpoints.restore(state_at(0)).step) == 4


@pytest.mark.parametrize(
    "rest", ["_CHECKPOINT_METADATA", "default/d", "default/ocdbt.process_0/manifest.ocdbt"]
)
def test_an_interrupted_deletion_is_completed(rest, tmp_path):
    folder = save_steps(tmp_path, 4, 8)
    for path in (folder / "4").rglob("*"):
        if path.is_file() and not path.relative_to(folder / "4").as_posix().startswith(rest):
            path.unlink()
    with Checkpoints(folder, keep=1) as checkpoints:
        assert int(checkpoints.restore(state_at(0)).step) == 8
        checkpoints.save(state_at(12))
    assert sorted(path.name for path in folder.iterdir()) == [".writer", "12"]


# Foreign files


@pytest.mark.parametrize("content", [[], ["notes.txt"], ["src/main.c"]])
def test_foreign_files_are_neither_restored_nor_deleted(content, tmp_path):
    for name in content:
        (tmp_path / "7" / name).parent.mkdir(parents=True)
        (tmp_path / "7" / name).write_text("mine")
    (tmp_path / "7").mkdir(exist_ok=True)
    (tmp_path / "9").write_text("mine")
    with Checkpoints(tmp_path, keep=1) as checkpoints:
        assert checkpoints.newest is None
        state = state_at(0)
        assert checkpoints.restore(state) is state
        for step in (5, 6):
            checkpoints.save(state_at(step))
        assert checkpoints.newest == 6
        for step in (7, 9):
            with pytest.raises(
                FileExistsError, match=rf"{tmp_path}/{step} is not a checkpoint; move it, or use"
            ):
                checkpoints.save(state_at(step))
        checkpoints.save(state_at(10))
        assert int(checkpoints.restore(state_at(0)).step) == 10
    left = [
        path.relative_to(tmp_path / "7").as_posix() for path in (tmp_path / "7").rglob("*") if path.is_file()
    ]
    assert left == content
    assert sorted(path.name for path in tmp_path.iterdir()) == [".writer", "10", "7", "9"]
