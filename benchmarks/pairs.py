"""Times two functions in pairs."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax


@dataclasses.dataclass
class Row:
    """A line of the table: a measured quantity, ours against another's.

    Args:
        name: the name of the measurement.
        other: the name of the reference.
        unit: the unit of the values, such as `"us/step"`.
        ours: one value for each pair.
        theirs: likewise, for the reference.
        goal: the largest allowed ratio of medians, or `None`.
        note: a remark.
    """

    name: str
    other: str
    unit: str
    ours: list[float]
    theirs: list[float]
    goal: float | None = None
    note: str = ""

    @property
    def ratios(self) -> list[float]:
        return [a / b for a, b in zip(self.ours, self.theirs, strict=True)]

    @property
    def ratio(self) -> float:
        """The median of the pairs' ratios."""
        return statistics.median(self.ratios)

    @property
    def met(self) -> bool | None:
        return None if self.goal is None else self.ratio <= self.goal

    def as_dict(self) -> dict[str, Any]:
        """Returns JSON values."""
        return {
            **dataclasses.asdict(self),
            "ratio": {"median": self.ratio, "min": min(self.ratios), "max": max(self.ratios)},
            "met": self.met,
        }


def timed(function: Callable[[], Any]) -> float:
    """Returns the seconds of a call, until its arrays are computed."""
    start = time.perf_counter()
    jax.block_until_ready(function())
    return time.perf_counter() - start


def measure(
    name: str,
    ours: Callable[[], Any],
    theirs: Callable[[], Any],
    *,
    pairs: int,
    per: int = 1,
    other: str = "hand-written loop",
    unit: str = "us/step",
    goal: float | None = None,
    note: str = "",
) -> Row:
    """Times two functions in interleaved pairs; both run once before, to compile.

    Args:
        name: the name of the measurement.
        ours: runs Elegy, and returns arrays to wait for.
        theirs: runs the reference.
        pairs: the number of pairs; each begins with the side that ended the last, so that drift affects both equally.
        per: the divisor of the time, such as the number of steps of one call.
        other: the name of the reference.
        unit: the unit of the values after the division, in microseconds.
        goal: see `Row`.
        note: see `Row`.
    """
    timed(ours), timed(theirs)
    values: dict[Callable, list[float]] = {ours: [], theirs: []}
    for k in range(pairs):
        for function in (ours, theirs) if k % 2 == 0 else (theirs, ours):
            values[function].append(timed(function) / per * 1e6)
    return Row(name, other, unit, values[ours], values[theirs], goal, note)
