"""JSON text that every reader accepts: Python writes `NaN` and `Infinity` as bare words, which JSON does not have."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any

_WORDS = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


def dumps(value: Any) -> str:
    """Writes a value as JSON; numbers that are not finite are the strings `"NaN"`, `"Infinity"` and `"-Infinity"`.

    The JSON form of Protocol Buffers has these strings, too, and `float` of Python reads them.

    Args:
        value: dicts, lists and tuples of strings, numbers, booleans and None.

    Example:
        >>> dumps({"loss": float("nan"), "rates": [0.5, float("-inf")]})
        '{"loss": "NaN", "rates": [0.5, "-Infinity"]}'
    """
    try:
        return json.dumps(value, allow_nan=False)
    except ValueError:
        return json.dumps(_worded(value), allow_nan=False)


def as_number(value: Any) -> float | None:
    """Returns a value that was read as the number that `dumps` wrote; None if it is not a number.

    Example:
        >>> as_number(0.5), as_number("-Infinity"), as_number("text")
        (0.5, -inf, None)
    """
    return value if isinstance(value, (int, float)) else _WORDS.get(value) if isinstance(value, str) else None


def _worded(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _worded(one) for key, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_worded(one) for one in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    return value
