"""How things are named in logs and error messages."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable
from typing import Any

import jax


def snake_case(name: str) -> str:
    """Turns a class name into a log name.

    Example:
        >>> snake_case("MeanSquaredError"), snake_case("L1L2"), snake_case("MyAUCScore")
        ('mean_squared_error', 'l1l2', 'my_auc_score')
    """
    name = re.sub(r"([A-Z]+)([A-Z][a-z])", r"\1_\2", name)
    return re.sub(r"([a-z])([A-Z])", r"\1_\2", name).lower()


def name_of(thing: Any) -> str:
    """The log name of a loss, a metric, a function or a class instance.

    Example:
        >>> def my_loss(target, preds): ...
        >>> name_of(my_loss)
        'my_loss'
    """
    given = getattr(thing, "name", None)
    if isinstance(given, str) and given:
        return given
    while isinstance(thing, functools.partial):
        thing = thing.func
    name = getattr(thing, "__name__", None)
    return name if isinstance(name, str) else snake_case(type(thing).__name__)


def unique_names(names: Iterable[str]) -> list[str]:
    """Makes names unique with `_1`, `_2`, ... in order of appearance.

    Example:
        >>> unique_names(["loss", "acc", "loss", "loss"])
        ['loss', 'acc', 'loss_1', 'loss_2']
    """
    out: list[str] = []
    taken: set[str] = set()
    for name in names:
        candidate, k = name, 0
        while candidate in taken:
            k += 1
            candidate = f"{name}_{k}"
        taken.add(candidate)
        out.append(candidate)
    return out


def path_name(path: Any) -> str:
    """A JAX key path as people write it.

    Example:
        >>> import jax
        >>> [path_name(p) for p, _ in jax.tree_util.tree_leaves_with_path({"a": [1, 2]})]
        ['a/0', 'a/1']
    """
    return jax.tree_util.keystr(path, simple=True, separator="/") or "(root)"
