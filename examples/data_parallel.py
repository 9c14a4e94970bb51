"""Data-parallel training: the same command and the same losses on one device, on eight, in several processes.

    python -m examples.data_parallel

The environment says where it runs. Eight devices on one CPU, to try it out:

    JAX_NUM_CPU_DEVICES=8 python -m examples.data_parallel

Two processes, in two terminals or on two machines, each with its own JAX_PROCESS_ID:

    export JAX_COORDINATOR_ADDRESS=localhost:9876 JAX_NUM_PROCESSES=2
    JAX_PROCESS_ID=0 python -m examples.data_parallel
    JAX_PROCESS_ID=1 python -m examples.data_parallel

In PyTorch: DistributedDataParallel, and with `--fully-sharded` its `fully_shard`.
"""

import argparse
import os
from collections.abc import Sequence

import jax
import numpy as np
import optax
from flax import nnx
from jax.sharding import AxisType
from sklearn.datasets import load_digits

from examples._common import at_least, enlarge_thread_pool
from jaxloss import cross_entropy
from jaxloss.models import Classifier
from jaxloss.training import create_train_state, read_losses, shard_batch, shard_train_state, train_step

BATCH_SIZE = 64


def main(argv: Sequence[str] | None = None) -> np.ndarray:
    """Runs the example and returns the losses."""
    parser = argparse.ArgumentParser(
        prog="python -m examples.data_parallel",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--steps", type=at_least(1), default=100, help="training steps (default: 100)")
    parser.add_argument(
        "--seed", type=at_least(0), default=0, help="seed of weights and batches (default: 0)"
    )
    parser.add_argument(
        "--fully-sharded", action="store_true", help="split parameters and optimizer state, too"
    )
    arguments = parser.parse_args(argv)
    start_processes()

    # One axis over all devices of all processes. All processes run the same program on the same numbers, and
    # each device gets its part of them.
    mesh = jax.make_mesh((jax.device_count(),), ("data",), axis_types=(AxisType.Auto,))
    state = create_train_state(Classifier(64, 128, 10, rngs=nnx.Rngs(arguments.seed)), optax.adam(0.001))
    state = shard_train_state(state, mesh, "data" if arguments.fully_sharded else None)
    inputs, targets = load_digits(return_X_y=True)
    inputs = inputs.astype(np.float32) / 16

    losses: list[jax.Array] = []
    for step in range(arguments.steps):
        random = np.random.default_rng((arguments.seed, step))
        rows = random.choice(len(inputs), BATCH_SIZE, replace=False)
        batch_inputs, batch_targets = shard_batch((inputs[rows], targets[rows]), mesh, "data")
        state, value = train_step(state, batch_inputs, batch_targets, loss=cross_entropy)
        losses.append(value)
    values = read_losses(losses, state, loss=cross_entropy)

    if jax.process_index() == 0:
        print(f"{jax.device_count()} devices, {jax.process_count()} processes")
        for step in range(0, arguments.steps, max(1, arguments.steps // 10)):
            print(f"  Step {step + 1:5}/{arguments.steps}  Loss: {values[step]:.4f}")
    return values


def start_processes() -> None:
    """Joins the other processes, where the environment names them."""
    enlarge_thread_pool()
    if "JAX_COORDINATOR_ADDRESS" in os.environ:
        if missing := {"JAX_NUM_PROCESSES", "JAX_PROCESS_ID"} - set(os.environ):
            raise SystemExit(f"beside JAX_COORDINATOR_ADDRESS, set {' and '.join(sorted(missing))}")
        jax.distributed.initialize(
            num_processes=int(os.environ["JAX_NUM_PROCESSES"]), process_id=int(os.environ["JAX_PROCESS_ID"])
        )


if __name__ == "__main__":
    main()
