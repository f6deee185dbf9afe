"""How many steps may run in one execution before a time limit."""

from __future__ import annotations

import time


class Pace:
    """Bounds executions so that the last one ends about when the time is up, whatever a step takes.

    The first execution has one step. Each further one has twice as many as the one before at most, and no more than
    the time that is left has room for at the pace of that one.

    Args:
        left: the seconds until the time is up.
    """

    def __init__(self, left: float):
        self._end = time.monotonic() + left
        self._begun: tuple[int, float] | None = None  # the steps before the last execution, and when it was asked for
        self._most = 1

    def most(self, steps: int) -> int:
        """The most steps of the execution that begins after so many steps; at least 1."""
        now = time.monotonic()
        if self._begun is None:
            self._begun = (steps, now)
        first, then = self._begun
        done = steps - first
        if done < 0:  # the run went back to a checkpoint
            self._begun = (steps, now)
        if done > 0:
            seconds = max((now - then) / done, 1e-9)
            self._most = int(max(1, min(2 * done, (self._end - now) / seconds)))
            self._begun = (steps, now)
        return self._most
