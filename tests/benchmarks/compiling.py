"""Compiles a loss for a device that need not be present, and reads figures off the compiled program.

`jax.experimental.topologies` describes a TPU v5e or an H100 to the real compilers. Nothing runs, so the
figures have no noise:

- **bytes** moved to and from the device's memory: the operands and results of each instruction, loops times
  their trip counts. If an array is only sliced or updated in place, the slice or the update counts. Arrays in
  on-chip memory do not count.
- **accessed** (TPU): the compiler's own count of bytes. It counts the body of a loop once, and counts an
  array more than once if it is first copied into on-chip memory.
- **temporaries**: bytes allocated in addition to arguments and results.
- **cycles** (TPU): the compiler's own `estimated_cycles`, loops times their trip counts.
- **kernels** and **seconds** (GPU): launches, and a roofline: bytes at the bandwidth of the memory, matrix
  products at the tensor cores' rate for the dtype of their operands, and 2 µs for each launch. Elementwise
  arithmetic is not counted.
"""

import collections
import functools
import importlib.util
import math
import operator
import os
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import numpy as np
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding

NEEDED = {
    "tpu": ("libtpu", "optax"),
    "gpu": ("jax_plugins.xla_cuda12", "nvidia.cuda_nvcc", "optax"),
    "cpu": (),
}
INSTALL = {
    "tpu": "pip install 'jax[tpu]' optax",
    "gpu": "pip install jax optax, then, in the version of jax, "
    "pip install --no-deps jax-cuda12-plugin jax-cuda12-pjrt nvidia-cuda-nvcc-cu12",
}
FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "opt-barrier"}
SLICES = {"slice", "dynamic-slice", "gather"}
UPDATES = {"dynamic-update-slice": 1, "scatter": 2}  # the position of the operand that is written
HEAD = re.compile(r"(ENTRY )?%?([\w.\-]+) +\(.*\{\s*$")
INSTRUCTION = re.compile(r"\s+(?:ROOT )?%?([\w.\-]+) = (.*?) ([a-z][\w\-]*)\((.*)$")
ARRAY = re.compile(r"\b([a-z]+[a-z\d]*)\[([\d,]*)\](?:\{([^{}]*)\})?")
RATES = {"bf16": 990e12, "f16": 990e12, "f32": 495e12, "f64": 67e12}  # of an H100; float32 as TF32
BANDWIDTH, LAUNCH = 3.35e12, 2e-6
H100 = """
gpu_device_info {
  core_count: 132 fpus_per_core: 128 clock_rate_ghz: 1.98 cuda_compute_capability { major: 9 }
  threads_per_warp: 32 threads_per_block_limit: 1024 threads_per_core_limit: 2048
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  registers_per_core_limit: 65536 registers_per_block_limit: 65536
  shared_memory_per_block: 49152 shared_memory_per_block_optin: 232448 shared_memory_per_core: 233472
  device_memory_size: 84942979072 memory_bandwidth: 3352320000000 l2_cache_size: 52428800
}
dnn_version_info { major: 9 minor: 10 }
platform_name: "CUDA"
device_description_str: "NVIDIA H100 80GB HBM3"
"""


# The devices.


def environment(target: str) -> dict[str, str]:
    """Returns the environment of a process that compiles for a target, to be set before it imports JAX."""
    shared = {"JAX_PLATFORMS": "cpu", "JAX_ENABLE_COMPILATION_CACHE": "false", "TF_CPP_MIN_LOG_LEVEL": "3"}
    missing = [module for module in NEEDED[target] if not _is_installed(module)]
    if missing:
        raise SystemExit(f"--compile {target} lacks {', '.join(missing)}: {INSTALL[target]}")
    if target == "tpu":
        pod = {"TPU_ACCELERATOR_TYPE": "v5litepod-256", "TPU_WORKER_HOSTNAMES": "localhost"}
        # Nothing opens a device, so the lock of another process that uses libtpu does not matter.
        pod |= {"TPU_WORKER_ID": "0", "ALLOW_MULTIPLE_LIBTPU_LOAD": "1"}
        return shared | pod | {"TPU_SKIP_MDS_QUERY": "1"}
    if target == "gpu":
        cuda = next(iter(importlib.util.find_spec("nvidia.cuda_nvcc").submodule_search_locations))
        flags = f"{os.environ.get('XLA_FLAGS', '')} --xla_gpu_autotune_level=0 --xla_gpu_cuda_data_dir={cuda}"
        return shared | {"XLA_FLAGS": flags.strip()}
    return shared


def _is_installed(module: str) -> bool:
    parent = module.partition(".")[0]
    return importlib.util.find_spec(parent) is not None and importlib.util.find_spec(module) is not None


@functools.cache
def chip(target: str) -> SingleDeviceSharding:
    """Returns the sharding that places arguments on one TPU v5e or one H100."""
    if target == "tpu":
        described = topologies.get_topology_desc(platform="tpu", topology_name="v5e:2x2")
    else:
        described = topologies.get_topology_desc(platform="cuda", target_config=H100, topology="1x1x1")
    return SingleDeviceSharding(described.devices[0])


def pod() -> np.ndarray:
    """Returns the 256 devices of a TPU v5e pod."""
    return np.array(topologies.get_topology_desc(platform="tpu", topology_name="v5e:16x16").devices)


# Figures.


def figures(target: str, function: Callable[..., Any], arguments: tuple[Any, ...]) -> dict[str, float]:
    """Returns the figures of a function compiled for a target."""
    compiled = jax.jit(function).lower(*arguments).compile()
    module = parse(compiled.as_text())
    temporaries = {"temporaries": compiled.memory_analysis().temp_size_in_bytes}
    if target == "tpu":
        accessed = int(compiled.cost_analysis()["bytes accessed"])
        return {**tally(module, module.entry, on_tpu), "accessed": accessed, **temporaries}
    counted = tally(module, module.entry, on_gpu)
    shown = {name: counted[name] for name in ("bytes", "kernels")}
    return {**shown, "seconds": seconds(counted), **temporaries}


def seconds(counted: collections.Counter[str]) -> float:
    """Returns the roofline time on an H100."""
    products = sum(counted[dtype] / rate for dtype, rate in RATES.items())
    return counted["bytes"] / BANDWIDTH + counted["kernels"] * LAUNCH + products


# The compiled text.


class Instruction(NamedTuple):
    """One instruction of a compiled program."""

    shape: str
    op: str
    operands: list[str]
    text: str

    def called(self, *keys: str) -> list[str]:
        """Returns the names of the computations under these keys."""
        found = re.findall(rf"\b(?:{'|'.join(keys)})=(?:\{{([^}}]*)\}}|(%?[\w.\-]+))", self.text)
        return re.findall(r"[\w.\-]+", " ".join(several or one for several, one in found))


Computation = dict[str, Instruction]  # by name; the last is the result


class Module(NamedTuple):
    """A compiled program."""

    computations: dict[str, Computation]
    entry: str


Cost = Callable[[Module, Computation, Instruction], collections.Counter[str]]


def parse(text: str) -> Module:
    """Returns the computations in the text of a compiled program."""
    computations: dict[str, Computation] = {}
    entry, current = "", {}
    for line in text.splitlines():
        if head := HEAD.match(line):
            current = computations.setdefault(head.group(2), {})
            entry = head.group(2) if head.group(1) else entry
        elif found := INSTRUCTION.match(line):
            name, shape, op, rest = found.groups()
            current[name] = Instruction(shape, op, re.findall(r"%([\w.\-]+)", rest.split(")")[0]), line)
    return Module(computations, entry)


def tally(module: Module, name: str, cost: Cost) -> collections.Counter[str]:
    """Returns the sum over all instructions: loops times their trip counts, the costliest of branches."""
    total: collections.Counter[str] = collections.Counter()
    for instruction in module.computations[name].values():
        if instruction.op == "while":
            (body,) = instruction.called("body")
            count = trips(module, instruction)
            total.update({key: count * number for key, number in tally(module, body, cost).items()})
        elif instruction.op == "conditional":
            branches = instruction.called("branch_computations", "true_computation", "false_computation")
            total.update(functools.reduce(operator.or_, (tally(module, branch, cost) for branch in branches)))
        elif instruction.op == "call":
            total.update(tally(module, *instruction.called("to_apply"), cost))
        elif instruction.op not in FREE and not instruction.op.endswith(("-done", "-update")):
            total.update(cost(module, module.computations[name], instruction))
    return total


def trips(module: Module, loop: Instruction) -> int:
    """Returns the trip count of a loop: the compiler's, or the greatest constant in the loop's condition."""
    if known := re.search(r'known_trip_count":\{"n":"(\d+)"', loop.text):
        return int(known.group(1))
    (condition,) = loop.called("condition")
    lines = " ".join(instruction.text for instruction in module.computations[condition].values())
    return max(map(int, re.findall(r"constant\((\d+)\)", lines)), default=1)


def on_tpu(module: Module, scope: Computation, instruction: Instruction) -> collections.Counter[str]:
    """Returns the cycles and bytes of an instruction."""
    estimate = re.search(r'"estimated_cycles":"(\d+)"', instruction.text)
    cycles = int(estimate.group(1)) if estimate else 0
    return collections.Counter(cycles=cycles, bytes=traffic(module, scope, instruction))


def on_gpu(module: Module, scope: Computation, instruction: Instruction) -> collections.Counter[str]:
    """Returns the bytes, the launch and, by dtype, the operations in matrix products of an instruction."""
    found = collections.Counter(bytes=traffic(module, scope, instruction), kernels=1)
    for dtype, operations in _products(module, scope, instruction):
        found[dtype] += operations
    return found


def _products(module: Module, scope: Computation, instruction: Instruction) -> Iterator[tuple[str, int]]:
    if instruction.op == "fusion":
        inside, _ = _fused(module, instruction)
        for each in inside.values():
            yield from _products(module, inside, each)
    contracted = re.search(r'lhs_contracting_dim\w*"?[=:][\[{]"?(\d+)', instruction.text)
    if contracted and instruction.operands:
        dtype, dims, _ = ARRAY.findall(scope[instruction.operands[0]].shape)[0]
        yield dtype, 2 * _count(instruction.shape) * int(dims.split(",")[int(contracted.group(1))])


def traffic(module: Module, scope: Computation, instruction: Instruction) -> int:
    """Returns the bytes that an instruction reads from and writes to the device's memory."""
    if instruction.op.endswith("-start"):
        return sum(sizes(instruction.shape))  # of the source and of the copy
    if '"AllocateBuffer"' in instruction.text:
        return 0
    outer = inner = instruction.operands
    if instruction.op == "fusion":
        inside, inner = _fused(module, instruction)
    else:  # treated as a fusion of one
        inside = {name: scope[name]._replace(operands=[]) for name in outer} | {"result": instruction}
    reads = dict(zip(inner, (sum(sizes(scope[name].shape)) for name in outer), strict=True))
    read = sum(min(whole, _read(module, inside, name)) for name, whole in reads.items())
    return read + sum(map(min, sizes(instruction.shape), _written(module, inside)))


def _fused(module: Module, fusion: Instruction) -> tuple[Computation, list[str]]:
    """Returns the computation of a fusion, and the names of its parameters."""
    inside = module.computations[fusion.called("calls")[0]]
    numbers = {name: re.search(r" parameter\((\d+)\)", each.text) for name, each in inside.items()}
    found = {int(number.group(1)): name for name, number in numbers.items() if number}
    return inside, [found[i] for i in range(len(fusion.operands))]


def _read(module: Module, scope: Computation, name: str) -> int:
    """Returns the bytes that are read of an array: all of it, or the slices that its users take."""
    whole, found = sum(sizes(scope[name].shape, anywhere=True)), 0
    reached = [name]  # and arrays that correspond to it element by element
    for current in reached:
        uses = {use: each for use, each in scope.items() if current in each.operands}
        for use, each in uses.items():
            is_first = each.operands[0] == current
            if each.op == "fusion":
                inside, names = _fused(module, each)
                found += _read(module, inside, names[each.operands.index(current)])
            elif each.op in SLICES and is_first:
                found += sum(sizes(each.shape, anywhere=True))
            elif each.op != "tuple" and _count(each.shape) == _count(scope[current].shape):
                reached += [use] * (use not in reached and not (each.op in UPDATES and is_first))
            else:
                return whole
        if not uses:
            return whole
    return min(whole, found)


def _written(module: Module, scope: Computation) -> list[int]:
    """Returns the bytes that are written of each array of a result: all of it, or the update in place."""
    last = [*scope.values()][-1]
    written = []
    for root in [scope[name] for name in last.operands] if last.op == "tuple" else [last]:
        inside = scope
        while root.op in ("bitcast", "fusion"):
            inside = _fused(module, root)[0] if root.op == "fusion" else inside
            root = [*inside.values()][-1] if root.op == "fusion" else inside[root.operands[0]]
        source = inside[root.operands[UPDATES[root.op]]] if root.op in UPDATES else root
        written += sizes(source.shape, anywhere=True)
    return written


def sizes(shape: str, *, anywhere: bool = False) -> list[int]:
    """Returns the bytes of each array of a shape, 0 for those in on-chip memory, whose layout has an S(n)."""
    counted = [(dtype, dims, anywhere or "S(" not in layout) for dtype, dims, layout in ARRAY.findall(shape)]
    return [_elements(dims) * _width(dtype) * counts for dtype, dims, counts in counted]


def _count(shape: str) -> int:
    """Returns the number of elements of the first array of a shape."""
    first = ARRAY.search(shape)
    return _elements(first.group(2)) if first else 0


def _elements(dims: str) -> int:
    return math.prod(int(number) for number in dims.split(",") if number)


def _width(dtype: str) -> int:
    bits = re.search(r"\d+", dtype)
    return math.ceil(int(bits.group()) / 8) if bits else 1
