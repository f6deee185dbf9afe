"""Whatever holds numbers becomes an array; whatever does not is named."""

from __future__ import annotations

import numbers
import weakref
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding

from elegy.data.batch import PARTS, join_name
from elegy.lazy import is_instance_of
from elegy.types import Array, Batch, PyTree

_NUMERIC_KINDS = "biufc"
_SCALARS = (numbers.Number, np.generic, str, bytes)


def as_arrays(tree: PyTree, name: str = "inputs") -> PyTree:
    """Turns every leaf of a tree into an array.

    Arrays of NumPy and JAX stay what they are, dtypes included, and a tree of them is returned as it is. Only those
    that lie on a mesh with axes of type `Explicit` are taken as if its axes were `Auto`: rows are gathered from them.
    Lists of numbers (nested ones too) and everything with `__array__` (PyTorch and TensorFlow tensors,
    pandas tables) become NumPy arrays. Python scalars stay, for `rows` to name them. Integers of 64 bits must have
    values of 32, as long as JAX cuts them off (`jax_enable_x64`).

    Args:
        tree: any nesting of dicts, lists, tuples and registered nodes.
        name: what the tree is called in error messages.

    Raises:
        TypeError: for a leaf that is no array of numbers; the message names its path.
        ValueError: for a ragged list, or integers that JAX would cut off.

    Example:
        >>> as_arrays({"a": [1, 2], "b": [[0.5], [1.5]]})
        {'a': array([1, 2]), 'b': array([[0.5], [1.5]])}
    """
    if all(map(_is_ready, jax.tree.leaves(tree, is_leaf=_stops_here))):
        return tree
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: _as_array(leaf, join_name(name, path)), tree, is_leaf=_stops_here
    )


def as_batch(batch: Any, where: str = "", *, listed: bool = False) -> Batch:
    """Turns the leaves of a batch into arrays, as `as_arrays` does, and leaves its form alone.

    Args:
        batch: what a user or an iterable gave as a batch.
        where: a prefix for error messages, such as `"batch 3: "`.
        listed: whether a list means a tuple, unless it is an array of numbers. PyTorch's collate function makes
            lists of tuples, so a list of up to three parts that holds PyTorch tensors is taken that way in any case.

    Raises:
        TypeError: for a leaf that is no array of numbers; the message names its path.
        ValueError: for a ragged list, or integers that JAX would cut off.

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
    """A batch whose NumPy arrays nobody else can write to.

    Example:
        >>> x = np.zeros(2)
        >>> np.shares_memory(copied({"x": x})["x"], x)
        False
    """
    return jax.tree.map(lambda leaf: leaf.copy() if isinstance(leaf, np.ndarray) else leaf, batch)


def is_leaf(value: Any) -> bool:
    """Whether JAX sees `value` as a single leaf, not as a container.

    Example:
        >>> is_leaf(3), is_leaf([3]), is_leaf(None)
        (True, False, False)
    """
    return jax.tree_util.all_leaves([value])


def is_array_like(value: Any) -> bool:
    """Whether `value` is an array or offers to become one.

    Example:
        >>> is_array_like(np.zeros(3)), is_array_like([3]), is_array_like(iter([]))
        (True, False, False)
    """
    return isinstance(value, (np.ndarray, jax.Array)) or (hasattr(value, "__array__") and not isinstance(value, type))


def _is_ready(leaf: Any) -> bool:
    if isinstance(leaf, jax.Array):
        return not _lies_explicitly(leaf)
    if not isinstance(leaf, np.ndarray) or leaf.dtype.kind not in _NUMERIC_KINDS or not leaf.dtype.isnative:
        return False
    return _beyond_32_bits(leaf) is None


def _lies_explicitly(array: jax.Array) -> bool:
    """Whether JAX wants to be told where what is computed from an array shall lie."""
    place = array.sharding
    return isinstance(place, NamedSharding) and AxisType.Explicit in place.mesh.axis_types


def _automatic(array: jax.Array) -> jax.Array:
    mesh = array.sharding.mesh  # type: ignore[attr-defined]  # a NamedSharding
    return jax.device_put(array, NamedSharding(Mesh(mesh.devices, mesh.axis_names), array.sharding.spec))  # type: ignore[attr-defined]


def holds_arrays(tree: PyTree) -> bool:
    """Whether some leaf of a tree is array-like.

    Example:
        >>> holds_arrays((np.zeros(3), 1)), holds_arrays(([1, 2], 1))
        (True, False)
    """
    return any(map(is_array_like, jax.tree.leaves(tree, is_leaf=_stops_here)))


def _stops_here(value: Any) -> bool:
    # JAX warns of iterators that it meets in a tree: ours are named in an error of their own.
    return _is_number_list(value) or isinstance(value, Iterator)


def _is_number_list(value: Any) -> bool:
    """Only the first element is looked at: NumPy finds out about the others when it converts the list."""
    if type(value) is not list:
        return False
    while isinstance(value, (list, tuple)):
        if not value:
            return True
        value = value[0]
    return isinstance(value, _SCALARS)


def _as_array(leaf: Any, name: str) -> Any:
    if isinstance(leaf, jax.Array):
        return _automatic(leaf) if _lies_explicitly(leaf) else leaf
    if isinstance(leaf, list):
        try:
            array = np.asarray(leaf)
        except ValueError as error:
            raise ValueError(
                f"{name} is a ragged list: its elements have different lengths, so it is not an array ({error}). "
                "Pad the elements to one length, or give a tree of arrays."
            ) from error
        return _checked(array, name)
    if isinstance(leaf, np.ndarray):
        return _checked(leaf, name)
    if isinstance(leaf, _SCALARS) and not isinstance(leaf, (str, bytes)):
        return leaf
    if not is_array_like(leaf):
        raise TypeError(
            f"{name} is a {type(leaf).__name__}, which is not an array and cannot become one. Give NumPy or JAX "
            "arrays, lists of numbers, or objects with `__array__`."
        )
    try:
        array = np.asarray(leaf)
    except Exception as error:
        raise TypeError(
            f"{name} is a {type(leaf).__name__} that could not be turned into a NumPy array: {error} "
            "Turn it into one first (for a PyTorch tensor, `tensor.detach().cpu().numpy()`)."
        ) from error
    return _checked(array, name)


def _checked(array: np.ndarray, name: str) -> Array:
    dtype = array.dtype
    if dtype.kind in _NUMERIC_KINDS:
        # JAX takes native byte order only; files of other systems (IDX, FITS) are read with another.
        array = array if dtype.isnative else array.astype(dtype.newbyteorder("="))
        value = _beyond_32_bits(array)
        if value is not None:
            raise ValueError(
                f"{name} contains {value}, which does not fit into 32 bits: JAX would make another number of it. "
                "Switch 64 bits on, `jax.config.update('jax_enable_x64', True)`, rescale the values, or give floats."
            )
        return array
    if jax.dtypes.issubdtype(dtype, np.number):  # bfloat16, float8, int4, ... which NumPy calls void
        return array
    raise TypeError(
        f"{name} has the dtype {dtype}, which holds no numbers. Encode it as numbers first (strings as indices, "
        "dates as floats), or convert it with `.astype(...)`."
    )


_FITTING: dict[int, weakref.ref[np.ndarray]] = {}
"""By its id, each array of a file opened only for reading whose values all fit: it is read through once."""
_BLOCK = 2**17  # values, which stay in the processor's cache between the search for the least and for the greatest


def _beyond_32_bits(array: np.ndarray) -> int | None:
    """A value that JAX would cut off, if there is one."""
    dtype = array.dtype
    if dtype.itemsize != 8 or dtype.kind not in "iu" or not array.size or jax.dtypes.canonicalize_dtype(dtype) == dtype:
        return None
    key = id(array)
    known = _FITTING.get(key)
    if known is not None and known() is array:
        return None
    fits = np.iinfo(np.int32 if dtype.kind == "i" else np.uint32)
    as_stored = sorted(range(array.ndim), key=lambda axis: -abs(array.strides[axis]))
    values = np.atleast_1d(array.transpose(as_stored))
    step = max(1, _BLOCK * len(values) // values.size)
    for start in range(0, len(values), step):
        block = values[start : start + step]
        low, high = int(block.min()), int(block.max())
        if low < fits.min or high > fits.max:
            return high if high > fits.max else low
    if isinstance(array, np.memmap) and array.mode == "r":  # no other array can change the values either
        _FITTING[key] = weakref.ref(array, lambda _: _FITTING.pop(key, None))
    return None
