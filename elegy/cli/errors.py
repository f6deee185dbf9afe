"""What ends a command with a message instead of a traceback."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class CliError(Exception):
    """The command line is wrong; the message says what to write instead."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Returns a sentence with the known names that are nearest to a name; empty if none is near.

    Args:
        name: the name that is not known.
        known: the names that are.

    Example:
        >>> nearest("build.widht", ["build.width", "fit.epochs"])
        " Did you mean 'build.width'?"
        >>> nearest("learning_rate", ["optimizer.learning_rate", "fit.epochs"])
        " Did you mean 'optimizer.learning_rate'?"
    """
    known = list(known)
    found = [one for one in known if one.rpartition(".")[2] == name.rpartition(".")[2]][:3]
    found = found or difflib.get_close_matches(name, known, 1)
    return f" Did you mean {' or '.join(map(repr, found))}?" if found else ""
