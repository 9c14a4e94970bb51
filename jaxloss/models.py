"""Small Flax NNX models with the initial parameters of their PyTorch counterparts.

By default, Flax draws the weights of a layer from a normal distribution and sets its biases to zero. PyTorch
and these models draw both from the uniform distribution on ±1/√fan_in, so the initial losses match
PyTorch's: about ln 10 = 2.303 for ten classes and ln 2 = 0.693 for two.
"""

from collections.abc import Sequence
from typing import Any

import jax
from jax.typing import ArrayLike, DTypeLike

from jaxloss._core.reduction import Reduction
from jaxloss.losses.adaptive import (
    adaptive_log_probs,
    adaptive_log_softmax,
    adaptive_predict,
    init_adaptive_log_softmax,
)

try:
    from flax import nnx
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        "jaxloss.models needs Flax: pip install 'jaxloss[train]', or in a copy of the repository "
        "pip install '.[train]'",
        name=error.name,
    ) from error

__all__ = ["AdaptiveLogSoftmax", "BinaryClassifier", "Classifier", "LinearRegression"]


def _linear(in_features: int, out_features: int, *, rngs: nnx.Rngs) -> nnx.Linear:
    """Returns a linear layer with PyTorch's initial weights and biases, uniform in ±1/√in_features."""
    bound = in_features**-0.5

    def uniform(key: jax.Array, shape: tuple[int, ...], dtype: DTypeLike) -> jax.Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    # A closure, because a bias initializer receives only the shape of the bias, not the fan-in.
    return nnx.Linear(in_features, out_features, kernel_init=uniform, bias_init=uniform, rngs=rngs)


class LinearRegression(nnx.Module):
    """Linear regression: `predictions = inputs @ kernel + bias`.

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
        """Returns predictions `(..., out_features)` for inputs `(..., in_features)`."""
        return self.linear(inputs)


class _Perceptron(nnx.Module):
    """Linear layer, ReLU, linear layer."""

    def __init__(self, in_features: int, hidden_features: int, out_features: int, *, rngs: nnx.Rngs):
        self.hidden = _linear(in_features, hidden_features, rngs=rngs)
        self.output = _linear(hidden_features, out_features, rngs=rngs)

    def __call__(self, inputs: jax.Array) -> jax.Array:
        """Returns logits `(..., out_features)` for inputs `(..., in_features)`."""
        return self.output(jax.nn.relu(self.hidden(inputs)))


class Classifier(_Perceptron):
    """Classifier with one hidden ReLU layer and one logit per class.

    Args:
        in_features: Number of input features; 784 for flattened 28x28 images.
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
    """Binary classifier with one hidden ReLU layer and the logit of the positive class.

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
    """Adaptive softmax layer, PyTorch's `nn.AdaptiveLogSoftmaxWithLoss`.

    An output layer for large vocabularies that uses fewer features for rare classes. It is initialized as in
    PyTorch; `params` is the pytree that `jaxloss.adaptive_log_softmax` takes. For `train_step`, a model can
    end in this layer, with `jaxloss.nll_loss` as the loss. To avoid holding the log-probabilities of all
    classes, return `(hidden, layer.params)` from the model and pass both to `jaxloss.adaptive_log_softmax`
    in the loss.

    Args:
        in_features: Number of hidden features.
        n_classes: Number of classes, sorted from the most frequent to the rarest.
        cutoffs: First class of each tail, increasing integers in [1, n_classes - 1].
        div_value: Factor by which each tail is narrower than the one before.
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
        """Returns log-probabilities `(..., n_classes)` for hidden features `(..., in_features)`."""
        return adaptive_log_probs(hidden, self.params, cutoffs=self.cutoffs)

    def loss(
        self,
        hidden: jax.Array,
        targets: jax.Array,
        *,
        where: ArrayLike | None = None,
        reduction: Reduction = "mean",
    ) -> jax.Array:
        """Cross-entropy between hidden features and class labels: `jaxloss.adaptive_log_softmax`."""
        return adaptive_log_softmax(
            hidden, self.params, targets, cutoffs=self.cutoffs, where=where, reduction=reduction
        )

    def predict(self, hidden: jax.Array) -> jax.Array:
        """Returns the most likely classes `(...)` for hidden features `(..., in_features)`."""
        return adaptive_predict(hidden, self.params, cutoffs=self.cutoffs)
