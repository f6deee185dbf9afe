"""Converts batch leaves to arrays and reports leaves that cannot be converted, by path."""

from __future__ import annotations

import numbers
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding

from elegy.data.aligned import aligned_copy
from elegy.data.batch import PARTS, join_name
from elegy.data.lazy_rows import LazyRows
from elegy.data.numeric import as_numeric, is_numeric
from elegy.data.sparse import SparseRows, is_sparse
from elegy.data.stored import is_stored, stored_rows
from elegy.data.tables import is_column, is_series, is_table, series_as_array, table_as_array
from elegy.lazy import is_instance_of
from elegy.names import type_name
from elegy.types import Batch, PyTree

_SCALARS = (numbers.Number, np.generic, str, bytes)


def as_arrays(tree: PyTree, name: str = "inputs", *, lazy: bool = False) -> PyTree:
    """Converts every leaf of a tree to an array.

    NumPy and JAX arrays are returned unchanged. Only for arrays on a mesh with axes of type `Explicit`, the axes
    become `Auto`, so that rows can be gathered from them.
    Lists of numbers (nested ones too), everything with `__array__` (PyTorch and TensorFlow tensors), tables and columns
    of pandas, Polars and PyArrow, columns of Hugging Face data sets and SciPy's sparse matrices become NumPy arrays;
    long doubles become doubles.
    Python scalars are kept, and `rows` refuses them. Without `jax_enable_x64`, integers must fit into 32 bits.

    Args:
        tree: any nesting of dicts, lists, tuples and registered nodes.
        name: the name of the tree in messages.
        lazy: True to convert sparse matrices and arrays in files to `LazyRows`, which become arrays batch by batch.

    Raises:
        TypeError: if a leaf is not an array of numbers; the message names its path.
        ValueError: if a list is ragged, values are masked, or JAX would cut off integers.

    Example:
        >>> as_arrays({"a": [1, 2], "b": [[0.5], [1.5]]})
        {'a': array([1, 2]), 'b': array([[0.5], [1.5]])}
    """
    if all(map(_is_ready, jax.tree.leaves(tree, is_leaf=_stops_here))):
        return tree
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: _as_array(leaf, join_name(name, path), lazy), tree, is_leaf=_stops_here
    )


def as_batch(batch: Any, where: str = "", *, listed: bool = False) -> Batch:
    """Converts the leaves of a batch to arrays, as `as_arrays` does.

    Args:
        batch: a batch of the user or of an iterable.
        where: a prefix for error messages, such as `"batch 3: "`.
        listed: True to treat a list as a tuple unless it is an array of numbers. PyTorch's collate function turns
            tuples into lists, so a list of up to three parts with PyTorch tensors is always treated as a tuple.

    Raises:
        TypeError: if a leaf is not an array of numbers; the message names its path.
        ValueError: if a list is ragged, values are masked, or JAX would cut off integers.

    Example:
        >>> as_batch(([1.0, 2.0], [0, 1]))
        (array([1., 2.]), array([0, 1]))
    """
    if type(batch) is list and not _is_number_list(batch):
        leaves = [] if listed else jax.tree.leaves(batch, is_leaf=_stops_here)
        if listed or (len(batch) <= 3 and any(is_instance_of(leaf, "torch", "Tensor") for leaf in leaves)):
            batch = tuple(batch)
    if type(batch) is tuple and 1 <= len(batch) <= 3:
        return tuple(as_arrays(part, where + name) for part, name in zip(batch, PARTS, strict=False))
    return as_arrays(batch, where + PARTS[0])


def copied(batch: Batch) -> Batch:
    """Copies the NumPy arrays of a batch, so that later writes to the originals do not change it.

    The CPU backend computes with the memory of the copies; a step need not copy them once more.

    Example:
        >>> x = np.zeros(2)
        >>> np.shares_memory(copied({"x": x})["x"], x)
        False
    """
    return jax.tree.map(lambda leaf: aligned_copy(leaf) if isinstance(leaf, np.ndarray) else leaf, batch)


def is_leaf(value: Any) -> bool:
    """True if `value` is a leaf for JAX, not a container.

    Example:
        >>> is_leaf(3), is_leaf([3]), is_leaf(None)
        (True, False, False)
    """
    return jax.tree_util.all_leaves([value])


def is_array_like(value: Any) -> bool:
    """True if `value` is an array or can be converted to one.

    Example:
        >>> is_array_like(np.zeros(3)), is_array_like([3]), is_array_like(iter([]))
        (True, False, False)
    """
    if isinstance(value, (np.ndarray, jax.Array)):
        return True
    return (
        (hasattr(value, "__array__") and not isinstance(value, type))
        or is_sparse(value)
        or is_column(value)
        or is_table(value)
        or isinstance(value, LazyRows)
        or is_stored(value)
    )


def _is_ready(leaf: Any) -> bool:
    if isinstance(leaf, jax.Array):
        return not _lies_explicitly(leaf)
    if isinstance(leaf, LazyRows):
        return True
    return isinstance(leaf, np.ndarray) and not is_stored(leaf) and is_numeric(leaf)


def _lies_explicitly(array: jax.Array) -> bool:
    """True if an array is on a mesh with axes of type `Explicit`, on which every operation needs a sharding."""
    place = array.sharding
    return isinstance(place, NamedSharding) and AxisType.Explicit in place.mesh.axis_types


def _automatic(array: jax.Array) -> jax.Array:
    mesh = array.sharding.mesh  # type: ignore[attr-defined]  # a NamedSharding
    return jax.device_put(array, NamedSharding(Mesh(mesh.devices, mesh.axis_names), array.sharding.spec))  # type: ignore[attr-defined]


def holds_arrays(tree: PyTree) -> bool:
    """True if some leaf of a tree is array-like.

    Example:
        >>> holds_arrays((np.zeros(3), 1)), holds_arrays(([1, 2], 1))
        (True, False)
    """
    return any(map(is_array_like, jax.tree.leaves(tree, is_leaf=_stops_here)))


def _stops_here(value: Any) -> bool:
    # JAX warns about iterators in a tree. As leaves, they raise an error that names them.
    return _is_number_list(value) or isinstance(value, Iterator) or _is_jax_sparse(value)


def _is_number_list(value: Any) -> bool:
    """True if the first element of a list is a number or a list of numbers. NumPy checks the others later."""
    if type(value) is not list:
        return False
    while isinstance(value, (list, tuple)):
        if not value:
            return True
        value = value[0]
    return isinstance(value, _SCALARS)


def _as_array(leaf: Any, name: str, lazy: bool) -> Any:
    if isinstance(leaf, jax.Array):
        return _automatic(leaf) if _lies_explicitly(leaf) else leaf
    if is_column(leaf):
        leaf = leaf[:]
    if is_stored(leaf) or isinstance(leaf, LazyRows):
        return _of_lazy(leaf, name, lazy)
    if isinstance(leaf, np.ndarray):
        return as_numeric(leaf, name)
    if isinstance(leaf, list):
        try:
            array = np.asarray(leaf)
        except ValueError as error:
            raise ValueError(
                f"{name} is a ragged list: its elements have different lengths, so it is not an array ({error}). "
                "Pad the elements to one length, or give a tree of arrays."
            ) from error
        return as_numeric(array, name)
    if isinstance(leaf, _SCALARS) and not isinstance(leaf, (str, bytes)):
        return leaf
    if is_table(leaf):
        return table_as_array(leaf, name)
    if is_series(leaf):
        return series_as_array(leaf, name)
    if is_sparse(leaf):
        return _of_sparse(leaf, name, lazy)
    if _is_jax_sparse(leaf):
        raise TypeError(
            f"{name} is {type_name(leaf)}, a sparse array of JAX, of which batches cannot take rows. Give "
            "`array.todense()`, or a SciPy matrix, whose rows become dense batch by batch."
        )
    if not is_array_like(leaf):
        raise TypeError(
            f"{name} is {type_name(leaf)}, which is not an array and cannot become one. Give NumPy or JAX "
            "arrays, lists of numbers, or objects with `__array__`."
        )
    try:
        array = np.asarray(leaf)
    except Exception as error:
        raise TypeError(
            f"{name} is {type_name(leaf)} that could not be turned into a NumPy array: {error} "
            "Turn it into one first (for a PyTorch tensor, `tensor.detach().cpu().numpy()`; for one of bfloat16, "
            "`.float()` before `.numpy()`)."
        ) from error
    return as_numeric(array, name)


def _of_sparse(matrix: Any, name: str, lazy: bool) -> Any:
    if matrix.ndim != 2:
        return as_numeric(matrix.toarray(), name)
    matrix = matrix.tocsr()
    values = as_numeric(matrix.data, name)
    matrix = matrix if matrix.dtype == values.dtype else matrix.astype(values.dtype)
    return SparseRows(matrix) if lazy else matrix.toarray()


def _of_lazy(leaf: Any, name: str, lazy: bool) -> Any:
    rows = leaf if isinstance(leaf, LazyRows) else stored_rows(leaf, name)
    return rows if lazy or not isinstance(rows, LazyRows) else np.asarray(rows)


def _is_jax_sparse(value: Any) -> bool:
    return is_instance_of(value, "jax.experimental.sparse", "JAXSparse")
