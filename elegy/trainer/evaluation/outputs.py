"""Outputs on the host: trees made of the leaves that came back from the device, for each batch or for all of them."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from elegy.names import path_name, type_name
from elegy.types import PyTree

Outline = tuple[list[jax.ShapeDtypeStruct], Any]
"""A `jax.ShapeDtypeStruct` for each leaf of a tree, and the tree definition."""


class BatchOutputs(NamedTuple):
    """The outputs of one batch.

    A class that is a pytree may keep shapes beside its arrays: NumPyro's distributions keep their batch shape. Those
    that come back from a compiled step have the shape of the rows that the step was traced for: with padding, or of
    one device. So such trees are made anew, as the module makes them for the number of rows.

    Args:
        leaves: the arrays, without padding.
        treedef: the tree definition that they came with.
        outline: from a number of rows to what the module computes from inputs like those of this batch; None if
            `treedef` is right as it is.
        rows: the number of rows.
        members: True for a population, whose outputs have an axis of members behind that of the rows.
    """

    leaves: list[np.ndarray]
    treedef: Any
    outline: Callable[[int], Outline] | None
    rows: int
    members: bool = False

    def rebuilt(self, rows: int) -> Outline | None:
        """What the module computes from so many rows; None if the tree definition does not depend on their number."""
        return None if self.outline is None or made_of_containers(self.treedef) else self.outline(rows)

    def tree(self) -> PyTree:
        """The outputs as the module makes them."""
        rebuilt = self.rebuilt(self.rows)
        return jax.tree.unflatten(self.treedef if rebuilt is None else rebuilt[1], self.leaves)


_AS_THEY_ARE = (
    "`predict_iter` yields the outputs of each batch as they are",
    "`population[i].predict_iter` yields the outputs of each batch of a member as they are",
)
"""What to use for outputs that cannot be joined: of a Trainer, of a population."""


def join(batches: Iterable[BatchOutputs]) -> PyTree:
    """Concatenates the outputs of batches along the examples.

    In a tree of other classes than containers, an array of one and the same value for all examples stays what it is.

    Args:
        batches: the outputs of each batch, of one structure.

    Raises:
        ValueError: if there are several and a leaf has no axis of examples, such as a matrix of prototypes, or other
            dimensions differ.

    Example:
        >>> treedef = jax.tree.structure(0)
        >>> join([BatchOutputs([np.array(rows)], treedef, None, len(rows)) for rows in ([1, 2], [3])])
        array([1, 2, 3])
    """
    outputs = list(batches)
    first = outputs[0]
    if len(outputs) == 1:
        return first.tree()
    columns = list(zip(*(one.leaves for one in outputs), strict=True))
    rebuilt = first.rebuilt(sum(one.rows for one in outputs))
    structs, treedef = (None, first.treedef) if rebuilt is None else rebuilt
    joined = []
    for i, column in enumerate(columns):
        if structs is not None and _is_common(column, structs[i]):
            joined.append(column[0])
            continue
        if not _has_rows(i, column, outputs):
            raise ValueError(_unjoined(first, treedef, i, column))
        joined.append(np.concatenate(column))
    return jax.tree.unflatten(treedef, joined)


def made_of_containers(treedef: Any) -> bool:
    """True if a tree is made of dicts, lists, tuples and None alone.

    Args:
        treedef: its tree definition.

    Example:
        >>> trees = {"a": (np.zeros(2), None)}, jax.tree_util.Partial(max, np.zeros(2))
        >>> [made_of_containers(jax.tree.structure(tree)) for tree in trees]
        [True, False]
    """
    nodes = [treedef]
    for node in nodes:
        nodes.extend(node.children())
        data = node.node_data()
        if data is not None and not issubclass(data[0], (dict, list, tuple, type(None))):
            return False
    return True


def _is_common(column: Sequence[np.ndarray], struct: jax.ShapeDtypeStruct) -> bool:
    """True if a leaf of all batches is one value that has no rows, as a scale of 1 for all examples."""
    return all(struct.shape == leaf.shape and np.array_equal(column[0], leaf) for leaf in column)


def _has_rows(index: int, leaves: Sequence[np.ndarray], outputs: Sequence[BatchOutputs]) -> bool:
    """True if the leaves of all batches can be joined: their leading dimensions belong to the examples."""
    first = outputs[0]
    shapes = {np.shape(leaf)[1:] if np.ndim(leaf) > first.members else None for leaf in leaves}
    if len(shapes) > 1 or None in shapes:
        return False
    lengths, rows = [len(leaf) for leaf in leaves], [one.rows for one in outputs]
    if lengths == rows:
        return True
    proportional = all(length * rows[0] == lengths[0] * count for length, count in zip(lengths, rows, strict=True))
    if first.outline is None:  # a step of the core level may return any number of rows, such as those that it found
        return proportional or len(set(lengths)) > 1
    if not proportional:
        return False
    # Twice as many rows as examples are joined, but not a matrix that happens to have twice as many.
    total = sum(rows)
    with contextlib.suppress(Exception):  # a module may take no other number of rows
        return first.outline(total)[0][index].shape[0] * rows[0] == lengths[0] * total
    return True


def _unjoined(first: BatchOutputs, treedef: Any, index: int, leaves: Sequence[np.ndarray]) -> str:
    found = ", ".join(str(np.shape(leaf)) if hasattr(leaf, "dtype") else type_name(leaf) for leaf in leaves[:3])
    tree = jax.tree.unflatten(treedef, leaves[:1] * treedef.num_leaves)
    path = jax.tree_util.tree_leaves_with_path(tree)[index][0]
    return (
        f"the output {path_name(path)} cannot be joined over batches: its shapes are {found}. Outputs need one row an "
        f"example; {_AS_THEY_ARE[first.members]}."
    )
