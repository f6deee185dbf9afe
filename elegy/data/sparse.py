"""SciPy's sparse matrices as data: the rows of a batch become dense when it is gathered."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from elegy.data.lazy_rows import LazyRows
from elegy.lazy import is_instance_of


class SparseRows(LazyRows):
    """A sparse matrix with the interface of an array of shape (rows, columns).

    Slices and gathered rows are NumPy arrays; the whole matrix is never made dense.

    Args:
        matrix: a two-dimensional SciPy matrix or array. It is converted to the CSR format.

    Example:
        >>> import scipy.sparse
        >>> rows = SparseRows(scipy.sparse.csr_array(np.eye(3)))
        >>> rows.shape, rows[1:2], rows.take(np.array([2, 0]))
        ((3, 3), array([[0., 1., 0.]]), array([[0., 0., 1.], [1., 0., 0.]]))
    """

    def __init__(self, matrix: Any):
        self.matrix = matrix.tocsr()
        super().__init__(matrix.shape, matrix.dtype)

    @property
    def values(self) -> Iterator[np.ndarray]:
        """The stored values; all others are 0."""
        return iter([self.matrix.data])

    def part(self, start: int, stop: int) -> SparseRows:
        """Returns the rows from `start` to `stop` as a sparse matrix."""
        return SparseRows(self.matrix[start:stop])

    def __getitem__(self, rows: slice) -> np.ndarray:
        """Returns rows as a dense array."""
        return self.matrix[rows].toarray()

    def take(self, indices: np.ndarray, axis: int = 0) -> np.ndarray:
        """Gathers rows as a dense array.

        Args:
            indices: integers of any shape.
            axis: must be 0.

        Returns:
            An array of shape `indices.shape + (columns,)`.
        """
        return self.matrix[indices.ravel()].toarray().reshape(*indices.shape, self.shape[1])


def is_sparse(value: Any) -> bool:
    """True if a value is a sparse matrix or array of SciPy.

    Example:
        >>> is_sparse(np.zeros(3))
        False
    """
    return is_instance_of(value, "scipy.sparse", "spmatrix", "sparray")
