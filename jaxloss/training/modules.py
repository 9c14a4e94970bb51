"""Flax modules as pure functions of their parameters and inputs."""

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen, nnx
from flax.nnx.traversals import flatten_mapping

from jaxloss.training.trees import dtypes_and_shapes, optimized, with_optimized


@dataclasses.dataclass(frozen=True)
class ApplyNNX:
    """An NNX module as a pure function; modules of equal architecture compare equal and compile once."""

    graphdef: nnx.GraphDef[nnx.Module]
    evaluates: bool = False

    def __call__(self, params: Any, *model_state_and_inputs: Any) -> Any:
        """Returns the outputs, or for training with a `model_state` the pair (outputs, model_state)."""
        *model_state, inputs = model_state_and_inputs
        try:
            module = nnx.merge(self.graphdef, params, *model_state)
        except ValueError as error:
            found = {"params": params} | ({"model_state": model_state[0]} if model_state else {})
            raise ValueError(
                f"params and model_state must match the model; got {dtypes_and_shapes(found)}"
            ) from error
        positional, named = _arguments(type(module), inputs)
        outputs = module(*positional, **named)
        if self.evaluates or not model_state:
            return outputs
        # Variables that the call creates, as with `sow`, are not part of the state.
        known = flatten_mapping(model_state[0])
        return outputs, nnx.to_pure_dict(nnx.state(module, lambda path, _: path in known))


@dataclasses.dataclass(frozen=True)
class ApplyLinen:
    """The `apply` of a Linen module, with several arguments from a tuple or dict of inputs."""

    apply: Callable[..., Any]

    def __call__(self, variables: Any, inputs: Any) -> Any:
        """Returns the outputs."""
        module: Any = self.apply
        positional, named = _arguments(type(module.__self__), inputs)
        return self.apply(variables, *positional, **named)


def is_linen_apply(function: Any) -> bool:
    """Returns whether `function` is the `apply` of a Linen module."""
    return inspect.ismethod(function) and isinstance(function.__self__, linen.Module)


def _arguments(module: type, inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Returns the positional and the keyword arguments with which to call a module.

    A tuple is unpacked if the call takes several positional arguments, and a dict if the call takes arguments
    with these names. Anything else is one argument.
    """
    call: Any = module.__call__
    _, *parameters = inspect.signature(call).parameters.values()
    positional = [p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    takes_several = len(positional) > 1 or any(p.kind is p.VAR_POSITIONAL for p in parameters)
    if type(inputs) is tuple and takes_several:
        return inputs, {}
    if isinstance(inputs, dict) and inputs.keys() <= {p.name for p in parameters}:
        return (), inputs
    return (inputs,), {}


@dataclasses.dataclass(frozen=True)
class ComputeIn:
    """A model that casts its parameters and floating-point inputs to a dtype, but not `model_state`."""

    apply_fn: Callable[..., Any]
    dtype: np.dtype

    def __call__(self, params: Any, *model_state_and_inputs: Any) -> Any:
        """Returns what the model returns."""
        *model_state, inputs = model_state_and_inputs
        cast, inputs = jax.tree.map(self._cast, (optimized(params), inputs))
        return self.apply_fn(with_optimized(params, cast), *model_state, inputs)

    def _cast(self, array: Any) -> Any:
        floating = jnp.issubdtype(jnp.result_type(array), jnp.floating)
        return jnp.asarray(array, self.dtype) if floating else array
