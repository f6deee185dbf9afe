"""Copies of in-memory arrays on the devices, which later passes over the same arrays use again."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import os
import weakref
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np

from elegy.data.aligned import aligned_empty
from elegy.strategies import Strategy
from elegy.types import PyTree

_PART = 4 * 2**20
"""Bytes that one thread hashes at a time."""

_THREADS = 8
"""The largest number of threads that hash an array."""


@dataclasses.dataclass(frozen=True)
class _Copy:
    """A copy on the devices.

    Args:
        owner: a weak reference to the array that owns the memory; its death removes the copy.
        digest: the digest of the bytes that were copied; None for a JAX array, which cannot change.
        placed: the copy.
        nbytes: the size of the array.
    """

    owner: weakref.ref
    digest: bytes | None
    placed: Any
    nbytes: int


class DeviceCopies:
    """Places arrays on the devices of one strategy, and finds the copies of arrays that it has placed before.

    An array is the same if it has the same memory, shape and dtype as before. A JAX array cannot change. A NumPy array
    can, so its copy is used only if a SHA-256 digest of all bytes is still the same. The digest takes less time than a
    transfer to an accelerator, and more than a copy in the memory of the host, so NumPy arrays are always copied again
    if `digests` is False.

    Copies are deleted with the arrays, with this object, and, oldest first, above `most` bytes.

    Args:
        most: the largest number of bytes to keep after a call; arrays in use by a loader are not counted.
        digests: True to find NumPy arrays again; None for True unless the default backend is the CPU.

    Example:
        >>> import numpy as np
        >>> from elegy.strategies import Jit
        >>> copies, x = DeviceCopies(2**20, digests=True), np.arange(4)
        >>> copies.place(x, Jit()) is copies.place(x, Jit())
        True
        >>> x[0] = 9
        >>> copies.place(x, Jit()).tolist()
        [9, 1, 2, 3]
    """

    def __init__(self, most: int, digests: bool | None = None):
        self.most = most
        self.digests = jax.default_backend() != "cpu" if digests is None else digests
        self._copies: dict[Any, _Copy] = {}  # the least recently used first

    @property
    def nbytes(self) -> int:
        """The size of the arrays that have a copy."""
        return sum(copy.nbytes for copy in self._copies.values())

    def has(self, batch: PyTree) -> bool:
        """True if there is a copy of each array; NumPy arrays may have changed since."""
        return all(_key(leaf) in self._copies for leaf in jax.tree.leaves(batch))

    def place(self, batch: PyTree, strategy: Strategy) -> PyTree:
        """Returns the arrays on every device, from their copies if they have not changed.

        Args:
            batch: NumPy or JAX arrays.
            strategy: how data is placed; the same in every call.
        """
        if strategy.processes > 1:  # all processes must place the same arrays at the same time
            return jax.tree.map(lambda leaf: strategy.place(_private(leaf), "whole"), batch)
        placed = jax.tree.map(lambda leaf: self._one(leaf, strategy), batch)
        while self.nbytes > self.most:
            del self._copies[next(iter(self._copies))]
        return placed

    def _one(self, leaf: Any, strategy: Strategy) -> Any:
        on_host = isinstance(leaf, np.ndarray)
        if on_host and not self.digests:
            return strategy.place(_private(leaf), "whole")
        key = _key(leaf)
        known = self._copies.pop(key, None)
        if known is None or (on_host and digest(leaf) != known.digest):
            private = _private(leaf)
            placed = strategy.place(private, "whole")
            if placed is leaf:  # on its device already
                return placed
            forget = functools.partial(_forget, weakref.ref(self), key)
            # The digest of the private copy, because another thread may write to the array.
            known = _Copy(weakref.ref(_owner(leaf), forget), digest(private) if on_host else None, placed, leaf.nbytes)
        self._copies[key] = known
        return known.placed


def _forget(copies: weakref.ref, key: Any, owner: weakref.ref) -> None:
    """Deletes the copy of an array that was collected."""
    here = copies()
    if here is not None and key in here._copies and here._copies[key].owner is owner:
        del here._copies[key]


def _owner(leaf: Any) -> Any:
    """Returns the array that owns the memory of a view."""
    while isinstance(leaf, np.ndarray) and isinstance(leaf.base, np.ndarray):
        leaf = leaf.base
    return leaf


def _key(leaf: Any) -> Any:
    """Returns a key that is equal for views of the same memory in the same form."""
    if not isinstance(leaf, np.ndarray):
        return id(leaf)
    return id(_owner(leaf)), leaf.ctypes.data, leaf.shape, leaf.strides, leaf.dtype


def digest(array: np.ndarray) -> bytes:
    """Returns SHA-256 digests of the bytes of an array, in C order, one for every 4 MiB, computed by several threads.

    Args:
        array: an array of any shape.

    Example:
        >>> import numpy as np
        >>> x = np.zeros((2, 3))
        >>> digest(x) == digest(x.copy()), digest(x) == digest(x - 0.0), digest(x) == digest(-x)
        (True, True, False)
    """
    data = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    parts = [data[start : start + _PART] for start in range(0, data.size, _PART)]
    threads = min(_THREADS, len(parts), len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1)
    if threads < 2:
        return b"".join(map(_sha256, parts))
    with ThreadPoolExecutor(threads) as pool:
        return b"".join(pool.map(_sha256, parts))


def _sha256(part: np.ndarray) -> bytes:
    return hashlib.sha256(part, usedforsecurity=False).digest()


def _private(leaf: Any) -> Any:
    """Returns a copy of a NumPy array, because the CPU backend may use its memory as that of the placed array.

    The copy is aligned so that the CPU backend does not copy it again.
    """
    if not isinstance(leaf, np.ndarray):
        return leaf
    copy = aligned_empty(leaf.shape, leaf.dtype)
    np.copyto(copy, leaf)
    return copy
