"""Checks the types of options of losses and metrics, so that a value of another option is not taken for a number."""

from __future__ import annotations

import dataclasses
import functools
import numbers
from typing import Any

import numpy as np

from elegy.integers import as_integer
from elegy.losses.pairing import is_ours
from elegy.pytree import Pytree

_WANTED = {"float": "a number", "int": "an integer", "bool": "True or False"}


def check_option_types(tree: Pytree) -> None:
    """Checks the options of a loss or a metric of this package that are numbers or switches.

    Keras, torchmetrics and others have the same options in other orders, so that `F1Score("macro")` there means an
    average, and `Precision(10)` a number of classes.

    Raises:
        TypeError: naming the option.

    Example:
        >>> from elegy.losses import Huber
        >>> Huber("sum")
        Traceback (most recent call last):
        TypeError: Huber: delta='sum' is not a number.
    """
    for name, kind in _typed(type(tree)):
        value = getattr(tree, name, None)
        # That arrays cannot be options is said when the tree is complete.
        if value is None or (hasattr(value, "shape") and not isinstance(value, np.generic)):
            continue
        if not _fits(value, kind):
            raise TypeError(f"{type(tree).__name__}: {name}={value!r} is not {_WANTED[kind]}.")


@functools.cache
def _typed(cls: type) -> list[tuple[str, str]]:
    """The names of the options of a class that have one of the types, with the type."""
    if not is_ours(cls):
        return []
    kinds = [(one.name, str(one.type).removesuffix(" | None")) for one in dataclasses.fields(cls) if one.init]  # type: ignore[arg-type]
    return [(name, kind) for name, kind in kinds if kind in _WANTED]


def _fits(value: Any, kind: str) -> bool:
    if kind == "bool":
        return isinstance(value, (bool, np.bool_)) or value in (0, 1)
    if kind == "int":
        return as_integer(value) is not None
    return isinstance(value, numbers.Real) and not isinstance(value, bool)
