"""Losses and metrics given alone, in lists or in dicts: each gets a name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from elegy.names import unique_names


def flatten_named(things: Any, name_of: Callable[[Any], str]) -> list[tuple[str, Any]]:
    """Lists the losses or metrics in a structure with unique names.

    A dict's key is the name of what it holds; for a list inside a dict it is the prefix of the items' own names.

    Args:
        things: one thing, or any nesting of lists, tuples and dicts.
        name_of: gives a thing's own name.

    Returns:
        Pairs of a name and a thing, in order.

    Example:
        >>> flatten_named([max, {"a": min, "b": [max, max]}], lambda f: f.__name__)
        [('max', <built-in function max>), ('a', <built-in function min>),
         ('b/max', <built-in function max>), ('b/max_1', <built-in function max>)]
    """
    pairs = list(_walk("", things, name_of, in_list=True))
    return list(zip(unique_names(name for name, _ in pairs), (thing for _, thing in pairs), strict=True))


def _walk(path: str, things: Any, name_of: Callable[[Any], str], in_list: bool) -> list[tuple[str, Any]]:
    if isinstance(things, Mapping):
        return [
            pair
            for key, thing in things.items()
            for pair in _walk(f"{path}/{key}" if path else str(key), thing, name_of, False)
        ]
    if isinstance(things, (list, tuple)):
        return [pair for thing in things for pair in _walk(path, thing, name_of, True)]
    if path and not in_list:
        return [(path, things)]
    return [(f"{path}/{name_of(things)}" if path else name_of(things), things)]
