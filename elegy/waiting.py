"""Waits for something outside of the program, which a signal may end: the next batch, a thread that reads ahead."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self


class RunInterrupted(KeyboardInterrupt):
    """A signal ended a wait or a validation; `fit` ends the run with the state of its last step.

    It is a KeyboardInterrupt, because the code that is interrupted may be the user's, which cleans up after those.
    """


class _State(threading.local):
    """Of each thread: a signal handler runs in the main thread, and sees only the waits of the main thread."""

    wait = 0
    ended = False


_state = _State()
_numbers = itertools.count(1)


class Wait:
    """As a context manager: the thread waits, and `end_wait` may end that.

    Only calls of foreign code belong into the block, no changes of state: `end_wait` raises RunInterrupted at any place
    in it, also when the call has just returned. If the foreign code swallows that exception and raises another one (or
    StopIteration), the block raises RunInterrupted in its place.

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
    """A number that no other wait has; 0 if this thread does not wait."""
    return _state.wait


def end_wait() -> None:
    """Ends the wait of this thread, if there is one; called by a signal handler.

    Raises:
        RunInterrupted: if there is one.
    """
    if _state.wait:
        _state.wait, _state.ended = 0, True  # first: an exception within `__enter__` never gets to `__exit__`
        raise RunInterrupted


@contextmanager
def no_wait() -> Iterator[None]:
    """Inside of the block nothing is interrupted: foreign code that is waited for may call the library again."""
    outer, _state.wait = _state.wait, 0
    try:
        yield
    finally:
        _state.wait = outer
