"""Batches that differ between the members of a population."""

from __future__ import annotations

from typing import Any

import jax

from elegy.types import PyTree


@jax.tree_util.register_pytree_node_class
class PerMember:
    """Marks arrays that have an axis of members after their axis of rows.

    Args:
        values: a batch, `(rows, members, ...)`, or a stack of batches or indices, `(steps, rows, members, ...)`.
    """

    def __init__(self, values: PyTree):
        self.values = values

    def tree_flatten(self) -> tuple[tuple[PyTree], None]:
        """Returns the children."""
        return (self.values,), None

    @classmethod
    def tree_unflatten(cls, aux: None, children: tuple[PyTree]) -> PerMember:
        """The inverse of `tree_flatten`."""
        return cls(*children)


def of_members(values: Any, rows: int, dimensions: int | None = None) -> Any:
    """Marks what was gathered with indices for each member; returns other values as they are.

    Args:
        values: indices, or what was gathered with them.
        rows: the number of dimensions of indices that are the same for all members.
        dimensions: the number of dimensions of the indices; None if `values` are the indices.

    Example:
        >>> import numpy as np
        >>> of_members(np.zeros((4, 2), int), rows=1).values.shape
        (4, 2)
    """
    return PerMember(values) if (values.ndim if dimensions is None else dimensions) > rows else values
