"""The steps of an execution for which no hook was called."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np

from elegy.lazy_logs import MemberValues


class Columns(Protocol):
    """The results of an execution."""

    def columns(self, own: bool) -> Mapping[str, np.ndarray]:
        """Returns the values of each step; see `SkippedSteps.columns`."""
        ...


@dataclasses.dataclass(frozen=True, slots=True)
class SkippedSteps:
    """The steps before that of an event for which no batch hook was called, because no callback asked for them.

    They ran in the same execution, and no callback has added values to their logs.

    Args:
        sizes: the examples of these steps, and of that of the event.
        results: the results of the execution.
        first: the index of the first of these steps in the execution.

    Example:
        >>> class Results:
        ...     def columns(self, own):
        ...         return {"loss": np.array([4.0, 3.0, 2.0])}
        >>> skipped = SkippedSteps((8, 8), Results(), first=1)
        >>> skipped.columns(own=False), skipped.rows(own=False), skipped.counts(32)
        ({'loss': array([3.])}, [{'loss': 3.0}], [24])
    """

    sizes: Sequence[int]
    results: Columns
    first: int

    def columns(self, own: bool, with_last: bool = False) -> dict[str, np.ndarray]:
        """Returns the values of these steps; may wait for the device.

        Args:
            own: True for the values of each step alone where it returns them (`step_values = ("logs",)`); False for the
                running values of the epoch.
            with_last: True for those of the step of the event, too, without what callbacks have added to them.

        Returns:
            `float64[steps]` by name; of a population, `float64[steps, members]`.
        """
        end = self.first + len(self.sizes) - (not with_last)
        return {name: column[self.first : end] for name, column in self.results.columns(own).items()}

    def rows(self, own: bool) -> list[dict[str, float]]:
        """As `columns`, with a dict for each step."""
        return rows_of(self.columns(own), len(self.sizes) - 1)

    def counts(self, examples: int) -> list[int]:
        """Returns the training examples seen by the run after each of these steps.

        Args:
            examples: those after the step of the event.
        """
        return list(itertools.accumulate(self.sizes[:-1], initial=examples - sum(self.sizes)))[1:]


def rows_of(columns: Mapping[str, np.ndarray], count: int) -> list[dict[str, float]]:
    """Returns a dict for each step.

    Args:
        columns: see `SkippedSteps.columns`.
        count: the number of steps.

    Example:
        >>> rows_of({"loss": np.array([2.0, 1.0])}, 2), rows_of({}, 2)
        ([{'loss': 2.0}, {'loss': 1.0}], [{}, {}])
    """
    if not columns:
        return [{} for _ in range(count)]
    steps = zip(*map(_values, columns.values()), strict=True)
    return [dict(zip(columns, step, strict=True)) for step in steps]


def _values(column: np.ndarray) -> list[float]:
    """The values of each step: floats, or those of members."""
    return column.tolist() if column.ndim == 1 else [MemberValues(step) for step in column]
