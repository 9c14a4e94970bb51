"""Where a state and its batches lie on a mesh: data-parallel, fully sharded, or split by a rule of your own.

The step itself stays as it is. JAX's compiler reads from the arrays how they are split, and adds the
communication between the devices.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jax.tree_util import keystr

from jaxloss.training.step import TrainState, refuse_what_was_taken

__all__ = ["shard_batch", "shard_train_state"]

Rule = Callable[[str, jax.Array], PartitionSpec]


def shard_train_state(state: TrainState, mesh: Mesh, split: str | Rule | None = None) -> TrainState:
    """Copies a state onto the devices of a mesh.

    What the optimizer keeps for a parameter is split as the parameter is; all else is whole on every device.

    Args:
        state: The state from `create_train_state` or from a step. In a program of several processes, each
            gives the same state.
        mesh: The devices, from `jax.make_mesh`.
        split: How the parameters are split, one of

            * None: each is whole on every device. With a batch that is split this is data-parallel training;
            * the name of a mesh axis: each parameter is split over it along the longest dimension that it
              divides, and stays whole where there is none. The step collects the parameters to run the
              model, and each device updates its part. With a batch that is split over the same axis this is
              fully sharded training;
            * a function `(path, parameter) -> PartitionSpec` with paths such as "hidden/kernel", for a model
              that is split itself. With `Auto` mesh axes any model runs so; with `Explicit` ones its own
              operations must say how their results are split.

    Returns:
        The state on the mesh. The one that was given stays as it is.

    Raises:
        ValueError: If the mesh has no such axis, an axis does not divide what is split over it, or a step has
            taken the state.
        TypeError: If `state` is no `TrainState`, `mesh` no `Mesh`, or `split` is none of the above.

    Example:
        >>> import jax, optax
        >>> from flax import nnx
        >>> from jax.sharding import AxisType
        >>> from jaxloss.models import LinearRegression
        >>> from jaxloss.training import shard_train_state
        >>> from jaxloss.training import create_train_state
        >>> mesh = jax.make_mesh((1,), ("data",), axis_types=(AxisType.Auto,))
        >>> state = create_train_state(LinearRegression(rngs=nnx.Rngs(0)), optax.adam(0.01))
        >>> state = shard_train_state(state, mesh, "data")
        >>> state.opt_state[0].mu["linear"]["kernel"].sharding.spec[0]
        'data'
    """
    refuse_what_was_taken(state)
    _refuse_other_than_mesh(mesh)
    rule = _rule(mesh, split)
    specs: dict[str, tuple[tuple[int, ...], PartitionSpec]] = {}
    for path, parameter in jax.tree_util.tree_leaves_with_path(state.params):
        name = keystr(path, simple=True, separator="/")
        spec = rule(name, parameter)
        _check_divides(mesh, spec, name, parameter.shape)
        specs[name] = parameter.shape, spec

    def put(array: Any, spec: PartitionSpec) -> jax.Array:
        # A copy first: a device that holds the array shares it with the result, which a step donates.
        return _put(jnp.copy(array), NamedSharding(mesh, spec))

    def place(path: Any, array: jax.Array) -> jax.Array:
        return put(array, _of_parameter(specs, keystr(path, simple=True, separator="/"), array.shape))

    whole = PartitionSpec()
    collecting = mesh if isinstance(split, str) else None
    return state.replace(
        step=put(state.step, whole),
        apply_fn=_collect(state.apply_fn, collecting),
        params=jax.tree_util.tree_map_with_path(place, state.params),
        opt_state=jax.tree_util.tree_map_with_path(place, state.opt_state),
        model_state=jax.tree.map(lambda array: put(array, whole), state.model_state),
        eval_fn=state.eval_fn and _collect(state.eval_fn, collecting),
    )


def shard_batch(batch: Any, mesh: Mesh, axis: str) -> Any:
    """Splits a batch over an axis of a mesh, sample by sample.

    Args:
        batch: An array with the samples along its first axis, or any pytree of such arrays. In a program of
            several processes each gives the whole batch, and its devices keep their part of it; where each
            process holds a part only, `jax.make_array_from_process_local_data` does what this function does.
        mesh: The devices, from `jax.make_mesh`.
        axis: The name of the mesh axis.

    Returns:
        The same pytree of arrays on the mesh.

    Raises:
        TypeError: If `mesh` is no `Mesh`.
        ValueError: If the mesh has no such axis, or the axis does not divide the batch.

    Example:
        >>> import jax
        >>> import jax.numpy as jnp
        >>> from jax.sharding import AxisType
        >>> from jaxloss.training import shard_batch
        >>> mesh = jax.make_mesh((1,), ("data",), axis_types=(AxisType.Auto,))
        >>> inputs, labels = shard_batch((jnp.ones((64, 784)), jnp.arange(64) % 10), mesh, "data")
        >>> inputs.sharding.spec[0]
        'data'
    """
    _refuse_other_than_mesh(mesh)
    size = _axis_size(mesh, axis)

    def place(path: Any, array: Any) -> jax.Array:
        shape = np.shape(array)
        if not shape or shape[0] % size:
            raise ValueError(
                f"mesh axis {axis!r} of {size} devices must divide the batch, the first axis of every array; "
                f"got batch{keystr(path)} of shape {shape}"
            )
        return _put(array, NamedSharding(mesh, PartitionSpec(axis)))

    return jax.tree_util.tree_map_with_path(place, batch)


@dataclasses.dataclass(frozen=True)
class _Collect:
    """A model whose split parameters are collected on every device before it runs."""

    apply_fn: Callable[..., Any]
    mesh: Mesh

    def __call__(self, params: Any, *model_state_and_inputs: Any) -> Any:
        whole = NamedSharding(self.mesh, PartitionSpec())
        explicit = AxisType.Explicit in self.mesh.axis_types
        collect = jax.sharding.reshard if explicit else jax.lax.with_sharding_constraint
        return self.apply_fn(jax.tree.map(lambda p: collect(p, whole), params), *model_state_and_inputs)


def _collect(function: Callable[..., Any], mesh: Mesh | None) -> Callable[..., Any]:
    model = function.apply_fn if isinstance(function, _Collect) else function
    return model if mesh is None else _Collect(model, mesh)


def _rule(mesh: Mesh, split: Any) -> Rule:
    match split:
        case str():
            size = _axis_size(mesh, split)

            def longest(name: str, parameter: jax.Array) -> PartitionSpec:
                dimensions = [i for i, length in enumerate(parameter.shape) if length % size == 0]
                chosen = max(dimensions, key=lambda i: parameter.shape[i], default=None)
                return PartitionSpec(*(split if i == chosen else None for i in range(parameter.ndim)))

            return longest
        case None:
            return lambda name, parameter: PartitionSpec()
        case _ if callable(split):
            return cast(Rule, split)
        case _:
            raise TypeError(
                "split must be the name of a mesh axis, a function (path, parameter) -> PartitionSpec or "
                f"None; got {split!r}"
            )


def _refuse_other_than_mesh(mesh: Any) -> None:
    if not isinstance(mesh, Mesh):
        raise TypeError(f"mesh must be a jax.sharding.Mesh, as from jax.make_mesh; got {mesh!r}")


def _axis_size(mesh: Mesh, axis: str) -> int:
    if axis not in mesh.shape:
        raise ValueError(f"the mesh has the axes {', '.join(map(repr, mesh.axis_names))}; got {axis!r}")
    return mesh.shape[axis]


def _check_divides(mesh: Mesh, spec: Any, name: str, shape: tuple[int, ...]) -> None:
    if not isinstance(spec, PartitionSpec):
        raise TypeError(f"split must return a PartitionSpec for parameter {name}, got {spec!r}")
    if len(spec) > len(shape):
        raise ValueError(f"parameter {name} of shape {shape} has fewer dimensions than {spec}")
    for length, axes in zip(shape, spec, strict=False):
        names = axes if isinstance(axes, tuple) else (axes,) if axes else ()
        size = math.prod(_axis_size(mesh, axis) for axis in names)
        if length % size:
            raise ValueError(
                f"mesh axis {axes!r} of {size} devices must divide the dimension that is split over it; "
                f"got parameter {name} of shape {shape} with {spec}"
            )


def _of_parameter(
    specs: dict[str, tuple[tuple[int, ...], PartitionSpec]], path: str, shape: tuple[int, ...]
) -> PartitionSpec:
    """The spec of the parameter that an array belongs to.

    An optimizer keeps arrays in trees shaped as the parameters, so their paths end in that of the parameter.
    An array with dimensions in front of the parameter's, such as a memory of several steps, is split behind
    them; one of another shape is whole.
    """
    for name in sorted(specs, key=len, reverse=True):
        parameter_shape, spec = specs[name]
        extra = len(shape) - len(parameter_shape)
        belongs = not name or f"/{path}".endswith(f"/{name}")
        if belongs and extra >= 0 and shape[extra:] == parameter_shape:
            return PartitionSpec(*[None] * extra, *spec)
    return PartitionSpec()


def _put(array: Any, sharding: NamedSharding) -> jax.Array:
    if sharding.is_fully_addressable:
        return jax.device_put(array, sharding, may_alias=False)
    # Every process holds the whole array, and hands its own devices their parts.
    if jnp.issubdtype(jnp.result_type(array), jax.dtypes.prng_key):
        data = _put(jax.random.key_data(array), sharding)
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(array))
    host = np.asarray(array)
    return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])
