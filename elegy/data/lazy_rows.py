"""Data whose rows become arrays batch by batch, with the interface of an array of shape (rows, ...)."""

from __future__ import annotations

import abc
import math
from collections.abc import Iterator
from typing import Any, Self

import numpy as np

_BLOCK_BYTES = 2**22


class LazyRows(abc.ABC):
    """Rows that are read or made dense when a batch is gathered; never all at once, unless as an array.

    Args:
        shape: the shape of all rows.
        dtype: their dtype.
    """

    def __init__(self, shape: tuple[int, ...], dtype: Any):
        self.shape, self.dtype = tuple(shape), np.dtype(dtype)
        self.ndim, self.size = len(self.shape), math.prod(self.shape)
        self.nbytes = self.size * self.dtype.itemsize

    def __repr__(self) -> str:
        return f"{type(self).__name__}(shape={self.shape}, dtype={self.dtype})"

    def __len__(self) -> int:
        """Returns the number of rows."""
        return self.shape[0]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        """Returns all rows."""
        return np.asarray(self[0 : len(self)], dtype)

    @property
    def values(self) -> Iterator[np.ndarray]:
        """The values, in arrays of a few megabytes."""
        step = max(1, _BLOCK_BYTES * len(self) // max(self.nbytes, 1))
        return (self[start : start + step] for start in range(0, len(self), step))

    @abc.abstractmethod
    def part(self, start: int, stop: int) -> Self:
        """Returns the rows from `start` to `stop`, without reading them."""

    @abc.abstractmethod
    def __getitem__(self, rows: slice) -> np.ndarray:
        """Returns consecutive rows."""

    @abc.abstractmethod
    def take(self, indices: np.ndarray, axis: int = 0) -> np.ndarray:
        """Gathers rows.

        Args:
            indices: integers of any shape.
            axis: must be 0.

        Returns:
            An array of shape `indices.shape + shape[1:]`.
        """
