"""Tables of cases of which a few run in the short run."""

from collections.abc import Iterable
from typing import Any

import pytest


def some(cases: Iterable[Any], count: int) -> list[Any]:
    """All cases; `count` of them, evenly spread, run always, and the others are marked slow."""
    cases = list(cases)
    always = {round(i * (len(cases) - 1) / max(count - 1, 1)) for i in range(count)}
    return [case if i in always else _slow(case) for i, case in enumerate(cases)]


def _slow(case: Any) -> Any:
    if hasattr(case, "marks"):  # of `pytest.param`
        return pytest.param(*case.values, marks=(*case.marks, pytest.mark.slow), id=case.id)
    return pytest.param(*(case if isinstance(case, tuple) else (case,)), marks=pytest.mark.slow)
