"""The processes of a distributed run act as one: they pass each stage together or fail together."""

from __future__ import annotations

import secrets
from collections.abc import Callable
from typing import TypeVar

import jax
import numpy as np

from elegy.errors import CheckpointError

T = TypeVar("T")


def leads() -> bool:
    """Whether this process does what only one may do."""
    return jax.process_index() == 0


def shared_suffix() -> str:
    """A random name that all processes share.

    Example:
        >>> len(shared_suffix())
        16
    """
    word = np.frombuffer(secrets.token_bytes(8), np.uint8)
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        word = np.asarray(multihost_utils.broadcast_one_to_all(word))
    return word.tobytes().hex()


def together(action: Callable[[], T]) -> T:
    """Runs `action` in every process and waits for the slowest.

    Raises:
        CheckpointError: when it failed in another process; where it failed, its own error is raised.

    Example:
        >>> together(lambda: 3)
        3
    """
    if jax.process_count() == 1:
        return action()
    from jax.experimental import multihost_utils

    try:
        result = action()
    except Exception:
        multihost_utils.process_allgather(np.int32(1))
        raise
    failed = np.flatnonzero(multihost_utils.process_allgather(np.int32(0)))
    if failed.size:
        raise CheckpointError(f"the checkpoint was given up: process {failed[0]} failed, its own error says why.")
    return result
