"""A lock that allows one writer per directory, and ends with the process that holds it."""

import datetime
import logging
import os
import pathlib
import platform
from collections.abc import Callable

import jax
import numpy as np
from jax.experimental import multihost_utils

_LOGGER = logging.getLogger("jaxloss.training")
_HELD: set[int] = set()


def of_first_process(value: int) -> int:
    """Returns the value of process 0 in all processes of the program."""
    return int(multihost_utils.broadcast_one_to_all(np.int32(value)))


def lock_for_writing(directory: pathlib.Path) -> Callable[[], None]:
    """Makes this program the only writer of a directory, until the returned function is called.

    The processes of one program are one writer: process 0 holds the lock.

    Raises:
        RuntimeError: If the directory has a writer.
    """
    path, descriptor, problem = directory / ".writer", None, None
    if jax.process_index() == 0:
        try:
            directory.mkdir(parents=True, exist_ok=True)
            descriptor = _lock(path)
        except OSError as error:
            problem = error
    if not of_first_process(problem is None):
        if problem and not isinstance(problem, BlockingIOError):
            raise problem
        raise RuntimeError(
            f"the checkpoints in {directory} already have a writer, {path.read_text()}; close that one "
            "first, or use another directory"
        ) from problem
    return lambda: _unlock(descriptor)


def _lock(path: pathlib.Path) -> int | None:
    """Returns the descriptor of a locked file, or None where files cannot be locked."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        import fcntl  # Windows has none.

        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise
    except (ImportError, OSError) as error:
        os.close(descriptor)
        _LOGGER.warning("%s cannot be locked: make sure that no other run saves there (%s)", path, error)
        return None
    _HELD.add(descriptor)
    since = datetime.datetime.now().astimezone().isoformat(" ", "seconds")
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"process {os.getpid()} on {platform.node()} since {since}".encode(), 0)
    return descriptor


def _unlock(descriptor: int | None) -> None:
    if descriptor in _HELD:
        _HELD.remove(descriptor)
        os.close(descriptor)


def _close_inherited() -> None:
    """Closes the locks in a forked process, which would otherwise hold them after its parent is killed."""
    while _HELD:
        os.close(_HELD.pop())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_close_inherited)
