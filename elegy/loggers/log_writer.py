"""Writes records in a thread, so that the loop does not wait for files."""

from __future__ import annotations

import atexit
import os
import threading
from collections import deque
from collections.abc import Callable

_CAPACITY = 256
_IDLE = 1.0
_GATHER = 0.05
"""Seconds for which the thread gathers functions: each time that it wakes, the loop gives it the interpreter's lock."""


class LogWriter:
    """A thread that calls functions in order, at most 0.05 s later. It ends after a second without functions.

    No call is lost: if the queue is full, `Channel.put` waits. At the exit of the interpreter, the queue is emptied.

    Args:
        capacity: the largest number of functions in the queue.

    Example:
        >>> written, channel = [], Channel(LogWriter())
        >>> channel.put(lambda: written.append(1))
        >>> channel.drain()
        >>> written
        [1]
    """

    def __init__(self, capacity: int = _CAPACITY):
        self._capacity = capacity
        self._calls: deque[tuple[Channel, Callable[[], object]]] = deque()
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._idle = False  # the thread waits for the first function
        self._waiting = 0  # callers that wait for the thread

    def put(self, channel: Channel, call: Callable[[], object]) -> None:
        """Appends a function; waits if the queue is full.

        Args:
            channel: whose function it is.
            call: the function.
        """
        with self._changed:
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="elegy-log-writer", daemon=True)
                self._thread.start()
            if len(self._calls) >= self._capacity:
                self._wait_for(lambda: len(self._calls) < self._capacity)
            self._calls.append((channel, call))
            channel.pending += 1
            if self._idle:
                self._changed.notify_all()

    def wait(self, channel: Channel) -> None:
        """Waits until the functions of a channel have been called."""
        with self._changed:
            self._wait_for(lambda: not channel.pending)

    def wait_for_all(self) -> None:
        """Waits until all functions have been called."""
        with self._changed:
            self._wait_for(lambda: not self._calls)

    def _wait_for(self, condition: Callable[[], bool]) -> None:
        self._waiting += 1
        self._changed.notify_all()
        self._changed.wait_for(condition)
        self._waiting -= 1

    def forget(self) -> None:
        """Drops all functions, in a forked process: they are called in the process that appended them."""
        for channel, _ in self._calls:
            channel.pending = 0
        self.__init__(self._capacity)  # type: ignore[misc]  # the lock may be held by a thread that was not copied

    def _run(self) -> None:
        while True:
            with self._changed:
                self._idle = True
                if not self._changed.wait_for(lambda: self._calls, _IDLE):
                    self._thread = None
                    return
                self._idle = False
                self._changed.wait_for(lambda: self._waiting, _GATHER)
                calls = list(self._calls)
            for channel, call in calls:
                self._call(channel, call)

    def _call(self, channel: Channel, call: Callable[[], object]) -> None:
        if channel.error is None:
            try:
                call()
            except BaseException as error:  # raised in the thread of the loop
                channel.error = error
        with self._changed:
            self._calls.popleft()
            channel.pending -= 1
            if self._waiting:
                self._changed.notify_all()


WRITER = LogWriter()
"""The thread of all loggers of this process."""

atexit.register(WRITER.wait_for_all)
if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=WRITER.forget)


class Channel:
    """The functions of one logger in the thread of a `LogWriter`.

    If a function raises, the functions after it are dropped, and the next `put` or `drain` raises the exception.

    Args:
        writer: the thread; by default, all loggers of a process share one.

    Attributes:
        pending: the number of functions that have not been called.
        error: the exception of a function, until it is raised here.
    """

    def __init__(self, writer: LogWriter = WRITER):
        self._writer = writer
        self.pending = 0
        self.error: BaseException | None = None

    def put(self, call: Callable[[], object]) -> None:
        """Appends a function.

        Args:
            call: the function.
        """
        if self.error is not None:
            self.drain()
        self._writer.put(self, call)

    def drain(self) -> None:
        """Waits until all functions have been called."""
        if self.pending:
            self._writer.wait(self)
        error, self.error = self.error, None
        if error is not None:
            raise error

    def __reduce__(self) -> tuple[type[Channel], tuple[()]]:
        """A copy is empty: functions and threads stay in the process."""
        return Channel, ()
