"""Small Flax NNX models that start as their PyTorch counterparts do.

Flax draws a layer's weights from a normal distribution and sets its biases to zero; PyTorch draws both
uniformly from ±1/√fan_in. Here both start as in PyTorch, so the first losses are those that a PyTorch user
knows: near ln 10 = 2.303 for ten classes, near ln 2 = 0.693 for two.
"""

import jax
from flax import nnx
from jax.typing import DTypeLike

__all__ = ["BinaryClassifier", "Classifier", "LinearRegression"]


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
