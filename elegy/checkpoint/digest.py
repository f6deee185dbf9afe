"""A digest of arrays, by which a checkpoint refers to weights that it does not hold."""

from __future__ import annotations

import hashlib

import numpy as np

from elegy.checkpoint.arrays import to_stored
from elegy.checkpoint.leaves import named_leaves
from elegy.distributed import collect
from elegy.types import PyTree


def digest(tree: PyTree) -> str:
    """Returns the SHA-256 of the arrays of a tree: of their paths, dtypes, shapes and bytes.

    In a program of several processes, all must call it if arrays are divided over them.

    Args:
        tree: any tree of arrays; the order of its leaves does not count.

    Returns:
        64 hexadecimal digits.

    Example:
        >>> one, other = digest({"w": np.zeros(2), "b": np.ones(3)}), digest({"b": np.ones(3), "w": np.zeros(2)})
        >>> one == other, one == digest({"w": np.zeros(2, np.float32), "b": np.ones(3)})
        (True, False)
    """
    total = hashlib.sha256()
    for path, leaf in sorted(named_leaves(tree).items()):
        array = np.asarray(to_stored(collect(leaf)))  # one at a time: together they may not fit into the host's memory
        total.update(f"{path}\0{array.dtype.name}\0{array.shape}\0".encode())
        total.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8))
    return total.hexdigest()
