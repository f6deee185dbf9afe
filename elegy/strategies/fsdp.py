"""Fully sharded data parallelism: each device stores a part of the state, and gathers parameters to compute."""

from __future__ import annotations

import dataclasses
import functools
import math
from typing import Any

import jax
from jax.sharding import NamedSharding, PartitionSpec

from elegy.integers import as_integer
from elegy.names import path_name
from elegy.strategies.rules import axes_of, parts
from elegy.strategies.sharded import Sharded
from elegy.types import Array, PyTree

_STATISTICS = "batch_stats/"


@dataclasses.dataclass(frozen=True)
class FSDP(Sharded):
    """Divides parameters and optimizer state over the data axes, along the largest divisible dimension.

    A training step gathers the parameters, computes its part of the gradients, and scatters their sum, so that each
    device updates its own part. The state is initialised in parts, so that no device ever stores all of it. With
    `rules` on a mesh of two axes, parameters are divided by both.

    Args:
        mesh: as for `Sharded`.
        data_axes: as for `Sharded`; they divide the state too.
        rules: as for `Sharded`.
        min_size: arrays with fewer elements are replicated.
        shard_batch_stats: True to divide the batch statistics, too.

    Raises:
        TypeError: as `Sharded`, and if `min_size` is not an integer.
        ValueError: as `Sharded`, and if `min_size` is negative.

    Example:
        >>> strategy = FSDP({"data": 1}, min_size=4)
        >>> strategy.spec("params/kernel", jax.ShapeDtypeStruct((3, 8), "float32"))
        P(None, 'data')
    """

    min_size: int = 1024
    shard_batch_stats: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        size = as_integer(self.min_size)
        if size is None:
            raise TypeError(f"min_size must be an integer, a number of elements, not {self.min_size!r}.")
        if size < 0:
            raise ValueError(f"min_size must not be negative: {size}.")
        object.__setattr__(self, "min_size", size)

    def spec(self, path: str, leaf: Array | jax.ShapeDtypeStruct) -> PartitionSpec:
        """Returns the placement of a leaf: by the rules, and along one more dimension over the data axes."""
        given = super().spec(path, leaf)
        named = axes_of(given)  # a rule may name a data axis
        axes = tuple(axis for axis in self.axes if axis not in named)
        if math.prod(leaf.shape) < self.min_size or not axes:
            return given
        if path.startswith(_STATISTICS) and not self.shard_batch_stats:
            return given
        entries = [*given, *[None] * (len(leaf.shape) - len(given))]
        count = parts(axes, self.mesh)  # type: ignore[arg-type]  # a Mesh once constructed
        free = [d for d, n in enumerate(leaf.shape) if entries[d] is None and n % count == 0 and n >= count]
        if not free:
            return given
        axis, *others = axes
        entries[max(free, key=lambda d: leaf.shape[d])] = axes if others else axis
        return PartitionSpec(*entries)

    def use_params(self, params: PyTree) -> PyTree:
        """Gathers the parameters over the data axes; their gradients are scattered."""

        def use(path: Any, leaf: Any) -> Any:
            name = f"params/{path_name(path)}"
            parted, whole = self.spec(name, leaf), Sharded.spec(self, name, leaf)
            if parted == whole:
                return leaf
            return _gather(NamedSharding(self.mesh, whole), NamedSharding(self.mesh, parted), leaf)  # type: ignore[arg-type]

        return jax.tree_util.tree_map_with_path(use, params)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _gather(whole: NamedSharding, parted: NamedSharding, leaf: jax.Array) -> jax.Array:
    return jax.lax.with_sharding_constraint(leaf, whole)


def _gather_forward(whole: NamedSharding, parted: NamedSharding, leaf: jax.Array) -> tuple[jax.Array, None]:
    return jax.lax.with_sharding_constraint(leaf, whole), None


def _gather_backward(whole: NamedSharding, parted: NamedSharding, residual: None, gradient: jax.Array) -> tuple:
    return (jax.lax.with_sharding_constraint(gradient, parted),)


_gather.defvjp(_gather_forward, _gather_backward)
