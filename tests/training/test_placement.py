"""Training on eight devices, in one process and in two, equals training on one device."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest


def start(*arguments, devices=8):
    flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count={devices}"
    return subprocess.Popen(
        [sys.executable, "-m", "tests.sharded_training", *arguments],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "XLA_FLAGS": flags, "PJRT_NPROC": "32"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(*processes):
    """Waits for all processes and kills those that are left, which could otherwise deadlock."""
    try:
        answers = [process.communicate(timeout=300) for process in processes]
    finally:
        for process in processes:
            process.kill()
    for process, (_, errors) in zip(processes, answers, strict=True):
        assert process.returncode == 0, errors[-2000:]


@pytest.mark.slow
def test_eight_devices_train_like_one():
    finish(start())


@pytest.mark.slow
def test_two_processes_train_like_one(tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    finish(*(start(port, process, str(tmp_path), devices=4) for process in "01"))
