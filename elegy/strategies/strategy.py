"""The base class of strategies."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, Protocol, Self, TypeVar

import jax
import numpy as np

from elegy.strategies.seeds import key_of
from elegy.types import PyTree

M = TypeVar("M")

Kind = Literal["state", "small", "batch", "chunk", "whole"]
"""The kind of an argument of a compiled function: the state, or small leaves of it; one batch (examples on axis 0); a
stack of batches (examples on axis 1); or a value that is equal on every replica."""


class CompiledInit(Protocol):
    """A compiled function that makes the first state."""

    def structure(self, *args: Any) -> PyTree:
        """Returns the shapes and dtypes of the state, from a trace that the call uses, too."""

    def __call__(self, *args: Any) -> PyTree:
        """Makes the state."""


@dataclasses.dataclass(frozen=True)
class Strategy:
    """How a step runs on devices.

    A strategy does not depend on the module. It implements

    1. placing and collecting the state: `place_state`, `collect_state`, `compile_init`;
    2. placing batches and collecting outputs: `place`, `collect_outputs`, `replicas`, `replicated`;
    3. compiling a step: `compile`;
    4. combining the results of replicas inside of the step: `fold_key`, `sum`, `mean`, `combine_metrics`,
       `use_params`.

    The base class runs one replica with the whole batch, without compiling.

    Example:
        >>> Strategy().replicas, Strategy().compiles
        (1, False)
    """

    def __deepcopy__(self, memo: dict) -> Self:
        return self  # a value; devices cannot be copied

    # 1. state

    def place_state(self, state: PyTree) -> PyTree:
        """Places a logical state (as `trainer.state` shows it) for the steps."""
        return state

    def collect_state(self, state: PyTree) -> PyTree:
        """Converts a placed state to the logical state: the inverse of `place_state`.

        Args:
            state: a state as `place_state` or a step returns it.
        """
        return state

    def compile_init(self, init: Callable[..., PyTree]) -> CompiledInit:
        """Wraps `init(key, batch) -> state` so that it is traced once, compiled, and the state it returns is placed.

        Raises:
            NotImplementedError: if the strategy does not compile.
        """
        raise NotImplementedError(f"{type(self).__name__} does not compile, so it calls `init` itself.")

    def first_key(self, seed: int) -> jax.Array:
        """Returns the key with which the first state is made.

        Args:
            seed: the trainer's.
        """
        return key_of(seed)

    @property
    def data_seeds(self) -> tuple[int, ...] | None:
        """The seeds of the members, if each has its own order of the examples; None for one order."""
        return None

    @property
    def maps_members(self) -> bool:
        """True if every output of a step has an axis of members."""
        return False

    @property
    def in_turn(self) -> Strategy:
        """The strategy that runs the members of a population one after another; itself without members."""
        return self

    def for_members(self, tree: PyTree) -> PyTree:
        """Repeats arrays for every member of a population; returns the tree as it is without members."""
        return tree

    def one_member(self, state: PyTree) -> PyTree:
        """Returns the placed state of the first member; the state itself without members."""
        return state

    def each_member(self, function: Callable[[PyTree], PyTree]) -> Callable[[PyTree], PyTree]:
        """Wraps a function of a logical state, so that it is applied to the state of every member of a population."""
        return function

    # 2. batches

    def local_struct(self, value: PyTree, kind: Kind) -> PyTree:
        """Returns the shapes and dtypes of a placed value for one replica.

        Args:
            value: arrays or `jax.ShapeDtypeStruct`, with the global shapes.
            kind: the kind of value.
        """
        return jax.tree.map(struct_of, value)

    def placed_struct(self, value: PyTree, kind: Kind) -> PyTree:
        """Returns the shapes, dtypes and shardings of a value as `place_state` or `place` places it.

        Args:
            value: arrays or `jax.ShapeDtypeStruct`, with the global shapes; for a population, with those of one member.
            kind: the kind of value.
        """
        return jax.tree.map(struct_of, value)

    @property
    def runs_of_lowered(self) -> int:
        """How often the work of a lowered step is done: once for each replica of a `shard_map`."""
        return math.prod(size for _, size in self.axis_env)

    @property
    def members(self) -> int:
        """The number of members of a population, otherwise 1."""
        return 1

    @property
    def axis_env(self) -> tuple[tuple[str, int], ...]:
        """The names and sizes of the axes of the collectives in `sum`, `mean` and `combine_metrics`."""
        return ()

    @property
    def replicas(self) -> int:
        """The number of replicas over which the rows of a batch are divided."""
        return 1

    @property
    def replicated(self) -> Strategy:
        """The fallback for a batch that cannot be divided over the replicas: every replica gets the whole batch.

        It places states as this strategy does.
        """
        return self

    def place(self, value: PyTree, kind: Kind) -> PyTree:
        """Places a batch, a stack of batches, or a value for every replica.

        Args:
            value: the whole value, in every process.
            kind: the kind of value.
        """
        return value

    @property
    def one_device(self) -> bool:
        """True if all arrays of compiled steps are on one device, and `place` returns a batch of NumPy arrays as it is,
        because the step transfers them."""
        return False

    @property
    def processes(self) -> int:
        """The number of processes over which a batch is divided."""
        return 1

    def rows_here(self, rows: int) -> slice:
        """Returns the rows of a batch that this process provides; all rows in a single process.

        Args:
            rows: the number of rows over all processes.
        """
        return slice(0, rows)

    def shares_evenly(self, rows: int) -> bool:
        """True if each process provides an equal part of a batch, in the order of the processes.

        Args:
            rows: the number of rows over all processes.
        """
        return True

    def place_part(self, value: PyTree, kind: Kind, rows: int) -> PyTree:
        """Places a batch, or a stack of batches, of which this process has the rows of `rows_here`.

        Args:
            value: this process's rows.
            kind: `"batch"` or `"chunk"`.
            rows: the number of rows over all processes.
        """
        return self.place(value, kind)

    def collect_outputs(self, outputs: PyTree) -> PyTree:
        """Copies the outputs of a step to the host, with rows in the order of the batch.

        Args:
            outputs: the outputs of a compiled step.
        """
        return jax.device_get(outputs)

    # 3. compiling

    @property
    def compiles(self) -> bool:
        """True if steps are compiled, so that several can run in one execution."""
        return False

    @property
    def donates(self) -> bool:
        """True if a compiled step donates the buffers of the state."""
        return False

    @property
    def max_in_flight(self) -> int | None:
        """The largest number of executions in flight; `None` if the backend limits them."""
        return None

    def compile(
        self, step: Callable, args: Sequence[Kind], *, outputs: Kind = "whole", donate: bool = False
    ) -> Callable:
        """Wraps `step(state, *args)`, whose result is `(outputs, state)`.

        Args:
            step: the function to run; the state it takes and returns is a list of arrays, or any pytree.
            args: the kind of each argument; the first is the part of the state that the step changes, whose shapes
                must not change. If the second is `"small"`, both are lists, and the new state is one list: the leaves
                of the first, then those of the second, which are changed, too, and never donated.
            outputs: the kind of the outputs: `"batch"` if they have one row for each example, `"whole"` if they are
                equal on every replica.
            donate: True to donate the buffers of the first argument.
        """
        return step

    # 4. combining, inside the step

    def fold_key(self, key: jax.Array) -> jax.Array:
        """Returns a different key on each replica.

        Args:
            key: the step's key, equal on all replicas.
        """
        return key

    def use_params(self, params: PyTree) -> PyTree:
        """Converts placed parameters to those for the forward pass of a training step; differentiable.

        Args:
            params: the parameters as `place_state` places them.
        """
        return params

    def sum(self, tree: PyTree) -> PyTree:
        """Sums every leaf over the replicas.

        Args:
            tree: arrays of one replica.
        """
        return tree

    def mean(self, tree: PyTree, weight: jax.Array) -> PyTree:
        """Averages every leaf over the replicas.

        Args:
            tree: arrays of one replica.
            weight: the weight of this replica, a scalar.
        """
        return tree

    def combine_metrics(self, updates: M) -> M:
        """Returns the metrics of one step over all replicas; with one replica, what it is given.

        A strategy with several gathers their metrics on a leading axis, and aggregates each metric over it.

        Args:
            updates: a tuple of metrics (objects with `aggregate`).
        """
        return updates


def struct_of(leaf: Any) -> jax.ShapeDtypeStruct:
    """Returns the shape and the dtype of an array in JAX."""
    return jax.ShapeDtypeStruct(leaf.shape, jax.dtypes.canonicalize_dtype(leaf.dtype, allow_extended_dtype=True))


def to_host(outputs: PyTree) -> PyTree:
    """Copies every array of a tree to NumPy, in one transfer; typed keys stay as they are."""
    leaves, treedef = jax.tree.flatten(outputs)
    keys = {i for i, v in enumerate(leaves) if isinstance(v, jax.Array) and not isinstance(v.dtype, np.dtype)}
    copied = jax.device_get([None if i in keys else leaf for i, leaf in enumerate(leaves)])
    return jax.tree.unflatten(treedef, [leaf if i in keys else np.asarray(copied[i]) for i, leaf in enumerate(leaves)])
