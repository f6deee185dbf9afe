"""What a strategy is: four questions, answered without knowing any module."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, Literal, Self, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from elegy.types import PyTree

M = TypeVar("M")

Kind = Literal["state", "batch", "chunk", "whole"]
"""What an argument of a compiled function is: the state; one batch (examples on axis 0); a stack of batches
(examples on axis 1); or a value that is the same on every replica."""


@dataclasses.dataclass(frozen=True)
class Strategy:
    """How a step runs on devices.

    A strategy answers four questions and knows no module:

    1. how the state is placed and collected: `place_state`, `collect_state`, `compile_init`;
    2. how a batch is placed and outputs are collected: `place`, `collect_outputs`, `replicas`, `replicated`;
    3. how a step is wrapped: `compile`;
    4. how what the replicas computed is combined, inside the step: `fold_key`, `sum`, `mean`, `combine_metrics`,
       `use_params`.

    The base class is the answer for one replica that sees the whole batch; nothing is compiled.
    """

    def __deepcopy__(self, memo: dict) -> Self:
        return self  # a value; devices cannot be copied

    # 1. state

    def place_state(self, state: PyTree) -> PyTree:
        """Puts a logical state (as `trainer.state` shows it) where the steps want it."""
        return state

    def collect_state(self, state: PyTree) -> PyTree:
        """The inverse of `place_state`."""
        return state

    def compile_init(self, init: Callable[..., PyTree]) -> Callable[..., PyTree]:
        """Wraps `init(key, batch) -> state` so that the state it returns is placed."""
        return init

    # 2. batches

    def local_struct(self, value: PyTree, kind: Kind) -> PyTree:
        """The shapes and dtypes of a placed value, as the step of one replica sees it."""
        return jax.tree.map(struct_of, value)

    @property
    def axis_env(self) -> tuple[tuple[str, int], ...]:
        """The names and sizes of the axes that the combining methods refer to."""
        return ()

    @property
    def replicas(self) -> int:
        """Over how many replicas the rows of a batch are divided."""
        return 1

    @property
    def replicated(self) -> Strategy:
        """The fallback for a batch that cannot be divided over the replicas: every replica gets the whole batch.

        It places states as this strategy does.
        """
        return self

    def place(self, value: PyTree, kind: Kind) -> PyTree:
        """Puts a batch, a stack of batches, or a value for every replica where the steps want it.

        Args:
            value: the whole of it, in every process.
            kind: what it is.
        """
        return value

    @property
    def processes(self) -> int:
        """How many processes share one batch."""
        return 1

    def rows_here(self, rows: int) -> slice:
        """Which rows of a batch of `rows` rows this process has to provide; all of them in a single process."""
        return slice(0, rows)

    def shares_evenly(self, rows: int) -> bool:
        """True if each process provides an equal part of `rows` rows, in the order of the processes."""
        return True

    def place_part(self, value: PyTree, kind: Kind, rows: int) -> PyTree:
        """Puts a batch, or a stack of them, of which this process holds the rows that `rows_here` tells.

        Args:
            value: this process's rows.
            kind: `"batch"` or `"chunk"`.
            rows: the number of rows over all processes.
        """
        return self.place(value, kind)

    def collect_outputs(self, outputs: PyTree) -> PyTree:
        """Brings the outputs of a step to the host, rows in the order of the batch's."""
        return jax.device_get(outputs)

    # 3. compiling

    @property
    def compiles(self) -> bool:
        """True if steps are compiled, so that several can run in one execution."""
        return False

    @property
    def donates(self) -> bool:
        """True if a compiled step consumes the buffers of the state it is given."""
        return False

    @property
    def max_in_flight(self) -> int | None:
        """How many executions may wait for the devices; `None` where the backend bounds them itself."""
        return None

    def compile(
        self, step: Callable, args: Sequence[Kind], *, outputs: Kind = "whole", donate: bool = False
    ) -> Callable:
        """Wraps `step(state, *args)`, whose result is `(outputs, state)`.

        Args:
            step: the function to run; the state it takes and returns is a list of arrays, or any pytree.
            args: the kind of each argument; the first is the part of the state that the step changes, and comes
                back with the same shapes.
            outputs: the kind of the outputs: `"batch"` where they have one row an example, `"whole"` where they are
                the same on every replica.
            donate: whether the buffers of that part may be reused for the new one.
        """
        return step

    # 4. combining, inside the step

    def fold_key(self, key: jax.Array) -> jax.Array:
        """Gives each replica a random stream of its own."""
        return key

    def use_params(self, params: PyTree) -> PyTree:
        """The parameters as a training step computes with them, from how they are placed; gradients flow through."""
        return params

    def sum(self, tree: PyTree) -> PyTree:
        """Sums every leaf over the replicas."""
        return tree

    def mean(self, tree: PyTree, weight: jax.Array) -> PyTree:
        """Averages every leaf over the replicas, each weighted by its scalar `weight`."""
        return tree

    def combine_metrics(self, updates: M) -> M:
        """Gathers the metric updates of the replicas on a leading axis and aggregates each metric over it.

        Args:
            updates: a tuple of metrics (objects with `aggregate`).
        """
        stacked = jax.tree.map(lambda leaf: jnp.expand_dims(leaf, 0), updates)
        return tuple(metric.aggregate() for metric in stacked)  # type: ignore[attr-defined, return-value]


def struct_of(leaf: Any) -> jax.ShapeDtypeStruct:
    """The shape and the dtype that JAX gives an array."""
    return jax.ShapeDtypeStruct(leaf.shape, jax.dtypes.canonicalize_dtype(leaf.dtype, allow_extended_dtype=True))


def to_host(outputs: PyTree) -> PyTree:
    """Copies every array of a tree to NumPy, in one transfer; typed keys stay as they are."""
    leaves, treedef = jax.tree.flatten(outputs)
    arrays = [isinstance(v, jax.Array) and isinstance(v.dtype, np.dtype) for v in leaves]
    for leaf, array in zip(leaves, arrays, strict=True):
        if array:
            leaf.copy_to_host_async()
    typed = [isinstance(v, jax.Array) and not array for v, array in zip(leaves, arrays, strict=True)]
    return jax.tree.unflatten(treedef, [v if key else np.asarray(v) for v, key in zip(leaves, typed, strict=True)])
