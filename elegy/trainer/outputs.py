"""Outputs on the host: the outputs of batches joined, in trees that keep the number of rows beside their arrays."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

from elegy.names import path_name
from elegy.types import PyTree


def join(outputs: Sequence[PyTree], structure: Callable[[], PyTree] | None = None) -> PyTree:
    """Concatenates the outputs of batches along the examples.

    Args:
        outputs: trees of arrays of shape `(rows, ...)`, one a batch.
        structure: makes the structure of the outputs for all rows, as `jax.ShapeDtypeStruct`s; for trees of other
            classes than containers (see `with_structure`). In such a tree an array of one and the same value for all
            examples stays what it is.

    Raises:
        ValueError: if there are several and a leaf has no axis of examples, or other dimensions differ.

    Example:
        >>> join([np.array([1, 2]), np.array([3])])
        array([1, 2, 3])
    """
    if len(outputs) == 1:
        return outputs[0]
    if structure is None or made_of_containers(outputs[0]):
        return jax.tree_util.tree_map_with_path(lambda path, *leaves: _concatenate(path, leaves), *outputs)
    structs, treedef = jax.tree_util.tree_flatten_with_path(structure())
    columns = zip(*map(jax.tree.leaves, outputs), strict=True)
    joined = [
        column[0] if _is_common(column, struct) else _concatenate(path, column)
        for (path, struct), column in zip(structs, columns, strict=True)
    ]
    return jax.tree.unflatten(treedef, joined)


def with_structure(outputs: PyTree, structure: Callable[[], PyTree] | None) -> PyTree:
    """Rebuilds the outputs of a batch as the module makes them for the batch's number of rows.

    A class that is a pytree may keep shapes beside its arrays: NumPyro's distributions keep their batch shape. Those
    that come back from a compiled step have the shape of the rows that the step was traced for: with padding, or of
    one device.

    Args:
        outputs: the outputs of one batch.
        structure: makes the structure of the outputs for its rows; None leaves the outputs as they are.
    """
    if structure is None or made_of_containers(outputs):
        return outputs
    return jax.tree.unflatten(jax.tree.structure(structure()), jax.tree.leaves(outputs))


def made_of_containers(tree: PyTree) -> bool:
    """Whether a tree is made of dicts, lists, tuples and None alone.

    Example:
        >>> made_of_containers({"a": (np.zeros(2), None)}), made_of_containers(jax.tree_util.Partial(max, np.zeros(2)))
        (True, False)
    """
    nodes: list[Any] = [jax.tree.structure(tree)]
    for node in nodes:
        nodes.extend(node.children())
        data = node.node_data()
        if data is not None and not issubclass(data[0], (dict, list, tuple, type(None))):
            return False
    return True


def _is_common(column: Sequence[np.ndarray], struct: jax.ShapeDtypeStruct) -> bool:
    """Whether a leaf of all batches is one value that has no rows, as a scale of 1 for all examples."""
    return all(struct.shape == leaf.shape and np.array_equal(column[0], leaf) for leaf in column)


def _concatenate(path: Any, leaves: Sequence[Any]) -> np.ndarray:
    shapes = {np.shape(leaf)[1:] if np.ndim(leaf) else None for leaf in leaves}
    if len(shapes) > 1 or None in shapes:
        found = ", ".join(str(np.shape(leaf)) for leaf in leaves[:3])
        raise ValueError(
            f"the output {path_name(path)} cannot be joined over batches: its shapes are {found}. Outputs need one "
            "row an example; `predict_iter` yields the outputs of each batch as they are."
        )
    return np.concatenate(leaves)
