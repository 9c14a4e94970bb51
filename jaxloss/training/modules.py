"""Models as pure functions of their parameters and inputs."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxloss.training.trees import dtypes_and_shapes


@dataclasses.dataclass(frozen=True)
class ApplyModule:
    """An NNX module as a pure function; modules of equal architecture compare equal and compile once."""

    graphdef: nnx.GraphDef[nnx.Module]
    evaluates: bool = False

    def __call__(self, params: Any, *model_state_and_inputs: Any) -> Any:
        *model_state, inputs = model_state_and_inputs
        try:
            module = nnx.merge(self.graphdef, params, *model_state)
        except ValueError as error:
            found = {"params": params} | ({"model_state": model_state[0]} if model_state else {})
            raise ValueError(
                f"params and model_state must match the model; got {dtypes_and_shapes(found)}"
            ) from error
        outputs = module(inputs)
        if self.evaluates or not model_state:
            return outputs
        return outputs, nnx.to_pure_dict(nnx.state(module, nnx.Not(nnx.Param)))


@dataclasses.dataclass(frozen=True)
class ComputeIn:
    """A model that casts its parameters and floating-point inputs to a dtype, but not `model_state`."""

    apply_fn: Callable[..., Any]
    dtype: np.dtype

    def __call__(self, params: Any, *model_state_and_inputs: Any) -> Any:
        *model_state, inputs = model_state_and_inputs
        params, inputs = jax.tree.map(self._cast, (params, inputs))
        return self.apply_fn(params, *model_state, inputs)

    def _cast(self, array: Any) -> Any:
        floating = jnp.issubdtype(jnp.result_type(array), jnp.floating)
        return jnp.asarray(array, self.dtype) if floating else array
