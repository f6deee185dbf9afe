"""Locks of files, and of directories of checkpoints, which the operating system releases when a process ends."""

from __future__ import annotations

import contextlib
import os
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from elegy.errors import CheckpointError

LOCK_FILE = "checkpoints.lock"

_OPEN: weakref.WeakSet[Any] = weakref.WeakSet()
"""The locked files of this process."""


def _leave_to_parent() -> None:
    # A forked process, such as a worker of a DataLoader, inherits the open file, and with it the lock. A worker that
    # outlives its parent must not keep the file locked.
    for file in list(_OPEN):
        file.close()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_to_parent)


def open_locked(path: Path) -> Any | None:
    """Opens a file, which is made if it is missing, and locks it until it is closed or the process ends, however.

    Processes that are forked from this one do not hold the lock. Where the system or the file system has no locks,
    every file counts as free.

    Returns:
        The open file; None if another one, of any process, has the lock.

    Raises:
        OSError: if the file cannot be opened for writing.
    """
    file = path.open("a")
    if not lock(file):
        file.close()
        return None
    _OPEN.add(file)
    return file


def lock(file: Any) -> bool:
    """Locks an open file; returns False if another open file has the lock."""
    try:
        import fcntl
    except ImportError:  # Windows
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return True
    return True


@contextlib.contextmanager
def reserved(directory: Path) -> Iterator[None]:
    """While the block runs, no other trainer saves checkpoints to a directory, which is made if it is missing.

    The lock is a file in the directory, which the block's end deletes.

    Args:
        directory: an absolute path.

    Raises:
        CheckpointError: if another trainer, of any process, has reserved it, or nothing can be written there.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp()) / "run"
        >>> with reserved(folder):
        ...     os.listdir(folder)
        ['checkpoints.lock']
        >>> os.listdir(folder)
        []
    """
    path = directory / LOCK_FILE
    try:
        directory.mkdir(parents=True, exist_ok=True)
        file = _open_in_place(path)
    except OSError as error:
        raise CheckpointError(f"checkpoints cannot be saved to {directory}: {error}.") from error
    try:
        if file is None:
            raise CheckpointError(
                f"another trainer is saving to {directory}, and the two would delete each other's checkpoints: give "
                "each run its own directory, or wait for the end of the other one."
            )
        yield
    finally:
        if file is not None and not file.closed:  # a forked process that gets here has left it to its parent
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)
            file.close()


def _open_in_place(path: Path) -> Any | None:
    """As `open_locked`, for a file that the one who has its lock deletes."""
    while True:
        file = open_locked(path)
        if file is None:
            return None
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return file
        file.close()  # it was deleted after it had been opened
