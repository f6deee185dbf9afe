"""Where warnings point to: the line of the user's program that called Elegy."""

from __future__ import annotations

import contextlib
import os
import sys

import jax

_BETWEEN = (
    os.path.dirname(os.path.abspath(__file__)) + os.sep,
    os.path.dirname(os.path.abspath(jax.__file__)) + os.sep,  # it traces our steps
    os.path.abspath(contextlib.__file__),
    "<frozen ",  # such as `collections.abc`, whose mappings call our `__getitem__`
)


def stacklevel_of_caller() -> int:
    """Returns the `stacklevel` with which `warnings.warn`, called in the same function, names the caller of Elegy.

    That is the innermost frame that belongs neither to Elegy nor to JAX, which calls a step that it traces: a line of a
    step of the user's, or of the program. In a thread of our own, it is where Python begins the thread.

    The `skip_file_prefixes` of `warnings.warn` does the same from Python 3.12 on.

    Example:
        >>> stacklevel_of_caller()
        1
    """
    frame, level = sys._getframe(1), 1
    while frame.f_code.co_filename.startswith(_BETWEEN) and frame.f_back is not None:
        frame, level = frame.f_back, level + 1
    return level
