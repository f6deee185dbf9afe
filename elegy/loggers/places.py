"""Where a run writes: no run writes into the files of another one."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

_TAKEN: set[Path] = set()
"""The files and directories that running loggers of this process write to."""


def take(candidates: Iterator[Path], is_free: Callable[[Path], bool]) -> Path:
    """Returns the first candidate that holds no logs of another run, and reserves it in this process.

    Args:
        candidates: the place that was asked for, then alternatives without end.
        is_free: tells whether a place holds no logs.

    Raises:
        OSError: If a place cannot be looked at.

    Warns:
        UserWarning: If it is not the place that was asked for.
    """
    wanted = path = next(candidates)
    while path.resolve() in _TAKEN or not is_free(path):
        path = next(candidates)
    reserve(path)
    if path != wanted:
        warnings.warn(
            f"{wanted} holds the logs of another run, which stay as they are: the logs of this run go to {path}.",
            stacklevel=2,
        )
    return path


def reserve(path: Path) -> None:
    """Notes that a running logger writes to `path`."""
    _TAKEN.add(path.resolve())


def release(path: Path) -> None:
    """Notes that the run that wrote to `path` is over."""
    _TAKEN.discard(path.resolve())
