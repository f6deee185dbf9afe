"""The time of a run: how long it has run, and how many steps may run in one execution before a time limit."""

from __future__ import annotations

import time
from collections import deque
from typing import Any

import numpy as np

from elegy.distributed import from_first
from elegy.lazy_logs import LazyLogs


class Pace:
    """Bounds executions so that the last one ends about when the time is up, however long a step takes.

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
        first, then = self._begun or (steps, now)
        done = steps - first  # negative if the run went back to a checkpoint
        if done > 0:
            seconds = max((now - then) / done, 1e-9)
            self._most = int(max(1, min(2 * done, (self._end - now) / seconds)))
        if done or self._begun is None:
            self._begun = (steps, now)
        return self._most


class RunClock:
    """The seconds of a run, and its time limit.

    Args:
        max_time: the seconds after which the run ends; None for no limit.
        processes: how many processes run it: all must stop after the same step, by the clock of the first.
        ahead: how many executions may be queued while one is waited for, before a time limit.
        budget: the seconds of this call after which it is interrupted; None for no budget. Unlike `max_time`, it does
            not count the time before the run was resumed.

    Attributes:
        limited: True if there is a time limit or a budget.
        pace: bounds executions once `begin_epoch` was called, if there is a limit that one process alone observes.
    """

    def __init__(self, max_time: float | None, processes: int, ahead: int, budget: float | None = None):
        self._max_time, self._processes, self._ahead = max_time, processes, ahead
        self._started = time.monotonic()
        self._budget_ends = None if budget is None else self._started + budget
        self.limited = max_time is not None or budget is not None
        self._computing: deque[LazyLogs] = deque()
        self.pace: Pace | None = None

    @property
    def seconds(self) -> float:
        """The time since the run's beginning."""
        return time.monotonic() - self._started

    def go_on_from(self, seconds: float) -> None:
        """Counts as if the run had begun so many seconds ago."""
        self._started = time.monotonic() - seconds

    def is_up(self) -> bool:
        """True if the time limit is reached."""
        return self._max_time is not None and self._agreed(self.seconds >= self._max_time)

    def budget_is_up(self) -> bool:
        """True if the time budget is used up."""
        return self._budget_ends is not None and self._agreed(time.monotonic() >= self._budget_ends)

    def _agreed(self, up: bool) -> bool:
        """The value of the first process, because all must stop after the same step."""
        return up if self._processes == 1 else bool(from_first(np.bool_(up)))

    def begin_epoch(self) -> None:
        """Starts to bound executions; several processes would have to agree on the time before each one."""
        left = [] if self._max_time is None else [self._max_time - self.seconds]
        if self._budget_ends is not None:
            left.append(self._budget_ends - time.monotonic())
        if left and self.pace is None and self._processes == 1:
            self.pace = Pace(min(left))

    def note_when_computed(self, logs: LazyLogs) -> None:
        """Has `look_at_device` find out when the device has computed these values."""
        self._computing.append(logs)

    def look_at_device(self, results: Any, count: int) -> None:
        """Notes which of the values the device has computed; before a time limit, waits for it.

        What is queued when the time is up would still be computed, and the pace be that of queueing.

        Args:
            results: what the execution returned that was queued last.
            count: its number of steps.
        """
        computing = self._computing
        if self.pace is not None:
            computing.append(results.logs(count - 1))
        while computing and computing[0].ready is not False:
            computing.popleft()
        while self.pace is not None and len(computing) > self._ahead:
            _ = computing.popleft().ready_at
