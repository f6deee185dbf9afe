"""Which iterators are read ahead, in which block, and what outlives a block."""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from elegy.data.convert import copied
from elegy.data.read_ahead import ReadAhead

PREFETCH = 2
"""The default number of batches that are read ahead."""


class Reading:
    """The threads that read ahead in a block of one call.

    Attributes:
        depth: how many items are read ahead; 0 outside of a block.

    Example:
        >>> reading = Reading()
        >>> with reading.block(2):
        ...     reading.depth
        2
    """

    def __init__(self) -> None:
        self.depth = 0
        self._readers: list[ReadAhead] = []

    @contextlib.contextmanager
    def block(self, depth: int) -> Iterator[None]:
        """A block in which data may be read ahead; the threads end with it."""
        self.depth = depth
        try:
            yield
        finally:
            self.depth = 0
            while self._readers:
                self._readers.pop().stop()

    def add(self, reader: ReadAhead) -> ReadAhead:
        """Stops a reader at the end of the block."""
        if not any(one is reader for one in self._readers):
            self._readers.append(reader)
        return reader

    def drop(self, reader: ReadAhead) -> None:
        """Stops a reader now."""
        reader.stop()
        self._readers = [one for one in self._readers if one is not reader]


_of_iterators: dict[int, tuple[weakref.ref, ReadAhead]] = {}


def reader_of(iterator: Iterator, state_of: Callable[[Iterator], Any] | None) -> ReadAhead | None:
    """Returns the reader of an iterator that the user holds: the same one in every call.

    If a run stops early, the reader keeps the items that were not taken, for the next call with the iterator.

    Args:
        iterator: the iterator.
        state_of: as for `ReadAhead`.

    Returns:
        The reader; None if the iterator cannot be weakly referenced: the items could not be freed with it.

    Example:
        >>> reader_of(iter([1]), None) is None
        True
        >>> numbers = (i for i in range(3))
        >>> reader_of(numbers, None) is reader_of(numbers, None)
        True
    """
    key = id(iterator)
    if key in _of_iterators and _of_iterators[key][0]() is iterator:
        return _of_iterators[key][1]
    try:
        reference = weakref.ref(iterator, partial(_forget, key))
    except TypeError:
        return None
    _of_iterators[key] = reference, ReadAhead(state_of, _copied)
    return _of_iterators[key][1]


def _copied(batch: Any) -> Any:
    """Copies the arrays of a batch as the iterator gave it, which may write the next one to them."""
    try:
        return copied(batch)
    except Exception:  # not a tree, such as a dict whose keys cannot be sorted
        return batch


def _forget(key: int, _: weakref.ref) -> None:
    _of_iterators.pop(key, None)
