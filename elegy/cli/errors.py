"""What ends a command with a message instead of a traceback."""

from __future__ import annotations

import contextlib
import os
import traceback
from collections.abc import Iterable

from elegy.suggestions import near

_ELEGY = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
_BETWEEN = ("<string>", os.path.abspath(contextlib.__file__))  # code that dataclasses make, and `with` blocks


class CliError(Exception):
    """The command line is wrong; the message says what to write instead."""


def nearest(name: str, known: Iterable[str]) -> str:
    """Returns a sentence with the known names that are nearest to a name; if none is, with those of its group.

    Args:
        name: the name that is not known.
        known: the names that are.

    Example:
        >>> nearest("build.widht", ["build.width", "fit.epochs"])
        " Did you mean 'build.width'?"
        >>> nearest("learning_rate", ["optimizer.learning_rate", "fit.epochs"])
        " Did you mean 'optimizer.learning_rate'?"
        >>> nearest("optimizer.lr", ["optimizer.steps", "optimizer.learning_rate"])
        " Did you mean 'optimizer.learning_rate'?"
        >>> nearest("build.qqq", ["build.width", "fit.epochs"])
        " Options of 'build': 'build.width'."
    """
    known = list(known)
    group, _, word = name.rpartition(".")
    same = [one for one in known if group and one.rpartition(".")[0] == group]
    found = [one for one in known if one.rpartition(".")[2] == word][:3]
    for among in (same, known):
        last = {one.rpartition(".")[2]: one for one in reversed(among)}
        found = found or [last[one] for one in near(word, last, 1)]
    if same and not found:
        return f" Options of {group!r}: {', '.join(map(repr, same))}."
    found = found or near(name, known, 1)
    return f" Did you mean {' or '.join(map(repr, found))}?" if found else ""


def is_of_elegy(error: BaseException) -> bool:
    """True if Elegy raised a TypeError, a ValueError or an OSError about what it was given, and no other code ran.

    Its message is all that a user needs; of every other error the traceback counts, such as those of the user's own
    functions, and those that have another one as their cause.
    """
    if not isinstance(error, (TypeError, ValueError, OSError)) or error.__cause__ is not None:
        return False
    files = [frame.filename for frame in traceback.extract_tb(error.__traceback__)]
    inside = [os.path.abspath(file).startswith(_ELEGY + os.sep) for file in files]
    own = all(one or file in _BETWEEN for one, file in zip(inside, files, strict=True))
    return own and bool(inside) and inside[-1] and _raised_last(error)


def _raised_last(error: BaseException) -> bool:
    """True if the last line of the traceback is a `raise`: a bug of a call, such as a missing argument, has none."""
    line = traceback.extract_tb(error.__traceback__)[-1].line or ""
    return line.startswith("raise ")
