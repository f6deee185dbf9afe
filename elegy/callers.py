"""Where warnings point to: the line of the user's program that called Elegy."""

from __future__ import annotations

import os
import sys

_PACKAGE = os.path.dirname(os.path.abspath(__file__)) + os.sep


def stacklevel_of_caller() -> int:
    """Returns the `stacklevel` with which `warnings.warn`, called in the same function, names the caller of Elegy.

    The `skip_file_prefixes` of `warnings.warn` does the same from Python 3.12 on.

    Example:
        >>> stacklevel_of_caller()
        1
    """
    frame, level = sys._getframe(1), 1
    while frame.f_code.co_filename.startswith(_PACKAGE) and frame.f_back is not None:
        frame, level = frame.f_back, level + 1
    return level
