"""Stores the device state between steps, and decides which buffers to copy before donation."""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np

from elegy.distributed import collect
from elegy.engine.keys import key_impls, unwrap_keys, wrap_keys
from elegy.engine.packed_sums import PackedSums
from elegy.names import path_name
from elegy.strategies import Strategy

_VERSIONS = itertools.count()


class StateBuffer:
    """Stores a state in its logical form, as the strategy places it, or both.

    A compiled step donates the buffers of the state. Buffers that a user or a callback also refers to must stay valid:
    `take` copies these before they are donated. A loop whose state nobody reads copies nothing.

    Several threads may read the state while one of them runs steps: data that is read ahead may use the trainer.

    Args:
        strategy: how a state is placed.
        state: the logical state.

    Attributes:
        cls: the class of the state.
        lock: held from `take` to `put`, and by the methods that read or replace the state. Forks have the same one:
            programs with collectives must reach all devices in one order, whichever threads they come from.
        version: identifies the structure; forks have the same.
        fresh: True if the state is a first state, which its making has reset, and nothing has changed it.
    """

    def __init__(self, strategy: Strategy, state: Any):
        self.strategy = strategy
        self.lock = threading.RLock()
        self._logical: Any = state
        self.cls: type[Any] = type(state)
        self._leaves: list[Any] | None = None
        self._treedef: Any = None
        self._impls: dict[int, Any] = {}  # the generators of the random keys, which are stored as raw arrays
        self._struct: Any = None
        self._owned: set[int] = set()  # positions of the placed leaves without other references
        # The last arguments of `put`, not in `_leaves` yet.
        self._moved: tuple[Sequence[int], list[Any], PackedSums | None] | None = None
        self.version = next(_VERSIONS)
        self.fresh = False
        self._make: Callable[[], Any] | None = None

    @classmethod
    def planned(
        cls, strategy: Strategy, module: Any, struct: Any, make: Callable[[], Any] | None = None, *, fresh: bool = False
    ) -> Self:
        """Makes a buffer of known structure, whose placed state is computed on first use, as `fresh` if so.

        Without `make` it has no state, and is there for tracing.
        """
        buffer = cls(strategy, module)
        buffer._logical, buffer._struct, buffer._make, buffer.fresh = None, struct, make, fresh
        return buffer

    def readable(self) -> bool:
        """True if no placed leaf was donated."""
        with self.lock:
            self._settle()
            return not any(isinstance(leaf, jax.Array) and leaf.is_deleted() for leaf in self._leaves or ())

    def _check_readable(self) -> None:
        if not self.readable():
            raise RuntimeError(
                "the state is lost: a compiled step failed after it had consumed the buffers of the state. "
                "Assign `trainer.state` a state that you kept, or make a new Trainer and restore a checkpoint."
            )

    def discard_failed(self) -> None:
        """Waits for the placed leaves and deletes those whose computation failed; then the state counts as lost."""
        self._settle()
        for leaf in self._leaves or ():
            if isinstance(leaf, jax.Array) and not leaf.is_deleted():
                try:
                    leaf.block_until_ready()
                except jax.errors.JaxRuntimeError:
                    leaf.delete()

    def materialise(self) -> None:
        """Computes the state of a `planned` buffer."""
        with self.lock:  # another thread waits until the state is there
            if self._make is not None:
                make, self._make = self._make, None
                struct, version, fresh = self._struct, self.version, self.fresh
                self.put_state(make())
                self._struct, self.version, self.fresh = struct, version, fresh

    def get(self) -> Any:
        """Returns the logical state, which stays valid."""
        with self.lock:
            self.materialise()
            if self._logical is None:
                assert self._leaves is not None
                self._check_readable()
                self._owned = set()
                self._logical = self.strategy.collect_state(self.placed())
            return self._logical

    def set(self, state: Any) -> None:
        """Replaces the state by one that the caller may keep."""
        with self.lock:
            self._logical, self._leaves, self._treedef, self._struct = state, None, None, None
            self._moved, self._owned, self.fresh = None, set(), False
            self.cls = type(state)
            self.version = next(_VERSIONS)

    def peek(self) -> list[Any]:
        """Returns the placed leaves, with raw arrays for keys; the caller must not donate them."""
        self.materialise()
        if self._leaves is None:
            placed = self.strategy.place_state(strong(self._logical))
            self._hold(placed)
            self._owned = set()
        self._settle()
        assert self._leaves is not None
        return self._leaves

    def _hold(self, placed: Any) -> None:
        self._moved = None
        leaves, self._treedef = jax.tree.flatten(placed)
        self._impls = key_impls(leaves)
        self._leaves = unwrap_keys(leaves, self._impls)

    def placed(self) -> Any:
        """Returns the placed state; the caller must not donate it."""
        with self.lock:
            leaves = list(self.peek())
        return jax.tree.unflatten(self._treedef, wrap_keys(leaves, self._impls))

    def one_replica(self) -> Any:
        """Returns the placed state of one member; of a state without members, the placed state."""
        return self.strategy.one_member(self.placed())

    def pick(self, positions: Sequence[int]) -> list[Any]:
        """Returns the placed leaves at `positions`; the caller must not donate them."""
        if not positions:
            return []
        leaves = self.peek()
        return [leaves[i] for i in positions]

    def take(self, positions: Sequence[int], donated: int, packed: PackedSums | None = None) -> list[Any]:
        """Returns the placed leaves at `positions`, the first `donated` of them to be donated; `put` must follow.

        Args:
            positions: the positions.
            donated: how many of the leaves are donated.
            packed: packs the others into one array, the last of the list; None to leave them as they are.
        """
        moved = self._moved
        if moved is not None and moved[0] is positions and moved[2] is packed:  # the same positions in every step
            return moved[1]
        leaves, owned = self.pick(positions), self._owned
        taken = zip(positions[:donated], leaves[:donated], strict=True)
        rest = leaves[donated:] if packed is None else [packed.pack(leaves[donated:])]
        return [*(leaf if i in owned else _copy(leaf) for i, leaf in taken), *rest]

    def put(self, positions: Sequence[int], leaves: list[Any], packed: PackedSums | None = None) -> None:
        """Replaces the leaves at `positions` by leaves without other references.

        Args:
            positions: the positions.
            leaves: the leaves.
            packed: as for `take`.
        """
        assert self._leaves is not None
        if self._moved is None or self._moved[0] is not positions:
            self._settle()
            self._owned.update(positions)
            for i in positions:
                self._leaves[i] = None  # free the buffer
        self._moved = positions, leaves, packed
        self._logical, self.fresh = None, False

    def _settle(self) -> None:
        """Stores the last arguments of `put` in `_leaves`."""
        if self._moved is not None and self._leaves is not None:
            positions, leaves, packed = self._moved
            if packed is not None:
                leaves = [*leaves[:-1], *packed.unpack(leaves[-1])]
            for i, leaf in zip(positions, leaves, strict=True):
                self._leaves[i] = leaf
        self._moved = None

    def put_state(self, placed: Any) -> None:
        """Replaces the state by a placed one without other references."""
        self._hold(placed)
        assert self._leaves is not None
        self._logical, self._struct, self._owned = None, None, set(range(len(self._leaves)))
        self.fresh = False
        self.cls = type(placed)
        self.version = next(_VERSIONS)

    def extend(self, extension: Callable[[Any], Any]) -> None:
        """Adds leaves to the placed state."""
        placed, owned = self.placed(), self._owned
        whole = len(owned) == len(jax.tree.leaves(placed))
        self.put_state(extension(placed))
        if not whole:  # positions have moved
            self._owned = set()

    def moved(self, strategy: Strategy, *, place: bool) -> Self:
        """Returns a buffer with the same state for another strategy, which places it now or on first use."""
        state = self.get()
        if place:
            # A strategy of one process cannot read arrays on devices of other processes.
            state = strategy.place_state(state if strategy.processes > 1 else collect(state))
        return type(self)(strategy, state)

    def fork(self) -> Self:
        """Returns another buffer with the same state; steps on one do not change the other."""
        with self.lock:
            self.materialise()
            self._check_readable()
            other = type(self)(self.strategy, self._logical)
            other.lock = self.lock
            if self._leaves is not None:
                other._leaves, other._treedef, other._struct = list(self._leaves), self._treedef, self._struct
                other._impls = self._impls
            other.cls, other.version, other.fresh = self.cls, self.version, self.fresh
            return other

    @contextlib.contextmanager
    def shared(self) -> Iterator[Self]:
        """Gives a fork that may be read while this buffer runs steps, until the end of the block.

        Until then, this buffer copies the leaves of the fork before it donates them.
        """
        with self.lock:
            fork, owned = self.fork(), self._owned
            self._owned = since = set[int]()
        try:
            yield fork
        finally:
            with self.lock:
                if self._owned is since and not since:  # no step has run meanwhile
                    self._owned = owned

    @property
    def form(self) -> Any:
        """The logical state if it exists, otherwise its structure; to read fields, not values."""
        logical = self._logical  # another thread may drop it
        return self.struct if logical is None else logical

    @property
    def struct(self) -> Any:
        """The state's structure, shapes and dtypes on one replica."""
        with self.lock:
            if self._struct is None:
                self._struct = self.strategy.local_struct(self.placed(), "state")
            return self._struct


def _copy(leaf: Any) -> Any:
    return jax.device_put(leaf, leaf.sharding, may_alias=False)


def strong(state: Any) -> Any:
    """Converts every leaf of a state to an array without weak type, so that later steps use the same executable.

    Raises:
        TypeError: if a leaf is not an array or a number; the message names its path.
    """

    def convert(path: Any, leaf: Any) -> Any:
        if isinstance(leaf, jax.Array):
            return leaf if not getattr(leaf, "weak_type", False) else jax.lax.convert_element_type(leaf, leaf.dtype)
        if isinstance(leaf, (np.ndarray, np.generic, bool, int, float, complex)):
            array = jnp.asarray(leaf)
            return jax.lax.convert_element_type(array, array.dtype)
        raise TypeError(
            f"the leaf {path_name(path)} of {type(state).__name__} is a {type(leaf).__name__} ({leaf!r:.80}), but the "
            "leaves of a state are arrays and numbers. Declare a constant with `elegy.static_field()`."
        )

    return jax.tree_util.tree_map_with_path(convert, state)
