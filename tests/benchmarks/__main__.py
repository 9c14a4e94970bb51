"""Times the losses and appends to the results: `python -m tests.benchmarks`, see `--help`."""

import argparse
import importlib.metadata
import json
import multiprocessing
import os
import platform
import subprocess
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import jax

from tests.benchmarks import report
from tests.benchmarks.cases import CASES
from tests.benchmarks.measuring import PEERS, measure

PACKAGES = ("jax", "jaxlib", "torch", "optax", "numpy")


def main() -> None:
    """Measures each case in a child process of its own, or draws what was measured."""
    options = _options()
    if options.report:
        report.write()
        return
    threads = _settle(options.threads)
    about = {"versions": _versions(), "commit": _commit()}
    failed = []
    for case in CASES:
        for size in case.sizes:
            if case.loss not in options.losses or (options.sizes and size not in options.sizes):
                continue
            try:
                records = _in_child(measure, case.loss, size, options.peers, threads, options.seconds)
            except Exception as error:
                failed.append(f"{case.loss} {size}: {type(error).__name__}: {error}")
                print(failed[-1], flush=True)
                continue
            with options.output.open("a", encoding="utf-8") as file:
                file.writelines(json.dumps({**record, **about}) + "\n" for record in records)
            for record in records:
                print(report.line(record), flush=True)
    if failed:
        raise SystemExit(f"{len(failed)} cases failed")


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks",
        description="Times every loss beside PyTorch, Optax and the one-line JAX form.",
    )
    losses = list(dict.fromkeys(case.loss for case in CASES))
    sizes = list(dict.fromkeys(size for case in CASES for size in case.sizes))
    parser.add_argument("--losses", nargs="+", choices=losses, metavar="LOSS", help="default: all")
    parser.add_argument("--sizes", nargs="+", choices=sizes, help="default: all")
    parser.add_argument("--peers", nargs="*", choices=PEERS, help="default: all that are installed")
    parser.add_argument(
        "--threads", type=int, default=1, help="of a CPU, 1 unless said, whose own time is taken"
    )
    parser.add_argument("--seconds", type=float, default=2, help="for a record, about; default: 2")
    parser.add_argument("--quick", action="store_true", help="two losses, small, without PyTorch")
    parser.add_argument("--output", type=Path, default=report.RESULTS, help="where to append")
    parser.add_argument("--report", action="store_true", help="only write table and picture")
    options = parser.parse_args()
    if options.quick:
        options.seconds = 0.02
        options.losses = options.losses or ["mse_loss", "cross_entropy"]
        options.sizes = options.sizes or ["small"]
        options.peers = ["jax", "optax"] if options.peers is None else options.peers
    options.losses = options.losses or losses
    options.peers = PEERS if options.peers is None else tuple(options.peers)
    return options


def _in_child(function: Callable[..., Any], *arguments: Any) -> Any:
    # A process for each case: what the allocator of one has been through does not change the next one's time.
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def _settle(threads: int) -> int:
    """Sets what the children inherit, and returns the number of threads."""
    os.environ["MALLOC_ARENA_MAX"] = "1"
    os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"
    if _in_child(jax.default_backend) == "cpu" and hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        if not 1 <= threads <= len(cores):
            raise SystemExit(f"there are {len(cores)} cores for {threads} threads")
        os.sched_setaffinity(0, cores[-threads:])
    return threads


def _versions() -> dict[str, str]:
    installed = {}
    for package in PACKAGES:
        try:
            installed[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            print(f"without {package}, which is not installed")
    return {"python": platform.python_version(), **installed}


def _commit() -> str | None:
    command = ["git", "describe", "--always", "--dirty", "--exclude=*"]
    try:
        done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


if __name__ == "__main__":
    main()
