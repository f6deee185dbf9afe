"""The form of a batch: `inputs`, `(inputs, labels)` or `(inputs, labels, sample_weight)`."""

from __future__ import annotations

from typing import Any, NoReturn

import jax
import jax.numpy as jnp
import numpy as np

from elegy.names import array_name, path_name
from elegy.types import Batch, PyTree

PARTS = ("inputs", "labels", "sample_weight")
"""The names of a batch's parts, in order."""


def pack(inputs: PyTree, labels: PyTree | None = None, sample_weight: PyTree | None = None) -> Batch:
    """Packs the parts of a batch into the shortest form that `unpack` accepts.

    Args:
        inputs: a tree of arrays, each of shape (rows, ...).
        labels: a tree of arrays, each of shape (rows, ...), or None.
        sample_weight: an array of shape (rows,), or None.

    Returns:
        `(inputs, labels, sample_weight)`, `(inputs, labels)`, or the inputs alone. Inputs that are
        themselves a plain tuple are wrapped as `(inputs,)`, so that `unpack` does not take them for a batch.

    Example:
        >>> pack("x"), pack("x", "y"), pack("x", None, "w"), pack(("x1", "x2"))
        ('x', ('x', 'y'), ('x', None, 'w'), (('x1', 'x2'),))
    """
    if sample_weight is not None:
        return inputs, labels, sample_weight
    if labels is not None:
        return inputs, labels
    return (inputs,) if type(inputs) is tuple else inputs


def unpack(batch: Batch) -> tuple[PyTree, PyTree | None, PyTree | None]:
    """Splits a batch into its three parts.

    Args:
        batch: a plain tuple of one to three parts; anything else (a named tuple too) is inputs.

    Returns:
        `(inputs, labels, sample_weight)`; parts that the batch does not have are None.

    Raises:
        ValueError: if the batch is a plain tuple of another length.

    Example:
        >>> unpack(("x", "y"))
        ('x', 'y', None)
        >>> unpack({"image": "x"})
        ({'image': 'x'}, None, None)
    """
    if type(batch) is not tuple:
        return batch, None, None
    if not 1 <= len(batch) <= 3:
        given = ", ".join(array_name(part) if hasattr(part, "dtype") else type(part).__name__ for part in batch)
        raise ValueError(
            f"a batch that is a tuple has one to three parts, (inputs, labels, sample_weight), but this one has "
            f"{len(batch)}: ({given}). Put several inputs into a tuple, a list or a dict of their own: "
            "((x1, x2), labels)."
        )
    inputs, labels, sample_weight = (*batch, None, None)[:3]
    return inputs, labels, sample_weight


def named_leaves(batch: Batch) -> list[tuple[str, Any]]:
    """Returns the leaves of a batch with their names for error messages.

    Example:
        >>> named_leaves(({"image": 1}, 2))
        [('inputs/image', 1), ('labels', 2)]
    """
    parts = batch if type(batch) is tuple and 1 <= len(batch) <= 3 else (batch,)
    return [
        (join_name(part, path), leaf)
        for part, tree in zip(PARTS, parts, strict=False)
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    ]


def join_name(part: str, path: Any) -> str:
    """Returns the name of a leaf: its part of the batch, then its path.

    Example:
        >>> join_name("inputs", ()), join_name("inputs", (jax.tree_util.DictKey("image"),))
        ('inputs', 'inputs/image')
    """
    return f"{part}/{path_name(path)}" if path else part


def rows(batch: Batch, where: str = "") -> int:
    """Returns the number of examples in a batch: the leading dimension of all of its arrays.

    Args:
        batch: a tree of arrays of shape (rows, ...).
        where: a prefix for the names in error messages.

    Raises:
        ValueError: if the batch has no array, an array is a scalar, or the leading dimensions differ; the message
            names the paths.

    Example:
        >>> rows((np.zeros((4, 28, 28)), np.zeros(4)))
        4
    """
    count = None
    for leaf in jax.tree.leaves(batch):
        shape = getattr(leaf, "shape", None)
        if not shape or (count is not None and shape[0] != count):
            _explain_rows(batch, where)
        count = shape[0]
    if count is None:
        raise ValueError(f"the {where}batch holds no array: {batch!r}. Give at least one array of inputs.")
    return count


def size_of(data: Batch, where: str = "") -> int:
    """Returns the number of examples in the data, which must have at least one.

    Args:
        data: a tree of arrays of shape (rows, ...).
        where: a prefix for the names in error messages.

    Raises:
        ValueError: as `rows`, and if there are no rows.

    Example:
        >>> size_of(np.zeros((4, 2)))
        4
    """
    size = rows(data, where)
    if size == 0:
        raise ValueError(f"the {where}data is empty: its arrays have 0 rows, but there must be at least one example.")
    return size


def _explain_rows(batch: Batch, where: str) -> NoReturn:
    first = ""
    count = -1
    for name, leaf in named_leaves(batch):
        name = where + name
        shape = getattr(leaf, "shape", None)
        if not shape:
            remedy = (
                "Give an array of shape (rows, ...); a list of numbers is such an array, a tuple of numbers is not."
            )
            if where.startswith("batch"):
                remedy += " Where an iterable yields single examples, group them into batches first."
            raise ValueError(
                f"{name} is a scalar ({leaf!r}), but every array of a batch has a leading dimension of examples. "
                f"{remedy}"
            )
        if not first:
            first, count = name, shape[0]
        elif shape[0] != count:
            share = _share(where, first, count, name, shape[0])
            raise ValueError(
                f"{first} has {count} rows but {name} has {shape[0]} (shape {tuple(shape)}): all arrays need one row "
                f"for each example, so their leading dimensions must be equal.{share}"
            )
    raise AssertionError("called for a batch whose rows agree")


def _share(where: str, first: str, count: int, name: str, other: int) -> str:
    """A sentence on inputs of which one has several rows for each row of the other."""
    few, many = sorted((count, other))
    if few == 0 or many % few or not all(one.startswith(f"{where}inputs/") for one in (first, name)):
        return ""
    more, each = (name, many // few) if other == many else (first, many // few)
    return f" If each example has {each} rows of {more.removeprefix(where)}, give it the shape ({few}, {each}, ...)."


def take_rows(tree: PyTree, n: int) -> PyTree:
    """Returns the first `n` rows of every array of a tree: views of NumPy arrays, slices of JAX arrays.

    Example:
        >>> take_rows({"a": np.arange(5)}, 2)
        {'a': array([0, 1])}
    """
    return jax.tree.map(lambda leaf: leaf if leaf.shape[0] == n else leaf[:n], tree)


def pad_rows(batch: Batch, to: int) -> Batch:
    """Lengthens every array of a batch to `to` rows by repeating the last row.

    A repeated row is in the range of real data. Zeros could give NaN, which a mask cannot remove from gradients.

    Args:
        batch: arrays of shape (rows, ...); NumPy arrays stay NumPy, JAX arrays stay JAX, dtypes are kept.
        to: the number of rows of the result.

    Raises:
        ValueError: if the batch is longer than `to`, or has no row to repeat.

    Example:
        >>> pad_rows(np.array([1, 2]), 4)
        array([1, 2, 2, 2])
    """
    count = rows(batch)
    if count == to:
        return batch
    if count > to:
        raise ValueError(f"cannot pad a batch of {count} rows to {to}: it is longer already.")
    if count == 0:
        raise ValueError(f"cannot pad an empty batch to {to} rows: there is no last row to repeat.")

    def pad(leaf: Any) -> Any:
        xp: Any = jnp if isinstance(leaf, jax.Array) else np
        return xp.concatenate([leaf, xp.broadcast_to(leaf[-1:], (to - count, *leaf.shape[1:]))])

    return jax.tree.map(pad, batch)
