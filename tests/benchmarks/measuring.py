"""Times one case: every library's result is compared with the float64 result, then they are timed in turns.

Runs in a child process, whose threads and memory settings the parent process has fixed.
"""

import importlib
import importlib.util
import math
import platform
import random
import statistics
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from tests.benchmarks.case import Case, Loss
from tests.benchmarks.catalogue import CASES

WHATS = ("forward", "gradient")
PEERS = ("jax", "optax", "torch", "torch.compile", "torch.compile(grad)")
TURN = 2e-3  # least number of seconds for which one side is timed before the next


class Side(NamedTuple):
    """One library's loss, ready to be called without arguments."""

    forward: Callable[[], Any] | None  # returns the value
    gradient: Callable[[], Any]  # returns the value and a sequence of gradients
    wait: Callable[[Any], Any]  # blocks until the result of a call is ready


def measure(
    loss: str, size: str, peers: tuple[str, ...], threads: int, seconds: float
) -> list[dict[str, Any]]:
    """Returns two records: of the value alone, and of value and gradient.

    Args:
        loss: The loss.
        size: The name of its size.
        peers: The names in `PEERS` to time in addition to jaxloss.
        threads: Number of threads of PyTorch; JAX uses as many as the process has cores.
        seconds: Approximate time to spend on each record.
    """
    case = next(case for case in CASES if case.loss == loss and size in case.sizes)
    arrays = case.make(np.random.RandomState(0), *case.sizes[size])
    backend = jax.default_backend()
    # On one CPU thread, CPU time is the clock that other processes disturb least.
    clock = time.process_time if backend == "cpu" and threads == 1 else time.perf_counter
    truth = _truth(case, arrays)
    sides, left_out = _sides(case, arrays, peers, threads)
    records = []
    for what in WHATS:
        calls, wrong = _agreeing(sides, what, truth)
        calls["floor"] = _floor(arrays, case.moved if what == "gradient" else ())
        times = _take_turns(calls, clock, seconds)
        records.append(
            {
                "loss": loss,
                "size": size,
                "shape": list(arrays[0].shape),
                "what": what,
                "backend": backend,
                "device": _device(),
                "threads": threads if backend == "cpu" else None,
                "clock": clock.__name__,
                "seconds": {name: _rounded(statistics.median(turns)) for name, turns in times.items()},
                "ratios": {
                    name: _rounded(statistics.median(map(float.__truediv__, times["jaxloss"], turns)))
                    for name, turns in times.items()
                    if name != "jaxloss"
                },
                "left_out": {**left_out, **wrong},
            }
        )
    return records


def _truth(case: Case, arrays: tuple[np.ndarray, ...]) -> tuple[Any, ...]:
    """Returns value and gradients of jaxloss in float64, which the tests compare with PyTorch."""
    with jax.enable_x64(True), jax.default_device(jax.devices("cpu")[0]):
        wide = [array.astype(np.float64) if array.dtype.kind == "f" else array for array in arrays]
        value, gradients = jax.jit(jax.value_and_grad(case.jaxloss, case.moved))(*wide)
        return np.asarray(value), *(np.asarray(gradient, np.float32) for gradient in gradients)


def _sides(
    case: Case, arrays: tuple[np.ndarray, ...], peers: tuple[str, ...], threads: int
) -> tuple[dict[str, Side], dict[str, str]]:
    """Returns the sides that take part, and why the other peers do not."""
    on_device = [jax.device_put(array) for array in arrays]
    sides, left_out = {"jaxloss": _jax_side(case.jaxloss, on_device, case.moved)}, {}
    if "jax" in peers and case.line is not None:
        sides["jax"] = _jax_side(case.line, on_device, case.moved)
    if "optax" in peers and case.optax is not None:
        if importlib.util.find_spec("optax") is None:
            left_out["optax"] = "not installed"
        else:
            sides["optax"] = _jax_side(with_module(case.optax, "optax"), on_device, case.moved)
    wanted = [peer for peer in peers if peer.startswith("torch")]
    if wanted and importlib.util.find_spec("torch") is None:
        left_out |= dict.fromkeys(wanted, "not installed")
    elif wanted:
        sides |= {name: side for name, side in _torch_sides(case, arrays, threads) if name in wanted}
    return sides, left_out


def with_module(loss: Loss, name: str) -> Loss:
    """Returns a counterpart with its first argument, the module, bound."""
    module = importlib.import_module(name)
    return lambda *arrays: loss(module, *arrays)


def _jax_side(loss: Loss, arrays: list[jax.Array], moved: tuple[int, ...]) -> Side:
    forward, gradient = jax.jit(loss), jax.jit(jax.value_and_grad(loss, moved))
    return Side(lambda: forward(*arrays), lambda: gradient(*arrays), jax.block_until_ready)


def _torch_sides(case: Case, arrays: tuple[np.ndarray, ...], threads: int) -> Iterator[tuple[str, Side]]:
    import torch

    torch.set_num_threads(threads)
    has_gpu = torch.cuda.is_available()
    loss = with_module(case.torch, "torch")
    integers = [array.astype(np.int64) if array.dtype.kind == "i" else array for array in arrays]
    fixed = [torch.from_numpy(array).to("cuda" if has_gpu else "cpu") for array in integers]
    traced = [
        tensor.detach().requires_grad_() if i in case.moved else tensor for i, tensor in enumerate(fixed)
    ]

    def wait(result: Any) -> None:
        if has_gpu:
            torch.cuda.synchronize()

    def side(function: Loss) -> Side:
        def gradient() -> Any:
            value = function(*traced)
            return value.detach(), torch.autograd.grad(value, [traced[i] for i in case.moved])

        return Side(lambda: function(*fixed), gradient, wait)

    def fused() -> Any:
        gradients, value = grad_and_value(*fixed)
        return value, gradients

    yield "torch", side(loss)
    yield "torch.compile", side(torch.compile(loss))
    # One compiled kernel for value and gradient: the fastest peer.
    grad_and_value = torch.compile(torch.func.grad_and_value(loss, case.moved))
    yield "torch.compile(grad)", Side(None, fused, wait)


def _agreeing(
    sides: dict[str, Side], what: str, truth: tuple[Any, ...]
) -> tuple[dict[str, tuple[Any, Any]], dict[str, str]]:
    """Returns the calls with the right value and gradients, and the errors of the others."""
    calls, wrong = {}, {}
    for name, side in sides.items():
        call = getattr(side, what)
        if call is None:
            continue
        try:
            result = call()
        except Exception as error:  # a peer that does not compile is left out
            if name == "jaxloss":
                raise
            wrong[name] = f"{type(error).__name__}: {str(error).strip().splitlines()[0]:.80}"
            continue
        value, gradients = result if what == "gradient" else (result, ())
        off = [_difference(ours, theirs) for ours, theirs in zip((value, *gradients), truth, strict=False)]
        if off[0] > 1e-4:
            wrong[name] = f"wrong value, {float(value):.6g} for {float(truth[0]):.6g}"
        elif max(off) > 1e-2:  # PyTorch's ctc_loss over 1000 frames is off by half of that in float32
            wrong[name] = f"wrong gradient, off by {max(off):.2g} of its greatest"
        else:
            calls[name] = call, side.wait
    if "jaxloss" in wrong:
        raise AssertionError(f"jaxloss: {wrong['jaxloss']}")
    return calls, wrong


def _difference(result: Any, truth: np.ndarray) -> float:
    """Returns the largest difference relative to the largest absolute value."""
    there = np.asarray(result.cpu() if hasattr(result, "cpu") else result)
    difference = float(np.max(np.abs(there - truth))) / float(np.max(np.abs(truth)))
    return difference if math.isfinite(difference) else math.inf


def _floor(arrays: tuple[np.ndarray, ...], moved: tuple[int, ...]) -> tuple[Any, Any]:
    """Returns a call that only reads and writes, in place, the fewest bytes that the loss can."""
    traffic = sum(array.nbytes for array in arrays) + sum(arrays[i].nbytes for i in moved)
    step = jax.jit(jnp.negative, donate_argnums=0)
    buffer = [jnp.ones(max(1, traffic // 8), jnp.float32)]  # each float32 is read and written

    def call() -> jax.Array:
        buffer[0] = step(buffer[0])
        return buffer[0]

    return call, jax.block_until_ready


def _take_turns(
    calls: dict[str, tuple[Any, Any]], clock: Callable[[], float], seconds: float
) -> dict[str, list[float]]:
    """Returns the seconds per call of each side in each of its turns."""

    def turn(name: str, count: int) -> float:
        call, wait = calls[name]
        wait(call())  # warms the cache, which the other sides have filled
        start = clock()
        for _ in range(count):
            result = call()
        wait(result)
        return (clock() - start) / count

    once = {name: max(turn(name, 3), 1e-7) for name in calls}
    counts = {name: math.ceil(TURN / once[name]) for name in calls}
    whole = sum((counts[name] + 1) * once[name] for name in calls)
    times: dict[str, list[float]] = {name: [] for name in calls}
    order = random.Random(0)
    for _ in range(min(max(5, round(seconds / whole)), 101)):
        for name in order.sample(list(calls), len(calls)):
            times[name].append(turn(name, counts[name]))
    return times


def _device() -> str:
    device = jax.devices()[0]
    cpu = Path("/proc/cpuinfo")
    if device.platform != "cpu":
        return device.device_kind
    lines = cpu.read_text().splitlines() if cpu.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _rounded(number: float) -> float:
    return float(f"{number:.3g}")
