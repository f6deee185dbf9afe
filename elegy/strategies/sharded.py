"""One program over a mesh, which XLA's partitioner divides."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping

import jax
from jax.sharding import Mesh, PartitionSpec

from elegy.strategies.mesh import MeshStrategy, as_mesh
from elegy.strategies.rules import Placement, as_rules, axes_of, check_axes, check_used, spec_for
from elegy.types import Array, PyTree


@dataclasses.dataclass(frozen=True)
class Sharded(MeshStrategy):
    """Compiles the step for a mesh of devices as one program that sees the whole batch.

    The rows of a batch are divided over the data axes. The state is replicated, or divided by `rules` (tensor
    parallelism). Values and randomness are those of one device, including batch normalisation.

    The pattern of a rule is matched, as by `fnmatch`, with a leaf's path (`params/Dense_0/kernel`) or the end of it;
    the first match is used. The optimizer's state is divided as the parameters are.

    Args:
        mesh: a `jax.sharding.Mesh`, or a dict of axis names and sizes such as `{"data": 4, "model": 2}`; by default all
            devices on the axis `"data"`.
        data_axes: the axes that divide the rows of a batch; by default those that no rule names.
        rules: patterns of paths with an axis name or `None` for each dimension.

    Raises:
        TypeError: if mesh or rules have the wrong type.
        ValueError: if the mesh does not fit the devices, or an axis does not exist; when a state is placed, if a rule
            matches no parameter, or does not fit one.

    Example:
        >>> strategy = Sharded({"data": 1, "model": 1}, rules={"*/kernel": (None, "model")})
        >>> strategy.data_axes, strategy.replicas
        (('data',), 1)
    """

    mesh: Mesh | Mapping[str, int] | None = None
    data_axes: tuple[str, ...] | str | None = None
    rules: Mapping[str, Placement] | Iterable[tuple[str, Placement]] = ()

    def __post_init__(self) -> None:
        mesh, rules = as_mesh(self.mesh, "data"), as_rules(self.rules)
        check_axes(rules, mesh)
        axes = self.data_axes
        if axes is None:
            named = {axis for _, spec in rules for axis in axes_of(spec)}
            axes = tuple(axis for axis in mesh.axis_names if axis not in named)
        axes = (axes,) if isinstance(axes, str) else tuple(axes)
        for axis in axes:
            if axis not in mesh.axis_names:
                raise ValueError(
                    f"data_axes={axes!r}: the mesh axis {axis!r} does not exist. "
                    f"The mesh has the axes {', '.join(map(repr, mesh.axis_names))}."
                )
            if axes.count(axis) > 1:
                raise ValueError(f"data_axes={axes!r} names the mesh axis {axis!r} twice.")
        for name, value in (("mesh", mesh), ("data_axes", axes), ("rules", rules)):
            object.__setattr__(self, name, value)

    @property
    def axes(self) -> tuple[str, ...]:
        """The data axes."""
        return self.data_axes  # type: ignore[return-value]  # a tuple once constructed

    def spec(self, path: str, leaf: Array | jax.ShapeDtypeStruct) -> PartitionSpec:
        """Returns the placement of a leaf of the state, by the rules."""
        return spec_for(self.rules, path, leaf.shape, self.mesh)  # type: ignore[arg-type]  # rules once constructed

    def state_shardings(self, state: PyTree) -> PyTree:
        """Returns the sharding of every leaf of a state; every rule must match a parameter."""
        check_used(self.rules, state)  # type: ignore[arg-type]
        return super().state_shardings(state)
