"""Blocks of consecutive rows, in which files are read and shuffled."""

from __future__ import annotations

import dataclasses

import numpy as np

from elegy.data.permutation import epoch_permutation, generator, index_dtype

BLOCK_BYTES = 2**20
"""The size of a block, over all arrays of the data, in bytes; a chunk of the file may be larger."""

WINDOW_BYTES = 2**26
"""The size of the blocks whose rows are shuffled together, in bytes."""

_FEWEST = 16
"""The smallest number of blocks of a file, so that a small one is not read at once."""


@dataclasses.dataclass(frozen=True)
class Blocks:
    """How the rows of files are divided.

    Args:
        rows: the number of consecutive rows of a block.
        window: the number of blocks whose rows are shuffled together.

    Example:
        >>> Blocks.of(size=10**6, nbytes=10**9, chunk=100)
        Blocks(rows=1000, window=67)
    """

    rows: int
    window: int

    @classmethod
    def of(cls, size: int, nbytes: int, chunk: int = 1) -> Blocks:
        """Chooses blocks.

        Args:
            size: the number of rows.
            nbytes: their size in bytes.
            chunk: the rows that the file stores, and perhaps compresses, together. A block is a multiple of them.
        """
        each = max(1, nbytes // max(size, 1))
        rows = max(1, min(BLOCK_BYTES // each, -(-size // _FEWEST)))
        rows = max(rows // chunk, 1) * chunk
        return cls(rows, max(1, WINDOW_BYTES // (rows * each)))

    def permutation(self, seed: int, epoch: int, size: int, attempt: int = 0) -> np.ndarray:
        """Returns the order of the examples in an epoch; arguments as for `epoch_permutation`.

        The blocks come in a random order; each `window` of them is shuffled as a whole. If all fit into one window,
        the order is that of arrays in memory.

        Example:
            >>> order = Blocks(rows=2, window=2).permutation(0, 0, size=8)
            >>> sorted(order[:4].tolist()), sorted(order[4:].tolist())  # two blocks, then the other two
            ([0, 1, 2, 3], [4, 5, 6, 7])
        """
        count = -(-size // self.rows)
        if count <= self.window:
            return epoch_permutation(seed, epoch, size, attempt)
        random = generator(seed, epoch, attempt)
        blocks, order = random.permutation(count), np.empty(size, index_dtype(size))
        done = 0
        for first in range(0, count, self.window):
            starts = np.sort(blocks[first : first + self.window]) * self.rows
            rows = (starts[:, None] + np.arange(self.rows)).ravel()
            rows = rows[rows < size]
            random.shuffle(rows)
            order[done : done + len(rows)] = rows
            done += len(rows)
        return order

    def reshuffled(self, rest: np.ndarray, seed: int, epoch: int, attempt: int) -> np.ndarray:
        """Returns the rest of an order of this kind in another order, which still goes from window to window."""
        whole = Blocks(self.rows * self.window, 1)
        return rest[whole.permutation(seed, epoch, len(rest), attempt)]
