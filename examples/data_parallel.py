"""Data-parallel training: the same command and the same losses on one device, several, and several processes.

    python -m examples.data_parallel

The environment determines the devices. To try it with eight virtual devices on one CPU:

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
from sklearn.datasets import load_digits

from examples._common import at_least, batches, enlarge_thread_pool, mesh_of_all_devices
from jaxloss import cross_entropy
from jaxloss.models import Classifier
from jaxloss.training import create_train_state, shard_batch, shard_train_state, train_epoch


def main(argv: Sequence[str] | None = None) -> np.ndarray:
    """Runs the example and returns the losses."""
    parser = argparse.ArgumentParser(
        prog="python -m examples.data_parallel",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--steps", type=at_least(1), default=100, help="optimizer steps (default: 100)")
    parser.add_argument(
        "--seed", type=at_least(0), default=0, help="seed of weights and batches (default: 0)"
    )
    parser.add_argument(
        "--fully-sharded", action="store_true", help="also shard parameters and optimizer state"
    )
    arguments = parser.parse_args(argv)
    start_processes()

    # One axis over all devices of all processes. All processes run the same program on the same data, and
    # each device gets its shard.
    mesh = mesh_of_all_devices()
    state = create_train_state(Classifier(64, 128, 10, rngs=nnx.Rngs(arguments.seed)), optax.adam(0.001))
    state = shard_train_state(state, mesh, "data" if arguments.fully_sharded else None)
    inputs, labels = load_digits(return_X_y=True)
    data = inputs.astype(np.float32) / 16, labels
    drawn = batches(data, 64, range(arguments.steps), arguments.seed)
    state, losses = train_epoch(
        state, (shard_batch(batch, mesh, "data") for batch in drawn), loss=cross_entropy
    )

    if jax.process_index() == 0:
        print(f"{jax.device_count()} device(s), {jax.process_count()} process(es)")
        for step in range(0, arguments.steps, max(1, arguments.steps // 10)):
            print(f"  Step {step + 1:5}/{arguments.steps}  Loss: {losses[step]:.4f}")
    return np.asarray(losses)


def start_processes() -> None:
    """Connects to the other processes if the environment names them."""
    enlarge_thread_pool()
    if "JAX_COORDINATOR_ADDRESS" in os.environ:
        if missing := {"JAX_NUM_PROCESSES", "JAX_PROCESS_ID"} - set(os.environ):
            raise SystemExit(f"JAX_COORDINATOR_ADDRESS is set: set also {' and '.join(sorted(missing))}")
        jax.distributed.initialize(
            num_processes=int(os.environ["JAX_NUM_PROCESSES"]), process_id=int(os.environ["JAX_PROCESS_ID"])
        )


if __name__ == "__main__":
    main()
