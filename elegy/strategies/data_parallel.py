"""Data parallelism: a replica of the state on each device, which computes a part of the batch."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import shard_map
from jax.sharding import Mesh, PartitionSpec

from elegy.strategies.kernel import MeshKernel
from elegy.strategies.mesh import MeshStrategy, as_devices, check_reaches
from elegy.strategies.packing import SMALL, packed
from elegy.strategies.sharded import Sharded
from elegy.strategies.strategy import Kind, M, Strategy, struct_of
from elegy.types import Device, PyTree


@dataclasses.dataclass(frozen=True)
class DataParallel(MeshStrategy):
    """Runs the step on each device with a part of the batch, and combines the results of the replicas.

    The step of a replica sees only its own rows: batch normalisation uses their statistics, and each replica has its
    own random key, folded from the step's key. The denominators of losses are summed over replicas before
    differentiation, then the gradients; batch statistics are averaged by examples; metric updates are gathered and
    aggregated.

    If the rows of a batch cannot be divided over the devices and cannot be padded, every device gets the whole batch,
    as under `"sharded"`.

    It works like `jax.pmap`, but calls `jit` and `shard_map` directly, because `pmap` adds Python work to every call
    and an axis of devices to every array.

    Args:
        devices: the devices, or their number; by default all.
        axis_name: the name of the axis of replicas.

    Raises:
        TypeError: if `devices` is neither a number nor a list of devices.
        ValueError: if there are fewer devices, a device is given twice, or a process has none of them.

    Example:
        >>> strategy = DataParallel(devices=1)
        >>> strategy.replicas, strategy.axis_env
        (1, (('device', 1),))
    """

    devices: Sequence[Device] | int | None = dataclasses.field(default=None, kw_only=False)
    axis_name: str = "device"
    mesh: Mesh = dataclasses.field(init=False, repr=False)

    def __init__(self, devices: Sequence[Device] | int | None = None, axis_name: str = "device"):
        chosen = as_devices(devices, jax.devices(), "DataParallel")
        check_reaches(chosen, f"DataParallel(devices={devices!r})", counted=isinstance(devices, int))
        object.__setattr__(self, "devices", chosen)
        object.__setattr__(self, "axis_name", axis_name)
        object.__setattr__(self, "mesh", Mesh(chosen, (axis_name,)))

    def local_struct(self, value: PyTree, kind: Kind) -> PyTree:
        """Returns the shapes for one replica: for a batch, its part of the rows."""
        if kind != "batch":
            return jax.tree.map(struct_of, value)

        def share(leaf: Any) -> jax.ShapeDtypeStruct:
            struct = struct_of(leaf)
            return jax.ShapeDtypeStruct((struct.shape[0] // self.replicas, *struct.shape[1:]), struct.dtype)

        return jax.tree.map(share, value)

    @property
    def axis_env(self) -> tuple[tuple[str, int], ...]:
        """The axis of replicas."""
        return ((self.axis_name, self.replicas),)

    @property
    def replicated(self) -> Strategy:
        """`Sharded` over the same devices."""
        return Sharded(self.mesh)

    def compile(
        self, step: Callable, args: Sequence[Kind], *, outputs: Kind = "whole", donate: bool = False
    ) -> Callable:
        """Compiles a `shard_map` of the step with `jax.jit`."""
        whole = PartitionSpec()
        specs = {"batch": PartitionSpec(self.axis_name), "chunk": PartitionSpec(None, self.axis_name)}
        mapped = shard_map(
            step,
            mesh=self.mesh,
            in_specs=tuple(specs.get(kind, whole) for kind in args),
            out_specs=(specs.get(outputs, whole), whole),
            check_vma=False,
        )
        return MeshKernel(self, mapped, tuple(args), outputs, donate)

    def fold_key(self, key: jax.Array) -> jax.Array:
        """Folds the replica's number into the key."""
        return jax.random.fold_in(key, jax.lax.axis_index(self.axis_name))

    def sum(self, tree: PyTree) -> PyTree:
        """Sums every leaf over the replicas."""
        if self.replicas == 1:
            return tree  # XLA would copy every gradient
        return packed(lambda leaves: jax.lax.psum(leaves, self.axis_name), tree)

    def mean(self, tree: PyTree, weight: jax.Array) -> PyTree:
        """Averages floating leaves over the replicas, weighted; other leaves must be equal on all replicas."""
        leaves, treedef = jax.tree.flatten(tree)
        floats = [i for i, leaf in enumerate(leaves) if jnp.issubdtype(jnp.result_type(leaf), jnp.inexact)]
        # 16 bits are not enough for sums over many examples.
        wide = [leaves[i].astype(jnp.promote_types(leaves[i].dtype, jnp.float32)) for i in floats]
        *sums, total = self.sum([*((leaf * weight).astype(leaf.dtype) for leaf in wide), weight])
        for i, leaf in zip(floats, sums, strict=True):
            mean = leaf / jnp.where(total > 0, total, 1.0)
            leaves[i] = jnp.where(total > 0, mean, leaves[i]).astype(leaves[i].dtype)
        return jax.tree.unflatten(treedef, leaves)

    def combine_metrics(self, updates: M) -> M:
        """Gathers the updates of the replicas on a leading axis, and aggregates each metric over it."""
        if self.replicas == 1:
            return super().combine_metrics(updates)
        gathered = packed(lambda leaves: [self._gather(leaf) for leaf in leaves], updates, gathers=True)
        return tuple(metric.aggregate() for metric in gathered)  # type: ignore[attr-defined, return-value]

    def _gather(self, leaf: jax.Array) -> jax.Array:
        """Stacks the arrays of the replicas; small ones by a sum, which XLA combines with the sum of gradients."""
        if leaf.size > SMALL or leaf.dtype == bool:
            return jax.lax.all_gather(leaf, self.axis_name)
        rows = jnp.zeros((self.replicas, *leaf.shape), leaf.dtype)
        return jax.lax.psum(rows.at[jax.lax.axis_index(self.axis_name)].set(leaf), self.axis_name)
