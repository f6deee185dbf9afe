"""Finds the known names that are nearest to a misspelled one."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from typing import Any


def near(name: str, known: Iterable[str], count: int = 3) -> list[str]:
    """Returns the known names that are nearest to a name, the nearest first: similar ones, and what it abbreviates.

    Args:
        name: the name that is not known.
        known: the names that are.
        count: how many names to return at most.

    Example:
        >>> near("lr", ["steps", "learning_rate"]), near("EarlyStop", ["Timer", "EarlyStopping"]), near("x", ["steps"])
        (['learning_rate'], ['EarlyStopping'], [])
    """
    import difflib  # here, because `import elegy` must cost nothing

    case = name[:1].isupper()
    order = sorted(known, key=lambda one: (one[:1].isupper() == case, sum(map(str.isupper, one))))
    plain = {one.casefold(): one for one in order}  # of names that differ in case alone, the last one
    word = name.casefold()
    short = [one for key, one in plain.items() if word and word == "".join(part[:1] for part in key.split("_") if part)]
    similar = [plain[key] for key in difflib.get_close_matches(word, plain, count)]
    return list(dict.fromkeys([*short, *similar]))[:count]


def module_getattr(module: str) -> Callable[[str], Any]:
    """Makes the `__getattr__` of a module: its AttributeError has the public names that are nearest.

    Args:
        module: the name of the module.

    Example:
        >>> module_getattr("elegy.losses")("Hubr")
        Traceback (most recent call last):
        ...
        AttributeError: module 'elegy.losses' has no attribute 'Hubr'. Did you mean 'Huber'?
    """

    def missing(name: str) -> Any:
        found = [] if name.startswith("_") else near(name, getattr(sys.modules[module], "__all__", ()))
        more = f". Did you mean {' or '.join(map(repr, found))}?" if found else ""
        raise AttributeError(f"module {module!r} has no attribute {name!r}{more}")

    return missing
