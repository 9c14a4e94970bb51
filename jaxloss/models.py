"""Small Flax NNX models that start as their PyTorch counterparts do.

Flax draws a layer's weights from a normal distribution and sets its biases to zero; PyTorch draws both
uniformly from ±1/√fan_in. Here both start as in PyTorch, so the first losses are those that a PyTorch user
knows: near ln 10 = 2.303 for ten classes, near ln 2 = 0.693 for two.
"""

from collections.abc import Sequence
from typing import Any

import jax
from flax import nnx
from jax.typing import ArrayLike, DTypeLike

from jaxloss._core.reduction import Reduction
from jaxloss.losses.adaptive import (
    adaptive_log_probs,
    adaptive_log_softmax,
    adaptive_predict,
    init_adaptive_log_softmax,
)

__all__ = ["AdaptiveLogSoftmax", "BinaryClassifier", "Classifier", "LinearRegression"]


def _linear(in_features: int, out_features: int, *, rngs: nnx.Rngs) -> nnx.Linear:
    """A linear layer whose weights and biases start as PyTorch's `nn.Linear`: uniform in ±1/√in_features."""
    bound = in_features**-0.5

    def uniform(key: jax.Array, shape: tuple[int, ...], dtype: DTypeLike) -> jax.Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    # A closure, because a bias initializer is told the shape of the bias alone, and that lacks the fan-in.
    return nnx.Linear(in_features, out_features, kernel_init=uniform, bias_init=uniform, rngs=rngs)


class LinearRegression(nnx.Module):
    """One linear layer: `outputs = inputs @ kernel + bias`.

    Args:
        in_features: Number of input features.
        out_features: Number of predicted values.
        rngs: Flax's random number generators; `params` is used.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from jaxloss.models import LinearRegression
        >>> LinearRegression(rngs=nnx.Rngs(0))(jnp.ones((32, 10))).shape
        (32, 1)
    """

    def __init__(self, in_features: int = 10, out_features: int = 1, *, rngs: nnx.Rngs):
        self.linear = _linear(in_features, out_features, rngs=rngs)

    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Takes inputs of shape `(..., in_features)` to predictions of shape `(..., out_features)`."""
        return self.linear(inputs)


class _Perceptron(nnx.Module):
    """Linear, ReLU, linear: the body of both classifiers."""

    def __init__(self, in_features: int, hidden_features: int, out_features: int, *, rngs: nnx.Rngs):
        self.hidden = _linear(in_features, hidden_features, rngs=rngs)
        self.output = _linear(hidden_features, out_features, rngs=rngs)

    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Takes inputs of shape `(..., in_features)` to logits of shape `(..., out_features)`."""
        return self.output(jax.nn.relu(self.hidden(inputs)))


class Classifier(_Perceptron):
    """One hidden ReLU layer, then one raw score (logit) per class.

    Args:
        in_features: Number of input features; 784 is a 28x28 image, flattened.
        hidden_features: Width of the hidden layer.
        classes: Number of classes.
        rngs: Flax's random number generators; `params` is used.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from jaxloss.models import Classifier
        >>> Classifier(rngs=nnx.Rngs(0))(jnp.ones((64, 784))).shape
        (64, 10)
    """

    def __init__(
        self, in_features: int = 784, hidden_features: int = 128, classes: int = 10, *, rngs: nnx.Rngs
    ):
        super().__init__(in_features, hidden_features, classes, rngs=rngs)


class BinaryClassifier(_Perceptron):
    """One hidden ReLU layer, then the raw score (logit) of the positive class.

    Args:
        in_features: Number of input features.
        hidden_features: Width of the hidden layer.
        rngs: Flax's random number generators; `params` is used.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from jaxloss.models import BinaryClassifier
        >>> BinaryClassifier(rngs=nnx.Rngs(0))(jnp.ones((16, 20))).shape
        (16, 1)
    """

    def __init__(self, in_features: int = 20, hidden_features: int = 16, *, rngs: nnx.Rngs):
        super().__init__(in_features, hidden_features, 1, rngs=rngs)


class AdaptiveLogSoftmax(nnx.Module):
    """The last layer over a large vocabulary, narrower for rare classes than for frequent ones.

    PyTorch's `nn.AdaptiveLogSoftmaxWithLoss`. The parameters start as in PyTorch; `params` is the plain
    pytree that `jaxloss.adaptive_log_softmax` takes. In `train_step` a model may end in this layer, with
    `jaxloss.nll_loss`; one that returns `(hidden, layer.params)` instead, with a loss that hands both to
    `jaxloss.adaptive_log_softmax`, never holds the log-probabilities of all classes.

    Args:
        in_features: Number of hidden features.
        n_classes: Number of classes, which are sorted from the most frequent to the rarest.
        cutoffs: The first class of each tail, rising integers in [1, n_classes - 1].
        div_value: How much narrower each tail is than what comes before it.
        head_bias: Whether the head has a bias.
        rngs: Flax's random number generators; `params` is used.

    Example:
        >>> import jax.numpy as jnp
        >>> from flax import nnx
        >>> from jaxloss.models import AdaptiveLogSoftmax
        >>> layer = AdaptiveLogSoftmax(64, 1000, cutoffs=(20, 200), rngs=nnx.Rngs(0))
        >>> hidden = jnp.zeros((2, 64))
        >>> layer(hidden).shape
        (2, 1000)
        >>> layer.loss(hidden, jnp.array([3, 999]))
        Array(6.4334, dtype=float32)
    """

    def __init__(
        self,
        in_features: int,
        n_classes: int,
        cutoffs: Sequence[int],
        div_value: float = 4.0,
        head_bias: bool = False,
        *,
        rngs: nnx.Rngs,
    ):
        params = init_adaptive_log_softmax(
            rngs.params(), in_features, n_classes, cutoffs, div_value, head_bias
        )
        self.cutoffs = tuple(cutoffs)
        variables = jax.tree.map(nnx.Param, params)
        self.head = nnx.data(variables["head"])
        self.tail = nnx.data(variables["tail"])

    @property
    def params(self) -> dict[str, Any]:
        """The parameters as a plain pytree of arrays."""
        return nnx.to_pure_dict(nnx.state(self, nnx.Param))

    def __call__(self, hidden: jax.Array) -> jax.Array:
        """Takes hidden features of shape `(..., in_features)` to log-probabilities `(..., n_classes)`."""
        return adaptive_log_probs(hidden, self.params, cutoffs=self.cutoffs)

    def loss(
        self,
        hidden: jax.Array,
        targets: jax.Array,
        *,
        where: ArrayLike | None = None,
        reduction: Reduction = "mean",
    ) -> jax.Array:
        """Measures how surprised the model is by the labels: `jaxloss.adaptive_log_softmax`."""
        return adaptive_log_softmax(
            hidden, self.params, targets, cutoffs=self.cutoffs, where=where, reduction=reduction
        )

    def predict(self, hidden: jax.Array) -> jax.Array:
        """Takes hidden features of shape `(..., in_features)` to the most likely classes `(...)`."""
        return adaptive_predict(hidden, self.params, cutoffs=self.cutoffs)
