"""Gathers what the loggers of a run are to write, so that each of them is called a few times a second."""

from __future__ import annotations

import itertools
import time
from collections import deque
from collections.abc import Callable, Hashable, Iterator, Sequence

from elegy.callbacks.event import Event
from elegy.lazy_logs import LazyLogs
from elegy.loggers.block import Block, joined
from elegy.loggers.log_writer import Channel, Write, put_all

Make = Callable[[], Sequence[Block]]

_QUICK = 1.0
"""Events that come later than this after the last one, in seconds, are read at once."""

_GATHER = 0.02
"""Seconds for which records are gathered: each hand-over wakes the thread, which then takes turns with the loop."""

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

    If events come in quick succession, they are read fifty times a second, those of them whose logs the device
    has computed. If the device is 32 events behind, 16 are read. All loggers share one read of an event, and the
    records of several events, which are joined to larger blocks. Events stay in order.

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
        self._gathered = -float("inf")  # when events were handed over last

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
            self._hand_over(self._due(now) if self._quick else len(self._pending))
            newest = self._newest = _Gathered(event, now)
            if self._quick:
                self._pending.append(newest)
        if self._quick:
            newest.wanted.setdefault(key, (make, []))[1].append(target)
        else:
            _give({target: list(event.shared(key, make))})

    def _due(self, now: float) -> int:
        """The number of events to read now."""
        pending = self._pending
        if len(pending) >= _MOST and pending[-_MOST].ready is False:
            return len(pending) - _MOST // 2  # the device is so far behind; it has the other half to do meanwhile
        # The device may be 0.02 s behind: then the oldest event that it has computed is always so old.
        if not pending or now - max(pending[0].came, self._gathered) < _GATHER:
            return 0
        self._gathered = now
        return sum(1 for _ in itertools.takewhile(lambda entry: entry.ready is not False, pending))

    def flush(self) -> None:
        """Reads all events. If one of the reads fails, the events after it are dropped."""
        pending, self._pending, self._newest = self._pending, deque(), None
        if pending:
            _hand_over(pending, len(pending))

    def clear(self) -> None:
        """Drops all events."""
        self._pending.clear()
        self._newest = None

    def _hand_over(self, count: int) -> None:
        if count:
            _hand_over(self._pending, count)


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


def _hand_over(pending: deque[_Gathered], count: int) -> None:
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
        _give(blocks)


def _give(blocks: dict[Target, list[Block]]) -> None:
    entries: list[Entry] = []
    together: dict[tuple[int, ...], list[Block]] = {}  # the loggers with the same blocks share what they are joined to
    for target, made in blocks.items():
        key = tuple(map(id, made))
        if key not in together:
            together[key] = joined(made, _LARGEST)
        entry = target(together[key])
        if entry is not None:
            channel, write, new = entry
            entries += [(channel, write, few) for few in _calls(new)]
    put_all(entries)


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
