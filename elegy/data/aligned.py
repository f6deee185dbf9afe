"""NumPy arrays in aligned memory, which the CPU backend reads without copying it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

ALIGNMENT = 64
"""Bytes. The CPU backend uses the memory of a NumPy array that starts at a multiple of this, and copies any other."""

SMALL = 4096
"""Bytes. For arrays of less, finding aligned memory takes longer than the copy that it saves."""


def aligned_empty(shape: Sequence[int], dtype: np.dtype) -> np.ndarray:
    """Returns an array in C order with undefined values, whose memory starts at a multiple of `ALIGNMENT`.

    Args:
        shape: its shape.
        dtype: its dtype.

    Example:
        >>> array = aligned_empty((3, 5), np.dtype("float32"))
        >>> array.shape, array.ctypes.data % ALIGNMENT
        ((3, 5), 0)
    """
    memory = np.empty(math.prod(shape) * dtype.itemsize + ALIGNMENT, np.uint8)
    start = -memory.__array_interface__["data"][0] % ALIGNMENT  # half of the time of `memory.ctypes.data`
    return np.ndarray(shape, dtype, memory, start)


def aligned_copy(array: np.ndarray) -> np.ndarray:
    """Returns a copy of an array, in aligned memory and C order if it has `SMALL` bytes or more.

    Args:
        array: the array. A subclass, and an array of Python objects, is copied by its own method.

    Example:
        >>> copy = aligned_copy(np.ones((64, 64))[:, ::-1])
        >>> copy.flags.c_contiguous, copy.ctypes.data % ALIGNMENT
        (True, 0)
    """
    if array.nbytes < SMALL or type(array) is not np.ndarray or array.dtype.hasobject:
        return array.copy()
    copy = aligned_empty(array.shape, array.dtype)
    np.copyto(copy, array)
    return copy
