"""Gathers what the loggers of a run are to write, so that each of them is called a few times a second."""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Callable, Hashable, Iterator, Sequence

from elegy.callbacks.event import Event
from elegy.lazy_logs import LazyLogs
from elegy.loggers.block import Block, joined
from elegy.loggers.log_writer import Channel, Write, put_all, wait_for
from elegy.loggers.step_records import StepRecords
from elegy.types import Every

Make = Callable[[], Sequence[Block]]

_QUICK = 1.0
"""Events that come later than this after the last one, in seconds, are read at once."""

_GATHER, _LONGEST = 0.02, 0.25
"""Seconds for which records are gathered, at least and at most: each hand-over wakes the thread, which then takes turns
with the loop. In between, it is a quarter of the time for which events have come, so that little is left at the end."""

_MOST = 32
"""The largest number of events that wait. Short executions are soon several ahead of the device: with eight, the loop
waited for it every ten milliseconds."""

_LARGEST = 256
"""The largest number of records of one call of a logger, after which the loop can have the interpreter's lock."""


Entry = tuple[Channel, Write, Sequence[Block]]
Target = Callable[[Sequence[Block]], Entry | None]
"""Returns the channel of a logger, its function that writes lists of blocks, and those of the blocks that are to be
written; None for none."""


class Gatherer:
    """Defers the reads of all loggers of a run, and hands their records to the thread together.

    If events come in quick succession, they are read fifty times a second, later in the run less often, down to four
    times, those of them whose logs the device has computed. If the device is 32 events behind, 16 are read. All loggers
    share one read of an event, and the records of several events, which are joined to larger blocks. Events stay in
    order.

    Example:
        >>> import numpy as np
        >>> def target(blocks):
        ...     print([block.steps for block in blocks])
        >>> block = Block("step", 0, [1.5, 1.5], [1, 2], [32, 64], {"loss": np.array([0.5, 0.25])})
        >>> gatherer = Gatherer()
        >>> for step in (2, 3):
        ...     event = Event(None, "train", step=step, epoch=0, logs={"loss": 0.5})
        ...     gatherer.add(event, target, "step", lambda: [block])
        [[1, 2]]
        >>> gatherer.flush()
        [[1, 2]]
    """

    def __init__(self) -> None:
        self._pending: deque[_Gathered] = deque()
        self._newest: _Gathered | None = None
        self._last = -float("inf")  # when the newest event came
        self._quick = False  # it came soon after the one before it
        self._begun = 0.0  # when the first of those events came
        self._gathered = -float("inf")  # when events were handed over last
        self._steps: dict[Hashable, StepRecords] = {}
        self._channels: set[Channel] = set()  # of all targets

    def steps(self, every: Every, own: bool, *key: Hashable) -> StepRecords:
        """Returns the records of steps of the loggers with an interval.

        Args:
            every: the interval.
            own: see `StepRecords`.
            key: on what else it depends at which steps the interval ends.
        """
        return self._steps.setdefault((every, own, *key), StepRecords(every, own))

    def add(self, event: Event, target: Target, key: Hashable, make: Make) -> None:
        """Logs the records of an event, now or later.

        Args:
            event: the event.
            target: receives the records.
            key: what the records are, and all that they depend on beside the event.
            make: reads the logs and makes the records.
        """
        newest = self._newest
        if newest is None or newest.event is not event:
            now = time.monotonic()
            self._quick, self._last = now - self._last < _QUICK, now
            if not self._quick:
                self._begun = now
            if count := self._due(now) if self._quick else len(self._pending):
                self._hand_over(self._pending, count)
            newest = self._newest = _Gathered(event, now)
            if self._quick:
                self._pending.append(newest)
        if self._quick:
            newest.wanted.setdefault(key, (make, []))[1].append(target)
        else:
            self._give({target: list(event.shared(key, make))})

    def _due(self, now: float) -> int:
        """The number of events to read now."""
        pending = self._pending
        if len(pending) >= _MOST and pending[-_MOST].ready is False:
            return len(pending) - _MOST // 2  # the device is so far behind; it has the other half to do meanwhile
        # The device may be as far behind: then the oldest event that it has computed is always so old.
        time_to_gather = min(max(_GATHER, (now - self._begun) / 4), _LONGEST)
        if not pending or now - max(pending[0].came, self._gathered) < time_to_gather:
            return 0
        self._gathered = now
        return sum(1 for _ in itertools.takewhile(lambda entry: entry.ready is not False, pending))

    def read_all(self) -> None:
        """Reads all events. If a read fails, the events after it are dropped.

        Half of them are read at a time, so that the thread writes while the device computes the others.
        """
        pending, self._pending, self._newest = self._pending, deque(), None
        for steps in self._steps.values():
            steps.forget()
        while pending:
            self._hand_over(pending, -(-len(pending) // 2))

    def flush(self) -> None:
        """Reads all events, and waits until they are written."""
        self.read_all()
        wait_for(self._channels)  # one wait for those of all loggers

    def clear(self) -> None:
        """Drops all events."""
        self._steps = {}
        self._pending.clear()
        self._newest = None

    def _hand_over(self, pending: deque[_Gathered], count: int) -> None:
        """Reads the oldest events, and hands over what is read, also if a read fails."""
        blocks: dict[Target, list[Block]] = {}
        newest = pending[count - 1].event.logs
        if isinstance(newest, LazyLogs):
            newest.wait()  # one wait for the device instead of one for each event
        try:
            for _ in range(count):
                entry = pending.popleft()
                for key, (make, targets) in entry.wanted.items():
                    made = entry.event.shared(key, make)
                    for target in targets:
                        blocks.setdefault(target, []).extend(made)
        finally:
            self._give(blocks)

    def _give(self, blocks: dict[Target, list[Block]]) -> None:
        entries: list[Entry] = []
        # Loggers with the same blocks share what these are joined to.
        together: dict[tuple[int, ...], list[Block]] = {}
        for target, made in blocks.items():
            key = tuple(map(id, made))
            if key not in together:
                together[key] = joined(made, _LARGEST)
            entry = target(together[key])
            if entry is not None:
                channel, write, new = entry
                self._channels.add(channel)
                entries += [(channel, write, few) for few in _calls(new)]
        put_all(entries)


class _Gathered:
    """An event that is not read yet.

    Args:
        event: the event.
        came: the `time.monotonic()` of the hook.
    """

    __slots__ = ("came", "event", "wanted")

    def __init__(self, event: Event, came: float):
        self.event, self.came = event, came
        self.wanted: dict[Hashable, tuple[Make, list[Target]]] = {}

    @property
    def ready(self) -> bool | None:
        """True if the logs can be read without waiting for the device; None if this is unknown."""
        return getattr(self.event.logs, "ready", None)


def _calls(blocks: Sequence[Block]) -> Iterator[list[Block]]:
    """Cuts blocks into those for one call of a logger each."""
    few: list[Block] = []
    for block in blocks:
        if few and sum(len(one.steps) for one in few) + len(block.steps) > _LARGEST:
            yield few
            few = []
        few.append(block)
    if few:
        yield few
