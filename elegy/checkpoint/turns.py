"""Lets the threads of a process write a checkpoint one after another."""

from __future__ import annotations

import contextlib
import os
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path

from elegy.checkpoint.address import Address

_LOCKS: weakref.WeakValueDictionary[str, threading.Lock] = weakref.WeakValueDictionary()
_FINDING = threading.Lock()


@contextlib.contextmanager
def in_turn(path: Path | Address) -> Iterator[None]:
    """Waits while another thread of this process writes or deletes the checkpoint at a path.

    Without it, two saves could rename the same old checkpoint. Links to one directory count as the same path.

    Args:
        path: the path or address of a checkpoint.

    Example:
        >>> with in_turn(Path("/runs/best")):
        ...     _LOCKS["/runs/best"].locked()
        True
    """
    name = os.path.realpath(path) if isinstance(path, Path) else str(path)
    with _FINDING:
        lock = _LOCKS.setdefault(name, threading.Lock())
    with lock:
        yield
