"""Sharding of states and batches over a mesh: data-parallel, fully sharded, or by a custom rule.

The step does not change: JAX's compiler reads the sharding of the arrays and adds the communication between
devices.
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

from jaxloss.training.batches import batch_from_host
from jaxloss.training.state import TrainState, check_not_donated

__all__ = ["shard_batch", "shard_train_state"]

Rule = Callable[[str, jax.Array], PartitionSpec]


def shard_train_state(state: TrainState, mesh: Mesh, split: str | Rule | None = None) -> TrainState:
    """Copies a state to the devices of a mesh.

    The optimizer's arrays of a parameter are sharded like the parameter; everything else is replicated.

    Args:
        state: The state from `create_train_state` or from a step. In a program with several processes, each
            passes the same state.
        mesh: The devices, from `jax.make_mesh`.
        split: Sharding of the parameters, one of

            * None: all are replicated. With a sharded batch this is data-parallel training;
            * the name of a mesh axis: each parameter is sharded over it along its longest dimension that the
              axis divides, and replicated if there is none. The step gathers the parameters to run the
              model, and each device updates its shard. With a batch sharded over the same axis this is
              fully sharded data-parallel training;
            * a function `(path, parameter) -> PartitionSpec` with paths such as "hidden/kernel", for model
              parallelism. With `Auto` mesh axes it works for any model; with `Explicit` axes the model's own
              operations must specify the sharding of their results.

    Returns:
        The state on the mesh, a copy; `state` stays valid.

    Raises:
        ValueError: If the mesh has no such axis, an axis does not divide the dimension it shards, or `state`
            was donated to a step.
        TypeError: If `state` is not a `TrainState`, `mesh` is not a `Mesh`, or `split` is none of the above.

    Example:
        >>> import jax, optax
        >>> from flax import nnx
        >>> from jax.sharding import AxisType
        >>> from jaxloss.models import LinearRegression
        >>> from jaxloss.training import create_train_state, shard_train_state
        >>> mesh = jax.make_mesh((1,), ("data",), axis_types=(AxisType.Auto,))
        >>> state = create_train_state(LinearRegression(rngs=nnx.Rngs(0)), optax.adam(0.01))
        >>> state = shard_train_state(state, mesh, "data")
        >>> state.opt_state[0].mu["linear"]["kernel"].sharding.spec[0]
        'data'
    """
    check_not_donated(state)
    _check_mesh(mesh)
    rule = _rule(mesh, split)
    specs: dict[str, tuple[tuple[int, ...], PartitionSpec]] = {}
    for path, parameter in jax.tree_util.tree_leaves_with_path(state.params):
        name = keystr(path, simple=True, separator="/")
        spec = rule(name, parameter)
        _check_divides(mesh, spec, name, parameter.shape)
        specs[name] = parameter.shape, spec

    def put(array: Any, spec: PartitionSpec) -> jax.Array:
        # Copied first: on a device that already holds the array, the result would share its buffer, which a
        # step donates.
        return _put(jnp.copy(array), NamedSharding(mesh, spec))

    def place(path: Any, array: jax.Array) -> jax.Array:
        return put(array, _of_parameter(specs, keystr(path, simple=True, separator="/"), array.shape))

    replicated = PartitionSpec()
    gather_mesh = mesh if isinstance(split, str) else None
    return state.replace(
        step=put(state.step, replicated),
        apply_fn=_gather(state.apply_fn, gather_mesh),
        params=jax.tree_util.tree_map_with_path(place, state.params),
        opt_state=jax.tree_util.tree_map_with_path(place, state.opt_state),
        model_state=jax.tree.map(lambda array: put(array, replicated), state.model_state),
        eval_fn=state.eval_fn and _gather(state.eval_fn, gather_mesh),
    )


def shard_batch(batch: Any, mesh: Mesh, axis: str) -> Any:
    """Shards a batch over a mesh axis along its first axis, the samples.

    Args:
        batch: An array with the samples along its first axis, or any pytree of such arrays. In a program with
            several processes, each passes the whole batch, and its devices keep their shards. If each process
            has only a part of the batch, use `jax.make_array_from_process_local_data` instead.
        mesh: The devices, from `jax.make_mesh`.
        axis: The name of the mesh axis.

    Returns:
        The same pytree with copies of its arrays on the mesh.

    Raises:
        TypeError: If `mesh` is not a `Mesh`, or the batch contains anything other than arrays of numbers.
        ValueError: If the mesh has no such axis, or the axis does not divide the number of samples.

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
    _check_mesh(mesh)
    size = _axis_size(mesh, axis)

    def place(path: Any, array: Any) -> jax.Array:
        shape = np.shape(array)
        if not shape or shape[0] % size:
            raise ValueError(
                f"mesh axis {axis!r} of {size} devices must divide the first axis of every array of the "
                f"batch; got batch{keystr(path)} of shape {shape}"
            )
        return _put(array, NamedSharding(mesh, PartitionSpec(axis)))

    return jax.tree_util.tree_map_with_path(place, batch_from_host("batch", batch))


@dataclasses.dataclass(frozen=True)
class _Gather:
    """A model whose sharded parameters are gathered on every device before it runs."""

    apply_fn: Callable[..., Any]
    mesh: Mesh

    def __call__(self, params: Any, *model_state_and_inputs: Any) -> Any:
        replicated = NamedSharding(self.mesh, PartitionSpec())
        explicit = AxisType.Explicit in self.mesh.axis_types
        gather = jax.sharding.reshard if explicit else jax.lax.with_sharding_constraint
        return self.apply_fn(jax.tree.map(lambda p: gather(p, replicated), params), *model_state_and_inputs)


def _gather(function: Callable[..., Any], mesh: Mesh | None) -> Callable[..., Any]:
    """Returns the model with its parameters gathered over a mesh, or the bare model if there is none."""
    model = function.apply_fn if isinstance(function, _Gather) else function
    return model if mesh is None else _Gather(model, mesh)


def _rule(mesh: Mesh, split: Any) -> Rule:
    """Returns the function (path, parameter) -> PartitionSpec that `split` stands for."""
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
                "split must be the name of a mesh axis, a function (path, parameter) -> PartitionSpec, or "
                f"None; got {split!r}"
            )


def _check_mesh(mesh: Any) -> None:
    """Raises a TypeError unless `mesh` is a `Mesh`."""
    if not isinstance(mesh, Mesh):
        raise TypeError(f"mesh must be a jax.sharding.Mesh, as returned by jax.make_mesh; got {mesh!r}")


def _axis_size(mesh: Mesh, axis: str) -> int:
    """Returns the number of devices along a mesh axis, or raises a ValueError if there is no such axis."""
    if axis not in mesh.shape:
        raise ValueError(f"the mesh has the axes {', '.join(map(repr, mesh.axis_names))}; got {axis!r}")
    return mesh.shape[axis]


def _check_divides(mesh: Mesh, spec: Any, name: str, shape: tuple[int, ...]) -> None:
    """Raises an error unless `spec` is a PartitionSpec that divides the parameter evenly."""
    if not isinstance(spec, PartitionSpec):
        raise TypeError(f"split must return a PartitionSpec for parameter {name}, got {spec!r}")
    if len(spec) > len(shape):
        raise ValueError(f"parameter {name} of shape {shape} has fewer dimensions than {spec}")
    for length, axes in zip(shape, spec, strict=False):
        names = axes if isinstance(axes, tuple) else (axes,) if axes else ()
        size = math.prod(_axis_size(mesh, axis) for axis in names)
        if length % size:
            raise ValueError(
                f"mesh axis {axes!r} of {size} devices must divide the dimension it shards; "
                f"got parameter {name} of shape {shape} with {spec}"
            )


def _of_parameter(
    specs: dict[str, tuple[tuple[int, ...], PartitionSpec]], path: str, shape: tuple[int, ...]
) -> PartitionSpec:
    """Returns the spec of the parameter to which an array of the optimizer belongs.

    An optimizer keeps arrays in trees with the structure of the parameters, so their paths end with the path
    of a parameter. An array with extra leading dimensions, such as a history of several steps, is sharded
    along the others; an array of any other shape is replicated.
    """
    for name in sorted(specs, key=len, reverse=True):
        parameter_shape, spec = specs[name]
        extra = len(shape) - len(parameter_shape)
        belongs = not name or f"/{path}".endswith(f"/{name}")
        if belongs and extra >= 0 and shape[extra:] == parameter_shape:
            return PartitionSpec(*[None] * extra, *spec)
    return PartitionSpec()


def _put(array: Any, sharding: NamedSharding) -> jax.Array:
    """Returns a copy of the array with a sharding."""
    if isinstance(array, np.ndarray):
        array = array.copy()  # device_put may share the caller's buffer on a CPU, in spite of may_alias
    if sharding.is_fully_addressable:
        return jax.device_put(array, sharding, may_alias=False)
    # Every process holds the whole array and passes the shards of its own devices.
    if jnp.issubdtype(jnp.result_type(array), jax.dtypes.prng_key):
        data = _put(jax.random.key_data(array), sharding)
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(array))
    host = np.asarray(array, array.dtype if isinstance(array, jax.Array) else jnp.result_type(array))
    with jax.enable_x64(True):  # keeps int64 arrays, whose values do not fit into int32
        return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])
