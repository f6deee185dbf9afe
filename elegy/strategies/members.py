"""The members of a population: their states are stacked, and one compiled step updates all of them."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import shard_map
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from elegy.data.members import PerMember
from elegy.strategies.device_ref import reduced
from elegy.strategies.init import InitKernel, copied_to
from elegy.strategies.local import Jit
from elegy.strategies.strategy import Kind, Strategy, struct_of, to_host
from elegy.strategies.tuning import compiler_options
from elegy.types import Device, PyTree

_AXIS = "members"

_MEMBER_AXIS: dict[str, int] = {"batch": 1, "chunk": 2}
"""The axis of members in a batch, and in a stack of batches, that differ between members, and in their outputs."""


@dataclasses.dataclass(frozen=True)
class Members(Strategy):
    """Runs the step of every member of a population in one compiled step, by `jax.vmap` or in a loop over the members.

    The leaves of the state have a leading axis of members, which is divided over the devices. Members never exchange
    anything. `elegy.Population` uses it.

    Args:
        seeds: the seed of each member.
        own_order: True if each member sees the examples in the order of its own seed.
        mesh: the devices; their number divides that of the members.
        batched: True for `jax.vmap`, False for a loop over the members.

    Example:
        >>> Members((0, 1), True, members_mesh(2, jax.devices()[:1])).members
        2
    """

    seeds: tuple[int, ...]
    own_order: bool
    mesh: Mesh
    batched: bool = True

    def __reduce__(self) -> tuple:
        return reduced(self, Jit)

    @property
    def members(self) -> int:
        """The number of members."""
        return len(self.seeds)

    # state

    def _state(self) -> NamedSharding:
        return NamedSharding(self.mesh, PartitionSpec(_AXIS))

    def place_state(self, state: PyTree) -> PyTree:
        """Divides the members over the devices."""
        return jax.device_put(state, self._state())

    def compile_init(self, init: Callable[..., PyTree]) -> InitKernel:
        """Compiles `init(initial, key, batch)` for all members: initial values and keys are stacked."""
        return InitKernel(
            jax.vmap(init, in_axes=(0, 0, None), axis_size=self.members),
            lambda state: jax.tree.map(lambda leaf: self._state(), state),
            put=copied_to,
            place=lambda arguments: arguments,
            options=self._options(once=True),
        )

    def first_key(self, seed: int) -> jax.Array:
        """Returns the keys of all members, stacked, each as a Trainer with that seed makes it."""
        return jnp.stack([jax.random.key(one) for one in self.seeds])

    @property
    def data_seeds(self) -> tuple[int, ...] | None:
        """The seeds, if each member has its own order of the examples."""
        return self.seeds if self.own_order and len(set(self.seeds)) > 1 else None

    @property
    def maps_members(self) -> bool:
        """True."""
        return True

    @property
    def in_turn(self) -> Members:
        """This strategy with a loop over the members."""
        return dataclasses.replace(self, batched=False)

    def for_members(self, tree: PyTree) -> PyTree:
        """Repeats every leaf along a leading axis of members."""
        return jax.tree.map(lambda leaf: jnp.repeat(jnp.asarray(leaf)[None], self.members, 0), tree)

    def one_member(self, state: PyTree) -> PyTree:
        """Returns the state of the first member."""
        return jax.tree.map(lambda leaf: leaf[0], state)

    def each_member(self, function: Callable[[PyTree], PyTree]) -> Callable[[PyTree], PyTree]:
        """Maps a function over the members."""
        return jax.vmap(function)

    # batches

    def local_struct(self, value: PyTree, kind: Kind) -> PyTree:
        """Returns the shapes for one member: every member has the whole batch."""
        structs = jax.tree.map(struct_of, value)
        if kind not in ("state", "small"):
            return structs
        return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape[1:], leaf.dtype), structs)

    def placed_struct(self, value: PyTree, kind: Kind) -> PyTree:
        """Returns the shapes, dtypes and shardings for all members, from those of one member."""
        stacks_batch = kind in _MEMBER_AXIS and self.data_seeds is not None and value is not None
        axis = _MEMBER_AXIS[kind] if stacks_batch else 0 if kind in ("state", "small") else None

        def placed(leaf: Any) -> jax.ShapeDtypeStruct:
            struct, spec = struct_of(leaf), PartitionSpec()
            if axis is not None:
                shape = (*struct.shape[:axis], self.members, *struct.shape[axis:])
                struct, spec = jax.ShapeDtypeStruct(shape, struct.dtype), PartitionSpec(*[None] * axis, _AXIS)
            return jax.ShapeDtypeStruct(struct.shape, struct.dtype, sharding=NamedSharding(self.mesh, spec))

        structs = jax.tree.map(placed, value)
        return PerMember(structs) if stacks_batch else structs

    @property
    def runs_of_lowered(self) -> int:
        """Once for each device; in a loop, which shows the step of one member, once for each member."""
        return self.mesh.size if self.batched else self.members

    def place(self, value: PyTree, kind: Kind) -> PyTree:
        """Starts the transfer to the devices; NumPy arrays of one batch are transferred by the step."""
        left = kind == "batch" or (kind == "chunk" and jax.default_backend() == "cpu")
        if left and all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(value)):
            return value
        return jax.device_put(value, NamedSharding(self.mesh, self._spec(value, kind)))

    def _spec(self, value: PyTree, kind: Kind) -> PartitionSpec:
        if kind in ("state", "small"):
            return PartitionSpec(_AXIS)
        if isinstance(value, PerMember):
            return PartitionSpec(*[None] * _MEMBER_AXIS[kind], _AXIS)
        return PartitionSpec()

    def collect_outputs(self, outputs: PyTree) -> PyTree:
        """Copies the outputs to NumPy: `(rows, members, ...)`."""
        return to_host(outputs)

    # compiling

    @property
    def compiles(self) -> bool:
        """True."""
        return True

    @property
    def donates(self) -> bool:
        """True."""
        return True

    def _options(self, *, once: bool = False) -> dict[str, int]:
        return compiler_options(self.mesh.devices.flat[0].platform, once=once)

    def compile(
        self, step: Callable, args: Sequence[Kind], *, outputs: Kind = "whole", donate: bool = False
    ) -> Callable:
        """Compiles a `vmap` of the step, or a loop, over the members, on several devices within a `shard_map`.

        Outputs of every kind get an axis of members behind that of the rows; what is equal for all rows gets it last.
        """
        kinds = tuple(args)

        def all_members(*given: Any) -> tuple[Any, Any]:
            specs = tuple(self._spec(value, kind) for value, kind in zip(given, kinds, strict=True))
            axes = tuple(list(spec).index(_AXIS) if _AXIS in spec else None for spec in specs)
            values = [value.values if isinstance(value, PerMember) else value for value in given]
            count = self.members // self.mesh.size
            mapped = jax.vmap(step, in_axes=axes, axis_size=count) if self.batched else _loop(step, axes, count)
            if self.mesh.size > 1:
                every = PartitionSpec(_AXIS)
                mapped = shard_map(mapped, mesh=self.mesh, in_specs=specs, out_specs=(every, every), check_vma=False)
            out, state = mapped(*values)
            axis = _MEMBER_AXIS.get(outputs, -1)
            return jax.tree.map(lambda leaf: jnp.moveaxis(leaf, 0, min(axis, leaf.ndim - 1)), out), state

        all_members.__name__ = getattr(step, "__name__", "step")
        return jax.jit(
            all_members,
            donate_argnums=(0,) if donate else (),
            out_shardings=(None, self._state()),
            compiler_options=self._options(),
        )


def _loop(step: Callable, axes: Sequence[int | None], count: int) -> Callable:
    """Returns what `jax.vmap(step, in_axes=axes, axis_size=count)` does, as a loop; axes belong to whole arguments."""

    def all_in_turn(*given: Any) -> Any:
        def one(index: jax.Array) -> Any:
            def of_one(value: PyTree, axis: int | None) -> PyTree:
                if axis is None:
                    return value
                row = functools.partial(jax.lax.dynamic_index_in_dim, index=index, axis=axis, keepdims=False)
                return jax.tree.map(row, value)

            return step(*map(of_one, given, axes))

        return jax.lax.map(one, jnp.arange(count, dtype=jnp.int32))

    return all_in_turn


def members_mesh(count: int, devices: Sequence[Device]) -> Mesh:
    """Returns a mesh of as many devices as divide a number of members.

    Args:
        count: the number of members.
        devices: the devices; the first ones are used.
    """
    size = max(n for n in range(1, len(devices) + 1) if count % n == 0)
    return Mesh(np.array(devices[:size]), (_AXIS,))
