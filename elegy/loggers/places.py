"""Chooses the file or directory of a run, so that no run writes to the files of another one."""

from __future__ import annotations

import itertools
import os
import re
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

from elegy.callers import stacklevel_of_caller

_TAKEN: set[str] = set()
"""The files and directories of the running loggers of this process."""


def local(path: str | os.PathLike[str]) -> Path:
    """Returns the path of a logger's file or directory.

    Raises:
        ValueError: if it is an address, such as `gs://bucket/log.csv`.

    Example:
        >>> local("run/log.csv")
        PosixPath('run/log.csv')
    """
    if re.match(r"[A-Za-z][\w+.-]+://", text := os.fspath(path)):
        raise ValueError(
            f"{text} is an address, but a logger writes to a local or mounted path. Give one and copy the finished "
            "files; checkpoints can be saved at an address."
        )
    return Path(text)


def take(candidates: Iterator[Path], is_free: Callable[[Path], bool]) -> Path:
    """Returns the first candidate without logs of another run, and reserves it in this process.

    Args:
        candidates: the user's path, then an endless sequence of alternatives.
        is_free: returns True if a path has no logs.

    Raises:
        OSError: if a path cannot be read.

    Warns:
        UserWarning: if the result is not the user's path.
    """
    wanted = path = next(candidates)
    while os.path.realpath(path) in _TAKEN or not is_free(path):
        path = next(candidates)
    reserve(path)
    if path != wanted:
        warnings.warn(
            f"{wanted} has the logs of another run, which are not changed: this run writes its logs to {path}.",
            stacklevel=stacklevel_of_caller(),
        )
    return path


def reserve(path: Path) -> None:
    """Marks `path` as in use by a running logger."""
    _TAKEN.add(os.path.realpath(path))


def release(path: Path) -> None:
    """Marks `path` as no longer in use."""
    _TAKEN.discard(os.path.realpath(path))


def file_of(asked: Path, run: str | None, is_free: Callable[[Path], bool]) -> Path:
    """Returns the file of a run, and reserves it.

    Args:
        asked: the user's path. Missing directories are made.
        run: the name of the file of the run to continue; None for a new run. A name that is not one of
            `numbered(asked)` is that of another logger, and the run is new.
        is_free: returns True if a path has no logs.

    Raises:
        OSError: if a path cannot be read.
    """
    asked.parent.mkdir(parents=True, exist_ok=True)
    if run is None or not re.fullmatch(f"{re.escape(asked.stem)}(_\\d+)?{re.escape(asked.suffix)}", run):
        return take(numbered(asked), is_free)
    reserve(asked.with_name(run))
    return asked.with_name(run)


def numbered(path: Path) -> Iterator[Path]:
    """Returns `log.csv`, `log_1.csv`, `log_2.csv`, ...

    Args:
        path: the first file.
    """
    yield path
    for number in itertools.count(1):
        yield path.with_name(f"{path.stem}_{number}{path.suffix}")
