"""Sharded losses equal unsharded ones, on eight forced host devices in a subprocess."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

# Without a larger thread pool, collectives of concurrent programs can deadlock on few cores.
ENVIRONMENT = {
    "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} --xla_force_host_platform_device_count=8",
    "PJRT_NPROC": "32",
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["Auto", "Explicit"])
def test_sharded_losses_equal_unsharded_ones(kind: str):
    program = subprocess.run(
        [sys.executable, "-m", "tests.sharded", kind],
        cwd=Path(__file__).parent.parent,
        env={**os.environ, **ENVIRONMENT},
        capture_output=True,
        text=True,
        timeout=900,
    )
    lines = program.stdout.splitlines()
    assert program.returncode == 0, program.stderr[-2000:]
    assert len(lines) == 1, program.stdout
    assert lines[0].startswith("checked ")
