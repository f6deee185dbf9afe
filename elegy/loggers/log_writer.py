"""Writes records in a thread, so that the loop does not wait for files."""

from __future__ import annotations

import atexit
import itertools
import os
import threading
import time
from collections.abc import Callable, Collection, Sequence
from typing import Any

Write = Callable[[list[Any]], object]

_CAPACITY = 256
_IDLE = 1.0
_SECONDS = 1.0
"""How long a thread waits before Python can handle a signal that did not wake it."""

_GATHER = 0.02
"""Seconds for which the thread gathers single items: each time that it wakes, it takes turns with the loop."""

_MOST = 4
"""The largest number of items of one call, after which the loop can have the interpreter's lock."""

_TURN, _PAUSE = 2e-4, 1e-4
"""Seconds after which the thread pauses, and for which: without pauses, the loop waits for the lock until Python takes
it away after 5 ms."""


class LogWriter:
    """A thread that calls functions with the items that they are to write, at most 0.02 s later.

    Items of one channel stay in order. Those that wait for the same function are given to it together, a few at a time.
    No item is lost: if the queue is full, `Channel.put` waits. At the exit of the interpreter, the queue is emptied.
    The thread ends after a second without items.

    Args:
        capacity: the largest number of items in the queue.

    Example:
        >>> written, channel = [], Channel(LogWriter())
        >>> channel.put(written.extend, 1)
        >>> channel.put(written.extend, 2)
        >>> channel.drain()
        >>> written
        [1, 2]
    """

    def __init__(self, capacity: int = _CAPACITY):
        self._capacity = capacity
        self._queue: list[tuple[Channel, Write, Any]] = []
        self._taken: list[tuple[Channel, Write, Any]] = []  # by the thread, which has not written them yet
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._idle = False  # the thread waits for the first item
        self._at_once = False  # the queue has items that have been gathered
        self._awaited: list[Callable[[], bool]] = []  # what callers wait for

    def put(self, entries: Sequence[tuple[Channel, Write, Any]], at_once: bool = False) -> None:
        """Appends items; waits if the queue is full.

        Args:
            entries: for each item, its channel, the function that writes it, and the item.
            at_once: True if the thread need not gather further items before it writes these.
        """
        with self._changed:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="elegy-log-writer", daemon=True)
                self._thread.start()
            for channel, write, item in entries:
                if self._count() >= self._capacity:
                    self._wait_for(lambda: self._count() < self._capacity)
                self._queue.append((channel, write, item))
                channel.pending += 1
            self._at_once |= at_once
            if self._idle or at_once:
                self._changed.notify_all()

    def wait(self, channels: Collection[Channel]) -> None:
        """Waits until the items of some channels have been written."""
        with self._changed:
            self._wait_for(lambda: not any(channel.pending for channel in channels))

    def wait_for_all(self) -> None:
        """Waits until all items have been written."""
        with self._changed:
            self._wait_for(lambda: not self._count())

    def _wait_for(self, condition: Callable[[], bool]) -> None:
        self._awaited.append(condition)
        self._changed.notify_all()
        try:
            while not self._changed.wait_for(condition, _SECONDS):
                pass  # a signal that did not wake the main thread is handled here
        finally:
            self._awaited.remove(condition)

    def forget(self) -> None:
        """Drops all items, in a forked process: they are written in the process that appended them."""
        for channel, _, _ in (*self._taken, *self._queue):
            channel.pending = 0
        self.__init__(self._capacity)  # type: ignore[misc]  # the lock may be held by a thread that was not copied

    def _count(self) -> int:
        return len(self._queue) + len(self._taken)

    def _run(self) -> None:
        while True:
            with self._changed:
                self._idle = True
                if not self._changed.wait_for(lambda: self._queue, _IDLE):
                    self._thread = None
                    return
                self._idle = False
                self._changed.wait_for(lambda: self._awaited or self._at_once, _GATHER)
                self._at_once = False
                channels = list(dict.fromkeys(channel for channel, _, _ in self._queue))
                self._taken = sorted(self._queue, key=lambda entry: channels.index(entry[0]))
                self._queue = []
            begun = time.perf_counter()
            while self._taken:
                self._write(self._next())
                if not self._awaited and time.perf_counter() - begun > _TURN:
                    time.sleep(_PAUSE)
                    begun = time.perf_counter()

    def _next(self) -> list[tuple[Channel, Write, Any]]:
        """The next items, all of one channel and for the same function."""
        channel, write, _ = self._taken[0]
        same = itertools.takewhile(lambda entry: entry[0] is channel and entry[1] == write, self._taken)
        return list(itertools.islice(same, _MOST))

    def _write(self, entries: list[tuple[Channel, Write, Any]]) -> None:
        channel, write, _ = entries[0]
        if channel.error is None:
            try:
                write([item for _, _, item in entries])
            except BaseException as error:  # raised in the thread of the loop
                channel.error = error
        with self._changed:
            del self._taken[: len(entries)]
            channel.pending -= len(entries)
            # Each time that a caller wakes, it takes turns with this thread.
            if any(condition() for condition in self._awaited):
                self._changed.notify_all()


WRITER = LogWriter()
"""The thread of all loggers of this process."""

atexit.register(WRITER.wait_for_all)
if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=WRITER.forget)


class Channel:
    """The items of one logger in the thread of a `LogWriter`.

    If a function raises, the items after it are dropped, and the next `put` or `drain` raises the exception.

    Args:
        writer: the thread; by default, all loggers of a process share one.

    Attributes:
        pending: the number of items that have not been written.
        error: the exception of a function, until it is raised here.
    """

    def __init__(self, writer: LogWriter = WRITER):
        self._writer = writer
        self.pending = 0
        self.error: BaseException | None = None

    def put(self, write: Write, item: Any) -> None:
        """Appends an item.

        Args:
            write: the function that writes a list of items.
            item: the item.
        """
        if self.error is not None:
            self.drain()
        self._writer.put([(self, write, item)])

    def drain(self) -> None:
        """Waits until all items have been written."""
        if self.pending:
            self._writer.wait([self])
        error, self.error = self.error, None
        if error is not None:
            raise error

    def __reduce__(self) -> tuple[type[Channel], tuple[()]]:
        """A copy is empty: items and threads stay in the process."""
        return Channel, ()


def wait_for(channels: Collection[Channel]) -> None:
    """Waits until the thread of all loggers has written the items of some of its channels.

    An exception of a channel stays there.

    Args:
        channels: the channels.
    """
    if any(channel.pending for channel in channels):
        WRITER.wait(channels)


def put_all(entries: Sequence[tuple[Channel, Write, Any]]) -> None:
    """Appends items of several channels to the thread of all loggers, which writes them at once.

    An exception of a channel stays there, for its next `put` or `drain`.

    Args:
        entries: for each item, its channel, the function that writes it, and the item.
    """
    if entries:
        WRITER.put(entries, at_once=True)
