"""Waits that a signal handler can end: for the next batch, for a thread that prefetches or saves."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import Self, TypeVar

T = TypeVar("T")

_SECONDS = 1.0
"""How long a thread blocks before Python can handle a signal that did not wake it."""


class RunInterrupted(KeyboardInterrupt):
    """A signal ended a wait or a validation; `fit` ends the run with the state of its last step.

    It is a KeyboardInterrupt, because user code that is interrupted may clean up after a KeyboardInterrupt.
    """


class _State(threading.local):
    """The wait of each thread. A signal handler runs in the main thread, and ends only a wait of that thread."""

    wait = 0
    ended = False


_state = _State()
_numbers = itertools.count(1)


class Wait:
    """A context manager for a block in which the thread waits, which `end_wait` may end.

    The block should only call code outside of this library, and change no state: `end_wait` raises RunInterrupted at
    any place in it, also when the call has just returned. If that code catches the exception and raises another one
    (or StopIteration), the block raises RunInterrupted instead.

    Example:
        >>> try:
        ...     with Wait():
        ...         end_wait()
        ... except RunInterrupted:
        ...     print("ended")
        ended
    """

    __slots__ = ("_outer",)

    def __enter__(self) -> Self:
        """Begins the wait."""
        self._outer = _state.wait
        if not self._outer:
            _state.ended = False
        _state.wait = next(_numbers)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        """Ends the wait."""
        _state.wait = self._outer
        if _state.ended and error is not None and not isinstance(error, RunInterrupted):
            raise RunInterrupted from error


def current_wait() -> int:
    """Returns the unique number of this thread's wait; 0 if the thread does not wait."""
    return _state.wait


def end_wait() -> None:
    """Ends the wait of this thread; a signal handler calls it.

    Raises:
        RunInterrupted: if the thread waits.
    """
    if _state.wait:
        _state.wait, _state.ended = 0, True  # before the raise: `__exit__` is not called if it happens in `__enter__`
        raise RunInterrupted


@contextmanager
def no_wait() -> Iterator[None]:
    """Disables `end_wait` inside of the block: code inside of a `Wait` may call the library again."""
    outer, _state.wait = _state.wait, 0
    try:
        yield
    finally:
        _state.wait = outer


def receive(queue: SimpleQueue[T]) -> T:
    """Returns the next item of a queue, as `queue.get()`, but handles every signal within a second.

    Python calls a signal handler when the main thread executes its next instruction. A signal that arrives just before
    that thread blocks, or that the system gives to another thread, does not wake it.

    Args:
        queue: the queue.

    Example:
        >>> queue = SimpleQueue()
        >>> queue.put("item")
        >>> receive(queue)
        'item'
    """
    while True:
        with suppress(Empty):
            return queue.get(timeout=_SECONDS)


def join(thread: threading.Thread) -> None:
    """Waits until a thread has ended; handles signals as `receive` does.

    `Thread.join` is not used: before Python 3.13, an exception of a signal handler in it marks the thread as ended.

    Args:
        thread: the thread.
    """
    pause = 0.001
    while thread.is_alive():
        time.sleep(pause)
        pause = min(2 * pause, 0.05)
