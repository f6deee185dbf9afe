"""Indexes into the arguments of a loss or a metric, and renames them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from elegy.names import contents, listed, there_are


def index_paths(kwargs: Mapping[str, Any]) -> tuple[tuple[str, tuple[Any, ...]], ...]:
    """Normalizes the arguments of `index_into`.

    Example:
        >>> index_paths({"target": "a", "preds": ["b", 0]})
        (('target', ('a',)), ('preds', ('b', 0)))
    """
    return tuple((k, tuple(v) if isinstance(v, (list, tuple)) else (v,)) for k, v in kwargs.items())


def index_arguments(
    paths: Sequence[tuple[str, tuple[Any, ...]]], kwargs: Mapping[str, Any], what: str
) -> dict[str, Any]:
    """Replaces the arguments that have a path by the value at the path.

    Raises:
        KeyError: if an argument is missing or has nothing at the path.

    Example:
        >>> index_arguments([("target", ("a", 0))], {"target": {"a": [7]}}, "the loss 'mse'")
        {'target': 7}
    """
    out = dict(kwargs)
    for name, path in paths:
        if out.get(name) is None:
            raise KeyError(f"{what} indexes into {name!r}, which is missing: {_there_are(kwargs)}.")
        for step in path:
            try:
                out[name] = lookup(out[name], step)
            except (KeyError, IndexError, TypeError) as error:
                within = f" of the path {path}" if len(path) > 1 else ""
                raise KeyError(f"{what}: {name!r} has nothing at {step!r}{within}: {contents(out[name])}.") from error
    return out


def lookup(value: Any, step: Any) -> Any:
    """Returns the part of a value at a key, an index or, in a named tuple, a field.

    Raises:
        KeyError, IndexError, TypeError: if the value has no such part.

    Example:
        >>> lookup({"a": 7}, "a")
        7
    """
    if isinstance(step, str) and step in getattr(value, "_fields", ()):
        return getattr(value, step)
    return value[step]


def rename_given(names: Sequence[tuple[str, str]], kwargs: Mapping[str, Any], what: str) -> dict[str, Any]:
    """Renames arguments from the given names to the expected names.

    Raises:
        KeyError: if an argument is missing.

    Example:
        >>> rename_given([("values", "loss")], {"loss": 1.0, "preds": 2.0}, "the metric 'mean'")
        {'preds': 2.0, 'values': 1.0}
    """
    missing = [given for _, given in names if kwargs.get(given) is None]
    if missing:
        verb = "is" if len(missing) == 1 else "are"
        raise KeyError(f"{what} takes {listed(missing)}, which {verb} missing: {_there_are(kwargs)}.")
    moved = {given for _, given in names}
    out = {k: v for k, v in kwargs.items() if k not in moved}
    out.update((expected, kwargs[given]) for expected, given in names)
    return out


def _there_are(kwargs: Mapping[str, Any]) -> str:
    return there_are(name for name, value in kwargs.items() if value is not None)
