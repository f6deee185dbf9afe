"""The structure of what a module's `apply` returns."""

from __future__ import annotations

import contextlib
from typing import Any

import jax
import numpy as np

from elegy.pytree import Pytree, static_field
from elegy.types import PyTree


class AppliedOutputs(Pytree):
    """The structure of outputs; a static value, without arrays.

    Args:
        leaves: a `jax.ShapeDtypeStruct` for each leaf; None if they are not all arrays or numbers.
        treedef: the tree definition.
    """

    leaves: tuple[jax.ShapeDtypeStruct, ...] | None = static_field()
    treedef: Any = static_field()

    @classmethod
    def of(cls, outputs: PyTree) -> AppliedOutputs:
        """Returns the structure of outputs.

        Args:
            outputs: a tree, usually of tracers.

        Example:
            >>> AppliedOutputs.of({"y": np.zeros(2, np.float32)}).tree()
            {'y': ShapeDtypeStruct(shape=(2,), dtype=float32)}
        """
        leaves, treedef = jax.tree.flatten(outputs)
        return cls(tuple(map(_struct, leaves)) if all(map(is_array, leaves)) else None, treedef)

    def tree(self) -> PyTree | None:
        """Returns the outputs with a `jax.ShapeDtypeStruct` for each array.

        Returns None if the leaves are not arrays, or if the class of the outputs cannot contain these.
        """
        if self.leaves is not None:
            with contextlib.suppress(Exception):  # any error of the class's constructor
                return jax.tree.unflatten(self.treedef, self.leaves)
        return None


def is_array(leaf: Any) -> bool:
    """True if a leaf is an array or a number.

    Example:
        >>> is_array(np.zeros(2)), is_array(1.0), is_array("text"), is_array(object())
        (True, True, False, False)
    """
    return isinstance(leaf, (jax.Array, np.ndarray, np.generic, int, float, complex))


def _struct(leaf: Any) -> jax.ShapeDtypeStruct:
    typed = jax.typeof(leaf)
    return jax.ShapeDtypeStruct(typed.shape, typed.dtype)
