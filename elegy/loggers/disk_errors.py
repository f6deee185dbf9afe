"""Errors of files that cannot be written any more, such as those of a full disk."""

from __future__ import annotations

import errno
import os

_OF_DISKS = {getattr(errno, name, None) for name in ("ENOSPC", "EDQUOT", "EFBIG", "EIO", "EROFS")}
"""A service may raise other errors, which are not those of the file of its logger."""

_NOTE = " could not write its log."


def name_file(error: OSError, path: str | os.PathLike[str] | None, logger: str) -> bool:
    """Names the file and the logger in the error of a disk: Python does not name the file of a failed write.

    Args:
        error: the error, which is changed; it may name a file of the logger already.
        path: the file or the directory of the logger; None if it has none.
        logger: the name of its class.

    Returns:
        True for the error of a disk that is not named yet.

    Example:
        >>> error = OSError(errno.ENOSPC, "No space left on device")
        >>> name_file(error, "log.csv", "CSV"), str(error)
        (True, "[Errno 28] No space left on device: 'log.csv'")
    """
    notes = getattr(error, "__notes__", [])
    if path is None or error.errno not in _OF_DISKS or any(note.endswith(_NOTE) for note in notes):
        return False
    error.filename = error.filename or os.fspath(path)
    error.add_note(f"The logger {logger}{_NOTE}")
    return True
