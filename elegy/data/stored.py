"""Arrays in files, HDF5, Zarr and memory maps, whose rows are read in blocks."""

from __future__ import annotations

from typing import Any

import numpy as np

from elegy.data.blocks import WINDOW_BYTES, Blocks
from elegy.data.lazy_rows import LazyRows
from elegy.data.numeric import as_numeric
from elegy.lazy import is_instance_of
from elegy.names import type_name


def is_stored(value: Any) -> bool:
    """True if a value is a dataset of h5py, an array of Zarr, or a memory map that is not small.

    Small memory maps are arrays: the system keeps the pages that were read.

    Example:
        >>> is_stored(np.zeros(3))
        False
    """
    if isinstance(value, np.memmap):
        return value.filename is not None and value.ndim > 0 and value.nbytes > WINDOW_BYTES
    return is_instance_of(value, "h5py", "Dataset") or is_instance_of(value, "zarr", "Array")


def stored_group(value: Any) -> dict[str, Any] | None:
    """Returns the arrays of a group of Zarr by name; None for other values.

    Groups of h5py are mappings.
    """
    return dict(value.arrays()) if is_instance_of(value, "zarr", "Group") else None


def stored_rows(array: Any, name: str) -> Any:
    """Returns the rows of an array in a file, or its value if it is a scalar.

    Args:
        array: an array for which `is_stored` is true.
        name: its name in messages.

    Raises:
        TypeError: if the values are not numbers.
        ValueError: if the file is closed.
    """
    if is_instance_of(array, "h5py", "Dataset") and not array:
        raise ValueError(f"{name} is a dataset of an HDF5 file that is closed: keep the file open for the call.")
    return StoredRows(array, name) if array.shape else array[()]


class StoredRows(LazyRows):
    """The rows of an array in a file.

    Gathered rows are read in blocks, in the order of the file. The blocks that were read last are kept, as many as two
    windows of the shuffled order have.

    Args:
        array: a two-sided slice of it must be a NumPy array.
        name: its name in messages.
        start: the first row.
        stop: the row after the last; None for the end.
        blocks: how rows are read; None chooses it for this array alone.

    Raises:
        TypeError: if the values are not numbers.

    Example:
        >>> rows = StoredRows(np.arange(10), "inputs", blocks=Blocks(rows=2, window=2))
        >>> rows[3:5], rows.take(np.array([9, 0, 9])), rows.part(4, 8)[1:3]
        (array([3, 4]), array([9, 0, 9]), array([5, 6]))
    """

    def __init__(self, array: Any, name: str, start: int = 0, stop: int | None = None, blocks: Blocks | None = None):
        end: int = array.shape[0] if stop is None else stop
        if array.dtype.kind == "O":
            raise TypeError(
                f"{name} is {type_name(array)} of the dtype object: its cells are text, or arrays of different "
                "lengths. Encode text as integers, pad arrays to one shape, or leave it out with `inputs=`."
            )
        dtype = as_numeric(np.zeros(1, array.dtype), name).dtype
        super().__init__((end - start, *array.shape[1:]), dtype)
        self.array, self.name, self.start = array, name, start
        self.chunk = _chunk_rows(array)
        self.blocks = blocks or Blocks.of(end - start, self.nbytes, self.chunk)
        count = -(-len(self) // self.blocks.rows)
        slots = min(count, 2 * self.blocks.window)
        self._slot_of = np.full(count, -1)
        self._block_in = np.full(slots, -1)
        self._used = np.zeros(slots, np.int64)
        self._time = 0
        self._buffer: np.ndarray | None = None

    def in_blocks(self, blocks: Blocks) -> StoredRows:
        """Returns the same rows, read in other blocks."""
        return StoredRows(self.array, self.name, self.start, self.start + len(self), blocks)

    def part(self, start: int, stop: int) -> StoredRows:
        """Returns the rows from `start` to `stop`, without reading them."""
        return StoredRows(self.array, self.name, self.start + start, self.start + stop)

    def __getitem__(self, rows: slice) -> np.ndarray:
        """Reads consecutive rows."""
        start, stop, _ = rows.indices(len(self))
        return as_numeric(np.asarray(self.array[self.start + start : self.start + stop]), self.name)

    def take(self, indices: np.ndarray, axis: int = 0) -> np.ndarray:
        """Gathers rows, from the blocks that contain them; consecutive rows are read alone."""
        return self._gather(indices.ravel()).reshape(*indices.shape, *self.shape[1:])

    def _gather(self, rows: np.ndarray) -> np.ndarray:
        if not rows.size:
            return np.empty((0, *self.shape[1:]), self.dtype)
        low, high = int(rows.min()), int(rows.max())
        if 1 < rows.size > high - low:
            return self[low : high + 1].take(rows - low, axis=0)
        blocks, places = np.divmod(rows, self.blocks.rows)
        needed = np.unique(blocks)
        if len(needed) > len(self._used):
            middle = rows.size // 2
            return np.concatenate([self._gather(rows[:middle]), self._gather(rows[middle:])])
        buffer = self._with_blocks(needed)
        return buffer.take(self._slot_of[blocks] * self.blocks.rows + places, axis=0)

    def _with_blocks(self, needed: np.ndarray) -> np.ndarray:
        """Reads those of the blocks that are missing into the buffer, in the place of the least recently used."""
        rows = self.blocks.rows
        if self._buffer is None:
            self._buffer = np.empty((len(self._used) * rows, *self.shape[1:]), self.dtype)
        self._time += 1
        slots = self._slot_of[needed]
        self._used[slots[slots >= 0]] = self._time
        missing = needed[slots < 0]
        for block, slot in zip(missing, np.argsort(self._used, kind="stable")[: len(missing)], strict=True):
            if self._block_in[slot] >= 0:
                self._slot_of[self._block_in[slot]] = -1
                self._block_in[slot] = -1
            read = self[block * rows : (block + 1) * rows]
            self._buffer[slot * rows : slot * rows + len(read)] = read
            self._slot_of[block], self._block_in[slot], self._used[slot] = slot, block, self._time
        return self._buffer


def _chunk_rows(array: Any) -> int:
    for name in ("shards", "chunks"):
        if shape := getattr(array, name, None):
            return max(1, int(shape[0]))
    return 1
