"""Training steps, epochs, evaluation, checkpoints and sharding, for any JAX model and Optax optimizer.

    >>> import jax, optax
    >>> from flax import nnx
    >>> from jaxloss import mse_loss
    >>> from jaxloss.models import LinearRegression
    >>> from jaxloss.training import create_train_state, train_step
    >>> state = create_train_state(LinearRegression(rngs=nnx.Rngs(0)), optax.adam(0.01))
    >>> inputs = jax.random.normal(jax.random.key(0), (32, 10))
    >>> for _ in range(10):
    ...     state, value = train_step(state, inputs, inputs[:, :1], loss=mse_loss)
    >>> state.step
    Array(10, dtype=int32)

State and step
    `create_train_state` creates a `TrainState` from a model and an optimizer. The model is a Flax NNX module,
    or a pair `(apply_fn, params)`, as for Linen, Equinox and plain functions. `train_step` runs one optimizer
    step and donates the state. It can also accumulate gradients over micro-batches, and compute metrics in
    addition to the loss, such as `gradient_norm`.
Data sets
    `train_epoch` runs an epoch, and `evaluate` computes exact means of a loss and of metrics: over arrays in
    one compiled call, or over any iterable of batches. `read_losses` raises a `NonFiniteLossError` if a loss
    is NaN or infinite.
Checkpoints
    `Checkpoints` saves states in the background and restores the newest complete one.
Devices
    `shard_train_state` and `shard_batch` place a state and a batch on a mesh, for data-parallel and fully
    sharded training. The step itself does not change.

A loss is any callable `(outputs, targets) -> scalar`. Bind options with `functools.partial`, and arrays with
`jax.tree_util.Partial`; `reduction="sum_and_weight"` gives the pair (sum, weight) that micro-batches and
`evaluate` need. Inputs and targets are pytrees of arrays, with the samples along the first axis. NumPy arrays
may have any byte order, and 64-bit integers keep their values: an out-of-range label never becomes a valid
one. NumPy masked arrays raise a TypeError.

This package needs Flax, Optax and Orbax, which the extra `train` of jaxloss installs.
"""

try:  # only for the error message
    import flax
    import optax
    import orbax.checkpoint as checkpoint

    del flax, optax, checkpoint
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "jaxloss.training needs Flax, Optax and Orbax: pip install 'jaxloss[train]', or in a copy of the "
        "repository pip install '.[train]'",
        name=error.name,
    ) from error

from jaxloss.training.checkpoints import Checkpoints as Checkpoints
from jaxloss.training.epochs import NonFiniteLossError as NonFiniteLossError
from jaxloss.training.epochs import read_losses as read_losses
from jaxloss.training.epochs import train_epoch as train_epoch
from jaxloss.training.evaluation import evaluate as evaluate
from jaxloss.training.objective import gradient_norm as gradient_norm
from jaxloss.training.placement import shard_batch as shard_batch
from jaxloss.training.placement import shard_train_state as shard_train_state
from jaxloss.training.state import TrainState as TrainState
from jaxloss.training.state import create_train_state as create_train_state
from jaxloss.training.step import train_step as train_step
