"""The base class of strategies over a mesh of devices: places states, batches and outputs."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from elegy.distributed import collect
from elegy.integers import as_integer
from elegy.names import path_name
from elegy.strategies.device_ref import reduced
from elegy.strategies.init import InitKernel, copied_to, reachable
from elegy.strategies.kernel import MeshKernel
from elegy.strategies.local import Jit
from elegy.strategies.strategy import Kind, Strategy, struct_of, to_host
from elegy.strategies.tuning import compiler_options
from elegy.transfers import explicit_transfers
from elegy.types import Array, Device, PyTree

IN_FLIGHT_ON_CPU = 16
"""Executions in flight on several CPU devices: their collectives block threads of one small pool."""


@dataclasses.dataclass(frozen=True)
class MeshStrategy(Strategy):
    """Base class of the strategies over a mesh: steps see the global batch, and the state has its logical shapes.

    A subclass has a `mesh` and `axes`, and returns the placement of each leaf of the state from `spec`. See `Sharded`.
    """

    mesh: Any  # a Mesh once constructed; a subclass may take what makes one

    def __reduce__(self) -> tuple:
        return reduced(self, Jit)

    @property
    def axes(self) -> tuple[str, ...]:
        """The mesh axes over which the rows of a batch are divided."""
        return tuple(self.mesh.axis_names)

    def spec(self, path: str, leaf: Array | jax.ShapeDtypeStruct) -> PartitionSpec:
        """Returns the placement of a leaf of the state; by default it is replicated.

        Args:
            path: the leaf's path in the state, such as `params/Dense_0/kernel`.
            leaf: an array or a `jax.ShapeDtypeStruct`.
        """
        return PartitionSpec()

    def state_shardings(self, state: PyTree) -> PyTree:
        """Returns the sharding of every leaf of a state.

        Args:
            state: arrays or `jax.ShapeDtypeStruct`.
        """
        return jax.tree_util.tree_map_with_path(
            lambda path, leaf: NamedSharding(self.mesh, self.spec(path_name(path), leaf)), state
        )

    def data_sharding(self, shape: tuple[int, ...], kind: Kind) -> NamedSharding:
        """Returns the sharding of a batch's array: rows divided over the data axes, or replicated if not divisible.

        Args:
            shape: the global shape of the array.
            kind: `"batch"` (rows on axis 0) or `"chunk"` (rows on axis 1).
        """
        axis = {"batch": 0, "chunk": 1}.get(kind)
        everywhere, *divided = self._placements
        return everywhere if axis is None or shape[axis] % self._replicas else divided[axis]

    @functools.cached_property
    def _placements(self) -> tuple[NamedSharding, NamedSharding, NamedSharding]:
        """Shardings: replicated, divided along the first axis, along the second. Cached, as every step uses them."""
        specs = PartitionSpec(), PartitionSpec(self.axes), PartitionSpec(None, self.axes)
        whole, first, second = (NamedSharding(self.mesh, spec) for spec in specs)
        return whole, first, second

    def placed_struct(self, value: PyTree, kind: Kind) -> PyTree:
        """Returns the shapes, dtypes and shardings of a placed value."""
        if kind in ("state", "small"):
            shardings = self.state_shardings(value)
        else:
            shardings = jax.tree.map(lambda leaf: self.data_sharding(leaf.shape, kind), value)
        return jax.tree.map(
            lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, struct_of(leaf).dtype, sharding=sharding),
            value,
            shardings,
        )

    @property
    def replicas(self) -> int:
        """The product of the sizes of the data axes."""
        return self._replicas

    @functools.cached_property
    def _replicas(self) -> int:
        return math.prod(self.mesh.shape[axis] for axis in self.axes)

    @property
    def compiles(self) -> bool:
        """Steps are compiled."""
        return True

    @property
    def donates(self) -> bool:
        """The state's buffers are reused."""
        return True

    @property
    def max_in_flight(self) -> int | None:
        """A limit on several CPU devices of one process, otherwise None."""
        return self._max_in_flight

    @functools.cached_property
    def _max_in_flight(self) -> int | None:
        devices = self.mesh.devices.flat
        return IN_FLIGHT_ON_CPU if devices[0].platform == "cpu" and self.mesh.size > 1 else None

    def place_state(self, state: PyTree) -> PyTree:
        """Places every leaf as `spec` says."""
        shardings = self.state_shardings(state)
        if self.mesh.is_multi_process:
            return jax.tree.map(_put_everywhere, state, shardings)
        return jax.device_put(state, shardings)

    def compile_init(self, init: Callable[..., PyTree]) -> InitKernel:
        """Compiles `init` so that every device makes only its own part of the state."""

        def place(arguments: list[Any]) -> list[Any]:
            if spread:
                return self.place(arguments, "whole")
            return [reachable(one, self.data_sharding(np.shape(one), "whole")) for one in arguments]

        spread = self.mesh.is_multi_process
        return InitKernel(
            init,
            self.state_shardings,
            put=_put_everywhere if spread else copied_to,
            place=place,
            options=compiler_options(self.mesh.devices.flat[0].platform, once=True),
        )

    def place(self, value: PyTree, kind: Kind) -> PyTree:
        """Divides rows over the data axes; every device receives all of a value of kind `"whole"`."""
        put = _put_everywhere if self.mesh.is_multi_process else _put_here
        return jax.tree.map(lambda leaf: put(leaf, self.data_sharding(leaf.shape, kind)), value)

    @property
    def processes(self) -> int:
        """The number of processes whose devices are in the mesh."""
        return self._processes

    @functools.cached_property
    def _processes(self) -> int:
        return len({device.process_index for device in self.mesh.devices.flat})

    def rows_here(self, rows: int) -> slice:
        """Returns the rows of this process's devices if each process has an equal part; otherwise all rows."""
        if self.processes == 1 or not self.shares_evenly(rows):
            return slice(0, rows)
        share = rows // self.processes
        return slice(jax.process_index() * share, (jax.process_index() + 1) * share)

    def shares_evenly(self, rows: int) -> bool:
        """True if the rows of each process's devices are an equal part, in the order of the processes."""
        count = self.processes
        if rows % count:
            return False
        parts: dict[int, set[tuple[int, int]]] = {}
        placed: Mapping[Any, Any] = self.data_sharding((rows,), "batch").devices_indices_map((rows,))
        for device, index in placed.items():
            parts.setdefault(device.process_index, set()).add(index[0].indices(rows)[:2])
        share = rows // count
        # If all processes have an equal part, the mesh has devices of all of them.
        return all(
            sum(b - a for a, b in parts.get(i, ())) == share
            and all(i * share <= a and b <= (i + 1) * share for a, b in parts[i])
            for i in range(count)
        )

    def place_part(self, value: PyTree, kind: Kind, rows: int) -> PyTree:
        """Joins the parts of all processes into one global batch."""
        axis = 1 if kind == "chunk" else 0

        def put(leaf: Any) -> jax.Array:
            shape = (*leaf.shape[:axis], rows, *leaf.shape[axis + 1 :])
            return jax.make_array_from_process_local_data(self.data_sharding(shape, kind), np.asarray(leaf), shape)

        return jax.tree.map(put, value) if self.processes > 1 else self.place(value, kind)

    def collect_outputs(self, outputs: PyTree) -> PyTree:
        """Copies the outputs to NumPy; every process receives all of them."""
        return to_host(collect(outputs))

    def compile(
        self, step: Callable, args: Sequence[Kind], *, outputs: Kind = "whole", donate: bool = False
    ) -> Callable:
        """Compiles with `jax.jit`; the new state has the shardings of the old one."""
        return MeshKernel(self, step, tuple(args), outputs, donate)


def as_mesh(given: Mesh | Mapping[str, int] | None, default: str) -> Mesh:
    """Converts the argument of a user to a mesh.

    Args:
        given: a `jax.sharding.Mesh`; a dict of axis names and sizes, of which one may be -1 for all remaining devices;
            or `None` for all devices on one axis.
        default: the name of that axis.

    Raises:
        TypeError: if `given` is anything else.
        ValueError: if there are too few devices, their number is not divisible by the sizes, or a process has none of
            them.

    Example:
        >>> dict(as_mesh({"data": 1}, "data").shape)
        {'data': 1}
    """
    if isinstance(given, Mesh):
        check_reaches(given.devices.flat, f"the mesh {dict(given.shape)}")
        # With axes of type Auto the partitioner chooses shardings in user code, which does not know the mesh.
        return Mesh(given.devices, given.axis_names)
    if given is None:
        given = {default: -1}
    if not isinstance(given, Mapping):
        raise TypeError(
            f"the mesh must be a jax.sharding.Mesh or a dict of axis sizes such as {{'data': 4, 'model': 2}}, "
            f"not {given!r}."
        )
    devices = jax.devices()
    sizes = [size for size in map(as_integer, given.values()) if size is not None and (size > 0 or size == -1)]
    if not sizes or len(sizes) < len(given):
        raise ValueError(f"the sizes of a mesh must be positive integers, or -1 for the rest: {dict(given)}.")
    if sizes.count(-1) > 1:
        raise ValueError(f"only one axis of a mesh may have the size -1: {dict(given)}.")
    known = math.prod(s for s in sizes if s != -1)
    if -1 in sizes:
        if len(devices) % known:
            raise ValueError(
                f"the mesh {dict(given)} does not fit the devices: {len(devices)} devices cannot be divided by {known}."
            )
        sizes[sizes.index(-1)] = len(devices) // known
    need = math.prod(sizes)
    check_enough(need, f"the mesh {dict(given)}")
    check_reaches(devices[:need], f"the mesh {dict(given)}", counted=True)
    auto = (AxisType.Auto,) * len(sizes)
    return jax.make_mesh(tuple(sizes), tuple(given), axis_types=auto, devices=devices[:need])


def as_devices(given: Any, available: Sequence[Device], what: str) -> tuple[Device, ...]:
    """Converts the argument `devices` of a user to devices.

    Args:
        given: a number, for the first of the available devices; a list of devices; or None for all available ones.
        available: the devices to choose from.
        what: the name of what takes the argument, for messages.

    Raises:
        TypeError: if `given` is anything else.
        ValueError: if there are fewer devices, none is given, or one is given twice.

    Example:
        >>> as_devices(1, jax.devices(), "Population") == (jax.devices()[0],)
        True
    """
    count = as_integer(given)
    if count is not None:
        if count < 1:
            raise ValueError(f"devices={count}: {what} needs at least one device.")
        check_enough(count, f"{what}(devices={count})", len(available))
        return tuple(available[:count])
    chosen = available if given is None else given
    if not isinstance(chosen, (list, tuple, np.ndarray)) or not all(isinstance(one, jax.Device) for one in chosen):
        raise TypeError(f"devices must be a number or a list of JAX devices, not {given!r}.")
    if not len(chosen) or len(set(chosen)) < len(chosen):
        raise ValueError(f"devices must name at least one device, and each once: {given!r}.")
    return tuple(chosen)


def check_enough(need: int, what: str, have: int | None = None) -> None:
    """Checks that there are `need` devices.

    Args:
        need: the number of devices.
        what: the name of what needs them, for messages.
        have: the number of devices that there are; None for those of all processes.

    Raises:
        ValueError: if there are fewer; the message says how many.
    """
    have = jax.device_count() if have is None else have
    if need > have:
        raise ValueError(
            f"{what} needs {need} devices, but there {'is 1' if have == 1 else f'are {have}'} "
            f"({jax.default_backend()}). On the CPU, `jax.config.update('jax_num_cpu_devices', {need})` before the "
            "first use of JAX makes more."
        )


def check_reaches(devices: Iterable[Device], what: str, *, counted: bool = False) -> None:
    """Checks that the processes that use a mesh have devices in it.

    Args:
        devices: the devices of the mesh.
        what: the name of the mesh in messages.
        counted: True if the user gave only a number of devices; otherwise a process may use its own devices alone.

    Raises:
        ValueError: if a process has none; the message names it.
    """
    have = {device.process_index for device in devices}
    need = range(jax.process_count()) if counted else [jax.process_index()]
    missing = [process for process in need if process not in have]
    if missing:
        raise ValueError(
            f"{what} has no device of process {missing[0]}, but every process runs the step: there are "
            f"{jax.device_count()} devices in {jax.process_count()} processes. Use devices of all of them, or give "
            "each process devices of its own, `jax.local_devices()`."
        )


def _put_here(leaf: Any, sharding: NamedSharding) -> Any:
    return _from_host(leaf, sharding) if isinstance(leaf, np.ndarray) else jax.device_put(leaf, sharding)


def _put_everywhere(leaf: Any, sharding: NamedSharding) -> Any:
    """Places a value that every process has; JAX moves arrays that are on these devices already."""
    if isinstance(leaf, jax.Array) and not leaf.is_fully_addressable:
        lies = leaf.sharding
        if isinstance(lies, NamedSharding) and _devices(lies) == _devices(sharding):
            return jax.jit(lambda array: array, out_shardings=sharding)(leaf)
        leaf = collect(leaf)
    if isinstance(leaf, jax.Array) and jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        data = _put_everywhere(jax.random.key_data(leaf), NamedSharding(sharding.mesh, PartitionSpec()))
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))
    return _from_host(np.asarray(leaf), sharding)


def _devices(sharding: NamedSharding) -> list[Device]:
    mesh = sharding.mesh
    assert isinstance(mesh, Mesh)  # not an AbstractMesh: the sharding is that of an array
    return [*mesh.devices.flat]


def _from_host(host: np.ndarray, sharding: NamedSharding) -> jax.Array:
    """Does the same as `jax.device_put` in half the time, because every step places a batch."""
    host = host.astype(jax.dtypes.canonicalize_dtype(host.dtype), copy=False)
    with explicit_transfers():
        return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])
