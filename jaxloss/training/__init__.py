"""Training on top of the losses: steps, epochs, checkpoints, and placement on a mesh.

Everything here needs the `train` extra: Flax, Optax and Orbax.
"""

from jaxloss.training.checkpoints import Checkpoints as Checkpoints
from jaxloss.training.epochs import evaluate as evaluate
from jaxloss.training.epochs import read_losses as read_losses
from jaxloss.training.epochs import train_epoch as train_epoch
from jaxloss.training.placement import shard_batch as shard_batch
from jaxloss.training.placement import shard_train_state as shard_train_state
from jaxloss.training.step import TrainState as TrainState
from jaxloss.training.step import create_train_state as create_train_state
from jaxloss.training.step import train_step as train_step
