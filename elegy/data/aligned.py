"""NumPy arrays in aligned memory, which the CPU backend reads without copying it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

ALIGNMENT = 64
"""Bytes. The CPU backend uses the memory of a NumPy array that starts at a multiple of this, and copies any other."""


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
