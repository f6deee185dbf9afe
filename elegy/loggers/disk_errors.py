"""Errors of files that cannot be written any more, such as those of a full disk."""

from __future__ import annotations

import errno
import os

_OF_DISKS = {getattr(errno, name, None) for name in ("ENOSPC", "EDQUOT", "EFBIG", "EIO", "EROFS")}
"""A service may raise other errors, which are not those of the file of its logger."""


def name_file(error: OSError, path: str | os.PathLike[str] | None, logger: str) -> bool:
    """Names the file and the logger in the error of a disk: Python does not name the file of a failed write.

    Args:
        error: the error, which is changed.
        path: the file or the directory of the logger; None if it has none.
        logger: the name of its class.

    Returns:
        True for the error of a disk that is not named yet.

    Example:
        >>> error = OSError(errno.ENOSPC, "No space left on device")
        >>> name_file(error, "log.csv", "CSV"), str(error)
        (True, "[Errno 28] No space left on device: 'log.csv'")
    """
    if path is None or error.filename is not None or error.errno not in _OF_DISKS:
        return False
    error.filename = os.fspath(path)
    error.add_note(f"The logger {logger} could not write its log.")
    return True
