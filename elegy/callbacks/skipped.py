"""The steps of an execution for which no hook was called."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Mapping, Sequence
from typing import Protocol


class Rows(Protocol):
    """The results of an execution."""

    def rows(self, own: bool) -> Sequence[Mapping[str, float]]:
        """Returns the values of each step; see `SkippedSteps.rows`."""
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
        ...     def rows(self, own):
        ...         return [{"loss": 4.0}, {"loss": 3.0}, {"loss": 2.0}]
        >>> skipped = SkippedSteps((8, 8), Results(), first=1)
        >>> skipped.rows(own=False), skipped.counts(32)
        ([{'loss': 3.0}], [24])
    """

    sizes: Sequence[int]
    results: Rows
    first: int

    def rows(self, own: bool) -> Sequence[Mapping[str, float]]:
        """Returns the values of these steps, without that of the event; may wait for the device.

        Args:
            own: True for the values of each step alone where it returns them (`step_values = ("logs",)`); False for the
                running values of the epoch.
        """
        return self.results.rows(own)[self.first : self.first + len(self.sizes) - 1]

    def counts(self, examples: int) -> list[int]:
        """Returns the training examples seen by the run after each of these steps.

        Args:
            examples: those after the step of the event.
        """
        return list(itertools.accumulate(self.sizes[:-1], initial=examples - sum(self.sizes)))[1:]
