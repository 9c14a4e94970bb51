"""The programs to compile: every loss at accelerator sizes, its plain forms, and the limits of its figures.

The **fewest bytes** for value and gradient: an elementwise loss reads its inputs once and writes its
gradients once. A loss whose gradient needs a sum over a row reads its inputs twice. `nll_loss` reads one
element of each row, for which 5 % of its input are allowed.
"""

import contextlib
import importlib
import importlib.util
import math
import time
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from tests.benchmarks import compiling
from tests.benchmarks.case import BOXES, ELEMENTS, PAIRS, Case, Loss
from tests.benchmarks.catalogue import CASES
from tests.benchmarks.measuring import with_module

Record = dict[str, Any]
Shape = tuple[int, ...]

DTYPES = ("float32", "bfloat16")
SQUARE = (4096, 4096)
REGIONS = ("dice_loss", "tversky_loss", "generalized_dice_loss", "lovasz_softmax_loss")
LISTS = ("softmax_ranking_loss", "listmle_loss", "pairwise_logistic_loss", "approx_ndcg_loss")
SHAPES: dict[str, tuple[Shape, ...]] = {  # of the first argument, if other than SQUARE
    "cross_entropy": (SQUARE, (8192, 32_000), (8192, 128_256), (8, 512, 512, 21)),
    "multilabel_margin_loss": ((512, 100),),
    **{case.loss: ((2**22, 4),) for case in CASES if case.sizes is BOXES},
    "ssim_loss": ((8, 512, 512, 3), (16, 512, 512, 3)),
    **dict.fromkeys(REGIONS, ((8, 512, 512, 21),)) | {"lovasz_softmax_loss": ((4, 256, 256, 21),)},
    "lovasz_hinge_loss": ((8, 512, 512),),
    "crps_ensemble_loss": ((262_144, 64),),
    **dict.fromkeys(("coral_loss", "corn_loss"), ((2**21, 9),)),
    **dict.fromkeys(LISTS, ((64, 4096),)),
    "cox_loss": ((2**20,),),
    **{case.loss: ((32_768, 768),) for case in CASES if case.sizes is PAIRS},
}
ARGUMENTS: dict[str, tuple[Shape, ...]] = {  # of all arguments, if they do not follow from the first
    "dino_loss": ((10, 64, 65_536), (2, 64, 65_536)),
    "ctc_loss": ((1000, 32, 80), (32, 100), (32,), (32,)),
    **dict.fromkeys(("arcface_loss", "cosface_loss"), ((4096, 512), (512, 250_000), (4096,))),
    "linear_distillation_loss": ((4096, 2048), (2048, 128_256)) * 2,
    "rnnt_loss": ((8, 500, 101, 1024), (8, 100), (8,), (8,)),
    "adaptive_log_softmax": (
        *((4096, 1024), (4096,), (1024, 5002)),
        *((1024, 256), (256, 20_000), (1024, 64), (64, 75_000)),
    ),
}
HEADS = ((8192, 4096, 128_256), (8192, 2048, 151_936), (4096, 2304, 256_000), (8192, 2048, 50_257))
POD_HEAD = (2**20, 4096, 128_256)  # positions, features, classes
ELEMENTWISE = {case.loss for case in CASES if case.sizes is ELEMENTS} | {"multilabel_soft_margin_loss"}
ROWS = {
    *("cosine_similarity", "pairwise_distance", "cosine_embedding_loss"),
    *("triplet_margin_loss", "multi_margin_loss"),
    *("softmax_focal_loss", "poly_cross_entropy", "generalized_cross_entropy"),
    *REGIONS[:3],
}


class Layout(NamedTuple):
    """The sharding of a head over 256 chips: positions on the first mesh axis, classes on the second."""

    mesh: tuple[int, int]
    kind: str  # of the mesh axes, or "shard_map", for which the loss gets `axis_name`
    features: str | None = None  # the mesh axis that also splits the features of the kernel

    @property
    def specs(self) -> tuple[P, ...]:
        """The partition of hidden, kernel and labels."""
        return P("data", None), P(self.features, "model"), P("data")

    def __str__(self) -> str:
        further = ", kernel fully sharded" if self.features else ""
        return f"on {self.mesh[0]} x {self.mesh[1]}, {self.kind}{further}"


LAYOUTS = tuple(
    Layout(mesh, kind, features)
    for mesh in ((16, 16), (64, 4))
    for kind, features in (("Auto", None), ("Auto", "data"), ("Explicit", None), ("shard_map", None))
)


class Program(NamedTuple):
    """One loss on arguments of given shapes."""

    case: Case
    option: str  # the name of the case, empty for the first case of a loss
    shapes: tuple[Shape, ...]
    kinds: str  # of the arguments: f for floating, i for integer
    layout: Layout | None = None

    @property
    def size(self) -> str:
        """The shape of the first argument and the option: the key of a program among those of its loss."""
        shape = (*self.shapes[0], *(self.shapes[1][1:] if self.case.loss == "linear_cross_entropy" else ()))
        return " ".join(filter(None, [" x ".join(map(str, shape)), self.option, str(self.layout or "")]))

    @property
    def is_main(self) -> bool:
        """Whether a check that records nothing compiles it."""
        return not self.option and (self.layout is None or self.layout.kind == "Auto")

    @property
    def dtypes(self) -> tuple[str, ...]:
        """The dtypes of the floating arguments."""
        return DTYPES[1:] if self.case.loss == "linear_cross_entropy" else DTYPES

    def arguments(self, dtype: str, sharding: Any = None) -> tuple[jax.ShapeDtypeStruct, ...]:
        """Returns the descriptions of the arguments."""
        dtypes = [jnp.dtype(dtype if kind == "f" else "int32") for kind in self.kinds]
        pairs = zip(self.shapes, dtypes, strict=True)
        return tuple(jax.ShapeDtypeStruct(shape, kind, sharding=sharding) for shape, kind in pairs)

    @contextlib.contextmanager
    def placed(
        self, name: str, side: Loss, dtype: str, target: str
    ) -> Iterator[tuple[Loss, tuple[Any, ...]]]:
        """Yields a side and its arguments, in the context of their mesh if there is one."""
        if self.layout is None:
            yield side, self.arguments(dtype, compiling.chip(target))
            return
        shape, kind, _ = self.layout
        # The plain form leaves the sharding to the compiler.
        axes = AxisType.Explicit if kind == "Explicit" and name == "jaxloss" else AxisType.Auto
        mesh = Mesh(compiling.pod().reshape(shape), ("data", "model"), axis_types=(axes, axes))
        specs = self.layout.specs
        arguments = tuple(
            jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=NamedSharding(mesh, spec))
            for array, spec in zip(self.arguments(dtype), specs, strict=True)
        )
        if kind == "shard_map" and name == "jaxloss":
            side = _in_shard_map(side, mesh, specs)
        with jax.set_mesh(mesh):
            yield side, arguments

    def fewest(self, dtype: str) -> float:
        """Returns the fewest bytes for value and gradient on each device."""
        each = [array.size * array.dtype.itemsize for array in self.arguments(dtype)]
        if self.layout is not None:
            sizes = dict(zip(("data", "model"), self.layout.mesh, strict=True))
            parts = [math.prod(sizes[name] for name in spec if name) for spec in self.layout.specs]
            each = [size // part for size, part in zip(each, parts, strict=True)]
        passes = 1 if self.case.loss in ELEMENTWISE else 0.05 if self.case.loss == "nll_loss" else 2
        read = sum(passes * size for size, kind in zip(each, self.kinds, strict=True) if kind == "f")
        return read + sum(each[i] for i in self.case.moved)

    def sides(self) -> dict[str, Loss]:
        """Returns the loss and its plain forms by name."""
        case = self.case
        found = {"jaxloss": case.jaxloss, "one line": case.line}
        if case.optax is not None and importlib.util.find_spec("optax") is not None:
            found["optax"] = with_module(case.optax, "optax")
        if case.loss == "linear_cross_entropy":
            del found["one line"]  # its logits would be in bfloat16
            found["optax"] = _plain_head
        if case.loss == "cross_entropy" and self.kinds == "fi" and not self.option:
            found["one-hot"] = _one_hot
        if case.loss == "ctc_loss":  # the plain recursion in bfloat16 would be too inexact to compare
            return {name: _widened(side) for name, side in found.items() if side is not None}
        return {name: side for name, side in found.items() if side is not None}


def _one_hot(logits: jax.Array, labels: jax.Array) -> jax.Array:
    log_probs = jax.nn.log_softmax(logits.astype(jnp.float32))
    right = jnp.arange(logits.shape[-1]) == labels[..., None]
    return -jnp.mean(jnp.sum(jnp.where(right, log_probs, 0), -1))


def _plain_head(hidden: jax.Array, kernel: jax.Array, labels: jax.Array) -> jax.Array:
    optax = importlib.import_module("optax")
    logits = jnp.dot(hidden, kernel, preferred_element_type=jnp.float32)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def _in_shard_map(loss: Loss, mesh: Mesh, specs: tuple[P, ...]) -> Loss:
    def mean(*arrays: jax.Array) -> jax.Array:
        pair = loss(*arrays, axis_name="model", reduction="sum_and_weight")
        total, weight = jax.lax.psum(pair, "data")
        return total / weight

    return jax.shard_map(mean, mesh=mesh, in_specs=specs, out_specs=P())


def _widened(loss: Loss) -> Loss:
    return lambda first, *others: loss(first.astype(jnp.float32), *others)


def programs(losses: Iterable[str], target: str) -> Iterator[Program]:
    """Yields the programs of some losses for a TPU or a GPU."""
    seen: set[str] = set()
    for case in CASES:
        if case.loss not in losses or "image" in case.sizes:  # SHAPES has images, with the classes last
            continue
        arrays = smallest(case)
        option = next(iter(case.sizes)) if case.loss in seen else ""
        seen.add(case.loss)
        for shape in (SQUARE,) if option else SHAPES.get(case.loss, (SQUARE,)):
            shapes = tuple(shape if array.shape == arrays[0].shape else shape[:-1] for array in arrays)
            kinds = "".join(array.dtype.kind for array in arrays)
            if case.loss != "linear_cross_entropy":
                yield Program(case, option, ARGUMENTS.get(case.loss, shapes), kinds)
                continue
            placed = [(POD_HEAD, layout) for layout in LAYOUTS if target == "tpu"]
            for (positions, features, classes), layout in [*((head, None) for head in HEADS), *placed]:
                yield Program(
                    case, option, ((positions, features), (features, classes), (positions,)), kinds, layout
                )


def smallest(case: Case) -> tuple[np.ndarray, ...]:
    """Returns the arguments of the first size of a case."""
    return case.make(np.random.RandomState(0), *next(iter(case.sizes.values())))


def measure(target: str, loss: str, size: str, dtype: str, has_peers: bool = True) -> Record:
    """Returns the figures of a loss and, with `has_peers`, of those plain forms that fit into the memory."""
    program = next(program for program in programs([loss], target) if program.size == size)
    found, left_out = {}, {}
    for name, side in program.sides().items():
        if has_peers or name == "jaxloss":
            with program.placed(name, side, dtype, target) as (loss_there, arguments):
                function = jax.value_and_grad(loss_there, program.case.moved)
                try:
                    found[name] = compiling.figures(target, function, arguments)
                except jax.errors.JaxRuntimeError as error:
                    if name == "jaxloss" or "RESOURCE_EXHAUSTED" not in str(error):
                        raise
                    left_out[name] = str(error).splitlines()[0]
    return {
        "target": target,
        "loss": loss,
        "size": size,
        "dtype": dtype,
        "input": math.prod(program.shapes[0]) * jnp.dtype(dtype).itemsize,
        "fewest": program.fewest(dtype),
        "jaxloss": found.pop("jaxloss"),
        "peers": found,
        **({"left_out": left_out} if left_out else {}),
    }


def measure_build(index: int) -> Record | None:
    """Returns the seconds to compile a case and its plain form on a CPU, or None without a plain form."""
    case = CASES[index]
    plain = case.line or (case.optax and with_module(case.optax, "optax"))
    if plain is None:
        return None
    sides = {"jaxloss": case.jaxloss, "plain": plain}
    functions = {name: jax.value_and_grad(side, case.moved) for name, side in sides.items()}
    arguments = tuple(jax.ShapeDtypeStruct(array.shape, array.dtype) for array in smallest(case))
    times = _build_seconds(functions, arguments)
    seconds = {name: float(f"{time:.3g}") for name, time in times.items()}
    size = next(iter(case.sizes))
    return {"target": "cpu", "loss": case.loss, "size": size, "dtype": "float32", "seconds": seconds}


def _build_seconds(functions: dict[str, Loss], arguments: tuple[Any, ...]) -> dict[str, float]:
    """Returns the seconds to trace, lower and compile each function, the least of three turns."""
    times: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(3):
        for name, function in functions.items():
            jax.clear_caches()
            start = time.process_time()
            jax.jit(function).lower(*arguments).compile()
            times[name].append(time.process_time() - start)
    return {name: min(each) for name, each in times.items()}


def limits(record: Record) -> dict[str, tuple[float, float]]:
    """Returns the figures of a record that have a limit, each with its limit."""
    loss, ours, peers = record["loss"], record["jaxloss"], record["peers"]
    is_tpu = record["target"] == "tpu"
    most_bytes = dict.fromkeys(ELEMENTWISE, 1.1) | dict.fromkeys(ROWS, 1.2 if is_tpu else 1.35)
    if is_tpu:
        most_bytes["nll_loss"] = 2.2
    found = {}
    if loss == "linear_cross_entropy":
        peer, is_pod = peers["optax"], " on " in record["size"]
        name, most = ("cycles", 1.3) if is_tpu else ("seconds", 1.0)
        if is_pod or record["size"].endswith("50257"):  # no block size divides this number of classes
            most += 0.1
        found[f"{name} / optax"] = ours[name] / peer[name], most
        found["temporaries / optax"] = ours["temporaries"] / peer["temporaries"], 0.6 if is_pod else 0.16
        if not is_tpu:
            found["kernels"] = ours["kernels"], 400
    if loss in most_bytes:
        found["bytes / fewest"] = ours["bytes"] / record["fewest"], most_bytes[loss]
    if loss in ELEMENTWISE:
        found["temporaries / input"] = ours["temporaries"] / record["input"], 0.02
    if loss in ("cross_entropy", "ctc_loss"):
        found["MB of temporaries"] = ours["temporaries"] / 1e6, 64
    if loss == "ctc_loss" and not is_tpu:
        found["kernels"] = ours["kernels"], 6000
    if loss == "rnnt_loss":
        found["temporaries / input"] = ours["temporaries"] / record["input"], 0.15
        if not is_tpu:  # 600 diagonals, forward and backward
            found["kernels"] = ours["kernels"], 3000
    if loss == "cross_entropy" and record["size"][-1].isdigit():  # without an option
        rivals = [peers[name] for name in ("optax", "one-hot") if name in peers]
        if is_tpu:
            if record["size"].count("x") == 1:  # the 21 classes of an image are padded to 128 lanes
                found["bytes / best plain"] = ours["bytes"] / min(rival["bytes"] for rival in rivals), 1.05
            found["cycles / best plain"] = ours["cycles"] / min(rival["cycles"] for rival in rivals), 1.1
        else:
            found["time / optax"] = ours["seconds"] / peers["optax"]["seconds"], 1.05
    return found


COMPARED = {"cross_entropy", "linear_cross_entropy"}  # their limits refer to plain forms
LIMITED = {*ELEMENTWISE, *ROWS, *COMPARED, "nll_loss", "ctc_loss", "rnnt_loss"}
BUILD_LIMIT = 1.6  # times the plain form, as the geometric mean over all cases
