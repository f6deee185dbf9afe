"""Patterns of parameter paths, and trees that hold only the parameters that match.

A pattern is matched with the whole path of a parameter, such as `Dense_0/kernel`, by `fnmatch.fnmatchcase`: `*` stands
for any characters, slashes included.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from fnmatch import fnmatchcase
from typing import Any

import jax
import optax

from elegy.names import listed, path_name
from elegy.types import PyTree

_MOST_PATHS = 20


def as_patterns(value: str | Sequence[str], what: str) -> tuple[str, ...]:
    """Converts a pattern, or several, to a tuple.

    Args:
        value: a string, or a list or tuple of strings.
        what: the name of the argument, for messages.

    Raises:
        TypeError: if it is anything else.
        ValueError: if a pattern is empty.

    Example:
        >>> as_patterns("head/*", "freeze"), as_patterns(["a", "b"], "freeze")
        (('head/*',), ('a', 'b'))
    """
    patterns: tuple[Any, ...] = tuple(value) if isinstance(value, (list, tuple)) else (value,)
    if wrong := [pattern for pattern in patterns if not isinstance(pattern, str)]:
        raise TypeError(f"{what} takes patterns of parameter paths, such as 'backbone/*', not {wrong[0]!r}.")
    if "" in patterns:
        raise ValueError(f"{what} was given an empty pattern. The pattern of all parameters is '*'.")
    return patterns


def matching(pattern: str, paths: Iterable[str]) -> list[str]:
    """Returns the paths that match a pattern.

    Example:
        >>> matching("*/kernel", ["a/kernel", "a/bias", "a/b/kernel"])
        ['a/kernel', 'a/b/kernel']
    """
    return [path for path in paths if fnmatchcase(path, pattern)]


def parameter_paths(params: PyTree) -> list[str]:
    """Returns the paths of all parameters, also of those that `select` left out.

    Example:
        >>> parameter_paths(select({"a": 1, "b": 2}, lambda path: path == "a"))
        ['a', 'b']
    """
    return [path_name(path) for path, _ in jax.tree_util.tree_leaves_with_path(params, is_leaf=_left_out)]


def select(params: PyTree, keep: Callable[[str], bool]) -> PyTree:
    """Replaces the parameters whose paths are not kept by `optax.MaskedNode()`, which has no leaves.

    Example:
        >>> select({"a": 1, "b": 2}, lambda path: path == "a")
        {'a': 1, 'b': MaskedNode()}
    """
    return jax.tree_util.tree_map_with_path(
        lambda path, leaf: leaf if keep(path_name(path)) else optax.MaskedNode(), params
    )


def combine(part: PyTree, whole: PyTree) -> PyTree:
    """Fills in the parameters that `select` left out.

    Args:
        part: the result of `select`, perhaps with other values.
        whole: the tree from which the others are taken.

    Example:
        >>> combine(select({"a": 1, "b": 2}, lambda path: path == "a"), {"a": 3, "b": 4})
        {'a': 1, 'b': 4}
    """
    return jax.tree.map(lambda own, other: other if _left_out(own) else own, part, whole, is_leaf=_left_out)


def no_match(pattern: str, paths: Sequence[str]) -> str:
    """Returns a message about a pattern that matches no parameter.

    Args:
        pattern: the pattern.
        paths: the paths of all parameters.

    Example:
        >>> no_match("head", ["head/bias"])
        "the pattern 'head' matches no parameter (write 'head/*' for all parameters below 'head'). There is 'head/bias'"
    """
    below = pattern.rstrip("/")
    hint = f" (write '{below}/*' for all parameters below {below!r})" if matching(f"{below}/*", paths) else ""
    there = "There is" if len(paths) == 1 else "There are"
    return f"the pattern {pattern!r} matches no parameter{hint}. {there} {few(paths)}"


def few(paths: Sequence[str]) -> str:
    """Formats the first paths of a list for a message.

    Example:
        >>> few(["a", "b"]), few([])
        ("'a' and 'b'", 'none')
    """
    more = len(paths) - _MOST_PATHS
    return (listed(paths[:_MOST_PATHS]) + (f" and {more} more" if more > 0 else "")) or "none"


def _left_out(node: Any) -> bool:
    return isinstance(node, optax.MaskedNode)
