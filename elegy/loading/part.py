"""Which part of a pass over some data is given, in which order and in which chunks."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

ChunkSize = Callable[[int, int, Sequence[int]], int]
"""Returns how many of the next batches make a chunk, from the numbers of batches and examples of this pass so far, and
the examples of each batch that the chunk may contain. It may be called ahead of the running chunk."""


def as_many_as_fit(batches: int, examples: int, sizes: Sequence[int]) -> int:
    """The chunk size without a limit."""
    return len(sizes)


class Cursor(NamedTuple):
    """The position in a pass.

    Args:
        batches: the number of completed batches.
        examples: the number of their examples; for arrays, the first ones in the pass's order.
    """

    batches: int = 0
    examples: int = 0


_BEGINNING = Cursor()


@dataclasses.dataclass(frozen=True, eq=False)
class Part:
    """A part of a pass; by default all of it.

    Args:
        order: the order of the examples of arrays, `int[size]`, or `int[size, members]`; None for their own.
        limit: the largest number of batches; None for all.
        start: the position from which a resumed run continues.
        chunk_size: limits the size of the chunks.
    """

    order: np.ndarray | None = None
    limit: int | None = None
    start: Cursor = _BEGINNING
    chunk_size: ChunkSize = as_many_as_fit


WHOLE = Part()
"""All of a pass."""
