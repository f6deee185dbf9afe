"""The records of the steps, epochs and evaluations of events."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence

from elegy.callbacks.event import Event
from elegy.callbacks.interval import PeriodicCallback
from elegy.lazy_logs import LazyLogs
from elegy.loggers.block import Block
from elegy.loggers.record import Record, RecordKind
from elegy.types import Every


class StepRecords:
    """The records of steps for the loggers of a run with the same interval: one of them looks at each event for all.

    Args:
        every: the interval.
        own: True for the values of each step alone; False for the running values of the epoch.
    """

    __slots__ = ("_event", "_make", "every", "own")

    def __init__(self, every: Every, own: bool):
        self.every, self.own = every, own
        self._event: Event | None = None
        self._make: Callable[[], Sequence[Block]] | None = None

    def of(self, event: Event, callback: PeriodicCallback) -> Callable[[], Sequence[Block]] | None:
        """Returns a function that makes the records of an event; None if no interval has ended.

        Args:
            event: the event of `on_train_batch_end`.
            callback: counts the interval, if it is the first that asks for this event.
        """
        if event is not self._event:
            offsets = callback.offsets(event)
            self._event = event
            self._make = functools.partial(_step_blocks, event, self.own, offsets) if offsets else None
        return self._make

    def forget(self) -> None:
        """Forgets the last event, which holds the trainer."""
        self._event = self._make = None


def block_of(event: Event, kind: RecordKind, values: Mapping[str, float]) -> Block:
    """Returns the one record of an event.

    Args:
        event: the event.
        kind: that of the record.
        values: its values.
    """
    return Block.of(Record(kind, event.step, event.epoch, event.examples, event.elapsed, dict(values)))


def _step_blocks(event: Event, own: bool, offsets: Sequence[int]) -> list[Block]:
    """Returns the records of steps.

    Args:
        event: the event of the last step.
        own: True for the values of each step alone; False for the running values of the epoch.
        offsets: how many steps before the last one the interval ends, descending.
    """
    blocks = []
    if event.skipped is not None and offsets[0]:
        # Values that callbacks have added are in the logs alone.
        alone = not isinstance(event.logs, LazyLogs) or event.logs.has_additions
        chosen = [k for k in offsets if k] if alone else offsets
        steps, examples = [event.step - k for k in chosen], [*event.skipped.counts(event.examples), event.examples]
        columns = event.skipped.columns(own, with_last=True)
        if len(chosen) < len(examples):
            places = [len(examples) - 1 - k for k in chosen]
            examples = [examples[place] for place in places]
            columns = {name: column[places] for name, column in columns.items()}
        blocks = [Block("step", event.epoch, [event.elapsed] * len(steps), steps, examples, columns)]
        if not alone:
            return blocks
    if not offsets[-1]:
        values = event.step_logs if own else {}
        blocks.append(block_of(event, "step", {name: values.get(name, value) for name, value in event.logs.items()}))
    return blocks
