"""PyTorch's loss functions for JAX: the same names, the same defaults, the same numbers.

Every loss is a pure compiled function of what the model hands over and the targets, with its options as
keywords. `reduce` takes losses of your own, or weights per sample, to the same sums and means. This package
needs JAX alone; the models in `jaxloss.models` and the training step in `jaxloss.training` need Flax, and the
step Optax, too.
"""

from jaxloss._reduction import reduce as reduce
from jaxloss.binary import binary_cross_entropy as binary_cross_entropy
from jaxloss.binary import binary_cross_entropy_with_logits as binary_cross_entropy_with_logits
from jaxloss.classification import cross_entropy as cross_entropy
from jaxloss.classification import nll_loss as nll_loss
from jaxloss.regression import huber_loss as huber_loss
from jaxloss.regression import l1_loss as l1_loss
from jaxloss.regression import mse_loss as mse_loss
from jaxloss.regression import smooth_l1_loss as smooth_l1_loss
