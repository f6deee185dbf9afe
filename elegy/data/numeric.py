"""Converts NumPy arrays to dtypes that JAX supports."""

from __future__ import annotations

import weakref
from typing import NoReturn

import jax
import jax.numpy as jnp
import numpy as np

from elegy.names import type_name

_KINDS = "biufc"
_WIDEST = {"f": np.dtype(np.float64), "c": np.dtype(np.complex128)}


def is_numeric(array: np.ndarray) -> bool:
    """True if JAX supports the array's dtype.

    Example:
        >>> is_numeric(np.zeros(2)), is_numeric(np.array(["a"])), is_numeric(np.ma.zeros(2))
        (True, False, False)
    """
    dtype = array.dtype
    return (
        dtype.kind in _KINDS
        and dtype.isnative
        and dtype.itemsize <= 8 * (1 + (dtype.kind == "c"))
        and not isinstance(array, (np.ma.MaskedArray, np.matrix))
        and _beyond_32_bits(array) is None
    )


def as_numeric(array: np.ndarray, name: str) -> np.ndarray:
    """Converts an array to a dtype that JAX supports; values change in precision only.

    The byte order becomes the native one, long doubles become doubles (the widest type of JAX), arrays of Python
    numbers get a numeric dtype, and matrices and masked arrays without masked values become plain arrays.

    Args:
        array: any NumPy array.
        name: the name of the array in messages.

    Raises:
        TypeError: if the array is not an array of numbers.
        ValueError: if values are masked, or integers do not fit into 32 bits without `jax_enable_x64`.

    Example:
        >>> as_numeric(np.array([1, 2.5], object), "labels")
        array([1. , 2.5])
    """
    if isinstance(array, np.ma.MaskedArray):
        array = _unmasked(array, name)
    if isinstance(array, np.matrix):  # the `todense()` of SciPy; batches of batches would need a third dimension
        array = np.asarray(array)
    if array.dtype.kind == "O":
        array = _of_objects(array, name)
    dtype = array.dtype
    if dtype.kind in _KINDS:
        if dtype.itemsize > getattr(_WIDEST.get(dtype.kind), "itemsize", 8):
            array = array.astype(_WIDEST[dtype.kind])
        array = array if dtype.isnative else array.astype(dtype.newbyteorder("="))
        value = _beyond_32_bits(array)
        if value is not None:
            raise ValueError(
                f"{name} contains {value}, which does not fit into 32 bits: JAX would make another number of it. "
                "Switch 64 bits on, `jax.config.update('jax_enable_x64', True)`, rescale the values, or give floats."
            )
        return array
    if dtype.kind != "m" and jnp.issubdtype(dtype, np.number):  # bfloat16, float8, int4, ... which NumPy calls void
        return array
    _refuse(array, name)


def _unmasked(array: np.ma.MaskedArray, name: str) -> np.ndarray:
    count = int(np.ma.count_masked(array))
    if count:
        raise ValueError(
            f"{name} is a masked array in which {count} of {array.size} values are masked, and nothing says what they "
            "stand for. Give `array.filled(0)`, or another value; to ignore rows, give them the sample_weight 0."
        )
    return np.asarray(array.data)


def _of_objects(array: np.ndarray, name: str) -> np.ndarray:
    """An array of Python numbers, or of arrays of one shape, with a dtype of numbers."""
    try:
        values = np.array(array.tolist())
    except ValueError as error:
        raise ValueError(
            f"{name} is an array of objects that have different shapes, so it is not one array ({error}). Pad them to "
            "one shape."
        ) from error
    if values.dtype.kind in _KINDS or values.dtype.kind in "US":
        return values
    numbers = (bool, int, float, complex, np.generic)
    other = next((item for item in array.ravel() if not isinstance(item, numbers)), array.ravel()[0])
    shown = "None" if other is None else f"{type_name(other)} ({other!r:.40})"
    raise TypeError(
        f"{name} has the dtype object and holds {shown}, which does not fit into an "
        "array of numbers. Replace missing values, and convert the others, for example with `.astype(np.float32)`."
    )


def _refuse(array: np.ndarray, name: str) -> NoReturn:
    dtype = array.dtype
    if dtype.kind in "US":
        shown = f" (the first is {array.ravel()[:1].tolist()[0]!r:.40})" if array.size else ""
        how = f"holds text{shown}. Encode it, for example `classes, codes = np.unique(values, return_inverse=True)`"
    elif dtype.kind in "Mm":
        how = "holds times. Make numbers of them, for example `(times - times.min()) / np.timedelta64(1, 'D')`"
    elif dtype.names:
        how = "has fields. Give a dict of them, `{name: data[name] for name in data.dtype.names}`"
    else:
        how = "cannot be computed with. Convert it with `.astype(...)`"
    raise TypeError(f"{name} has the dtype {dtype}, which is not a dtype of numbers: it {how}.")


_FITTING: dict[int, weakref.ref[np.ndarray]] = {}
"""Read-only memory maps whose values all fit into 32 bits, by id, so that each is checked once."""
_BLOCK = 2**17  # values: they stay in the processor's cache between `min` and `max`


def _beyond_32_bits(array: np.ndarray) -> int | None:
    """Returns a value that does not fit into 32 bits, or None."""
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
    if isinstance(array, np.memmap) and array.mode == "r":  # its values cannot change
        _FITTING[key] = weakref.ref(array, lambda _: _FITTING.pop(key, None))
    return None
