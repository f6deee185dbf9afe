"""The order of the examples in an epoch."""

from __future__ import annotations

import numpy as np


def epoch_permutation(seed: int, epoch: int, size: int, attempt: int = 0) -> np.ndarray:
    """Returns the order of the examples in an epoch.

    It depends on the arguments only, not on NumPy's global state, so a resumed run has the same order.

    Args:
        seed: any integer.
        epoch: the epoch's number, from 0.
        size: the number of examples.
        attempt: another number gives another order.

    Returns:
        A permutation of `range(size)`, of shape (size,), int32 where that is wide enough, int64 elsewhere.

    Example:
        >>> sorted(epoch_permutation(42, epoch=0, size=5).tolist())
        [0, 1, 2, 3, 4]
    """
    order = np.arange(size, dtype=index_dtype(size))
    generator(seed, epoch, attempt).shuffle(order)
    return order


def generator(seed: int, epoch: int, attempt: int = 0) -> np.random.Generator:
    """Returns the random generator of an epoch's order; arguments as for `epoch_permutation`."""
    # `np.random.SeedSequence` refuses negative numbers, which are valid seeds here.
    entropy = np.random.SeedSequence(seed % 2**64, spawn_key=(epoch, attempt) if attempt else (epoch,))
    return np.random.Generator(np.random.PCG64(entropy))


def index_dtype(size: int) -> type[np.signedinteger]:
    """Returns int32 if it can index `size` examples, otherwise int64.

    Example:
        >>> index_dtype(60_000).__name__
        'int32'
    """
    return np.int32 if size <= np.iinfo(np.int32).max else np.int64
