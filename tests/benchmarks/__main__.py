"""The command line of the benchmarks: `python -m tests.benchmarks --help`."""

import argparse
import importlib.metadata
import json
import multiprocessing
import os
import platform
import statistics
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from pathlib import Path
from typing import Any

import jax

from tests.benchmarks import compiling, programs, records, report
from tests.benchmarks.catalogue import CASES
from tests.benchmarks.measuring import PEERS, measure

PACKAGES = ("jax", "jaxlib", "torch", "optax", "numpy")
COMPILERS = ("jax", "jaxlib", "optax", "libtpu", "jax-cuda12-plugin")


def main() -> None:
    """Times the losses, compiles them, or writes the report."""
    options = _options()
    if options.report:
        report.write()
    elif options.compile:
        _compile(options)
    else:
        _time(options)


def _time(options: argparse.Namespace) -> None:
    """Times each case in its own process and appends the records."""
    threads = _settle(options.threads)
    about = {"versions": _versions(PACKAGES), "commit": _commit()}
    failed = []
    for case in CASES:
        for size in case.sizes:
            if case.loss not in options.losses or (options.sizes and size not in options.sizes):
                continue
            try:
                measured = _in_child(measure, case.loss, size, options.peers, threads, options.seconds)
            except Exception as error:
                failed.append(f"{case.loss} {size}: {type(error).__name__}: {error}")
                print(failed[-1], flush=True)
                continue
            _append(options.output or records.RESULTS, *({**record, **about} for record in measured))
            for record in measured:
                print(records.line(record), flush=True)
    if failed:
        raise SystemExit(f"{len(failed)} cases failed")


def _compile(options: argparse.Namespace) -> None:
    """Compiles the losses for a target; `--check` records nothing unless `--output` names a file."""
    os.environ.update(compiling.environment(options.compile))
    about = {"versions": _versions(COMPILERS), "commit": _commit()}
    output = options.output or (None if options.check else records.COMPILED)
    failed, found = [], []
    for title, result in _built(options) if options.compile == "cpu" else _compiled(options):
        if isinstance(result, Exception):
            failed.append(f"{title}: {type(result).__name__}: {str(result).strip():.200}")
            print(failed[-1], flush=True)
            continue
        found.append(result)
        print(records.compiled_line(result), flush=True)
        if output is not None:
            _append(output, {**result, **about})
    if options.compile == "cpu" and found:
        mean = statistics.geometric_mean(map(records.build_ratio, found))
        print(f"geometric mean over {len(found)} cases: {mean:.2f} times the plain form")
        if options.check and mean > programs.BUILD_LIMIT:
            failed.append(f"compile time: {mean:.2f} times the plain form (at most {programs.BUILD_LIMIT})")
    elif options.check:
        failed += [miss for record in found for miss in records.misses(record)]
    if failed:
        raise SystemExit("\n".join(["missed or failed:", *failed]))


def _compiled(options: argparse.Namespace) -> Iterator[tuple[str, Any]]:
    """Yields a record or an error for each program and dtype; each loss runs in its own process."""
    # A check that records nothing skips losses without limits, and plain forms to which no limit refers.
    is_check = options.check and options.output is None
    for loss in [loss for loss in options.losses if loss in programs.LIMITED or not is_check]:
        has_peers = loss in programs.COMPARED or not is_check
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            for program in programs.programs([loss], options.compile):
                if is_check and not program.is_main:
                    continue
                # A check compiles elementwise losses in bfloat16 only, the harder of the two dtypes.
                is_one = is_check and loss in programs.ELEMENTWISE
                for dtype in program.dtypes[-1:] if is_one else program.dtypes:
                    what = loss, program.size, dtype
                    future = pool.submit(programs.measure, options.compile, *what, has_peers)
                    yield " ".join(what), _outcome(future)


def _built(options: argparse.Namespace) -> Iterator[tuple[str, Any]]:
    _settle(1)
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        for index, case in enumerate(CASES):
            if case.loss in options.losses:
                result = _outcome(pool.submit(programs.measure_build, index))
                if result is not None:
                    yield case.loss, result


def _outcome(future: Future[Any]) -> Any:
    """Returns the result or the error, so that one failure does not end the run."""
    try:
        return future.result()
    except Exception as error:
        return error


def _append(path: Path, *lines: dict[str, Any]) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(line) + "\n" for line in lines)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks",
        description="Times or compiles every loss together with PyTorch, Optax and the one-line JAX form.",
    )
    losses = list(dict.fromkeys(case.loss for case in CASES))
    sizes = list(dict.fromkeys(size for case in CASES for size in case.sizes))
    parser.add_argument("--losses", nargs="+", choices=losses, metavar="LOSS", help="default: all")
    parser.add_argument("--sizes", nargs="+", choices=sizes, help="default: all")
    parser.add_argument("--peers", nargs="*", choices=PEERS, help="default: all that are installed")
    parser.add_argument(
        "--threads", type=int, default=1, help="CPU threads; default: 1, for which CPU time is measured"
    )
    parser.add_argument("--seconds", type=float, default=2, help="approximate time for a record; default: 2")
    parser.add_argument("--quick", action="store_true", help="two losses on small arrays, without PyTorch")
    parser.add_argument("--output", type=Path, help="file to append to")
    parser.add_argument("--report", action="store_true", help="only write the tables and pictures")
    parser.add_argument(
        "--compile",
        choices=("tpu", "gpu", "cpu"),
        help="only compile: for a TPU v5e or an H100, neither of which is needed, or on a CPU, timed",
    )
    parser.add_argument(
        "--check", action="store_true", help="with --compile: exit 1 if a figure exceeds its limit"
    )
    options = parser.parse_args()
    if options.check and not options.compile:
        parser.error("--check needs --compile")
    if options.quick:
        options.seconds = 0.02
        options.losses = options.losses or ["mse_loss", "cross_entropy"]
        options.sizes = options.sizes or ["small"]
        options.peers = ["jax", "optax"] if options.peers is None else options.peers
    options.losses = options.losses or losses
    options.peers = PEERS if options.peers is None else tuple(options.peers)
    return options


def _in_child(function: Callable[..., Any], *arguments: Any) -> Any:
    # A process for each case, so that the state of the allocator does not carry over to the next case.
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


def _settle(threads: int) -> int:
    """Sets environment and affinity of the child processes, and returns the number of threads."""
    os.environ["MALLOC_ARENA_MAX"] = "1"
    os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"
    if _in_child(jax.default_backend) == "cpu" and hasattr(os, "sched_setaffinity"):
        cores = sorted(os.sched_getaffinity(0))
        if not 1 <= threads <= len(cores):
            raise SystemExit(f"there are {len(cores)} cores for {threads} threads")
        os.sched_setaffinity(0, cores[-threads:])
    return threads


def _versions(packages: tuple[str, ...]) -> dict[str, str]:
    installed = {}
    for package in packages:
        try:
            installed[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            if packages is PACKAGES:
                print(f"{package} is not installed and is left out")
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
