"""Tables of cases of which a few run in the short run.

`some` marks the others of one parameter; the mark `some(count)` (`conftest.py`) is for all cases of a test.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import pytest


def some(cases: Iterable[Any], count: int) -> list[Any]:
    """All cases; `count` of them, evenly spread, run always, and the others are marked slow."""
    cases = list(cases)
    always = set(spread(range(len(cases)), count))
    return [case if i in always else _slow(case) for i, case in enumerate(cases)]


def spread(cases: Sequence[Any], count: int) -> list[Any]:
    """`count` of the cases, evenly spread, the first and the last among them."""
    return [cases[i] for i in sorted({round(i * (len(cases) - 1) / max(count - 1, 1)) for i in range(count)})]


def _slow(case: Any) -> Any:
    if hasattr(case, "marks"):  # of `pytest.param`
        return pytest.param(*case.values, marks=(*case.marks, pytest.mark.slow), id=case.id)
    return pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=pytest.mark.slow)
