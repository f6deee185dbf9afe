"""Checks of integer arguments."""

from __future__ import annotations

import operator
from typing import Any


def as_integer(value: Any) -> int | None:
    """Returns the value as a Python int, or None if it is a bool or not an integer.

    Example:
        >>> as_integer(3), as_integer(3.0), as_integer(True)
        (3, None, None)
    """
    if isinstance(value, bool):
        return None
    try:
        return operator.index(value)
    except TypeError:
        return None


def positive_int(name: str, value: Any) -> int:
    """Checks that an argument is an integer of at least 1, and returns it as an int.

    Args:
        name: the name of the argument in messages.
        value: the argument.

    Raises:
        TypeError: if the value is not an integer.
        ValueError: if it is zero or negative.

    Example:
        >>> positive_int("batch_size", 3)
        3
    """
    number = as_integer(value)
    if number is None:
        raise TypeError(f"{name} must be a positive integer, not {value!r}.")
    if number <= 0:
        raise ValueError(f"{name} must be a positive integer, not {number}.")
    return number


def positive_int_or_none(name: str, value: Any) -> int | None:
    """As `positive_int`, for an argument that may be None.

    Example:
        >>> positive_int_or_none("max_steps", None)
    """
    return None if value is None else positive_int(name, value)
