"""Calls functions in a thread, one after another, and tries failed ones again."""

from __future__ import annotations

import itertools
import threading
import time
from collections import deque
from collections.abc import Callable

_PROBES = 3


class Sender:
    """A thread that calls functions in order, so that the loop never waits for a server.

    A function that raises an error is called again after a while, before the others. If it fails once more, but one of
    the three functions after it does not, the server can be reached and refuses it: it is left out. When the sender
    closes, it does not wait between the calls, and ends at the first function that fails twice.

    Args:
        name: the name of the thread.
        patience: seconds before a failed function is called again.
        refuses: returns True for an exception by which the server refuses what it has received.

    Attributes:
        error: the last error, until a function succeeds; None without one.
        refused: the errors of the functions that were left out.

    Example:
        >>> sender, sent = Sender("example"), []
        >>> sender.put(lambda: sent.append(1))
        >>> sender.close(seconds=10), sent
        (0, [1])
    """

    def __init__(self, name: str, patience: float = 60.0, refuses: Callable[[Exception], bool] = lambda error: False):
        self._patience, self._refuses = patience, refuses
        self._calls: deque[tuple[Callable[[], object], bool]] = deque()
        self._changed = threading.Condition()
        self._closing = False
        self.error: Exception | None = None
        self.refused: list[Exception] = []
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def put(self, call: Callable[[], object], *, first: bool = False) -> None:
        """Appends a function.

        Args:
            call: the function.
            first: True if the functions after it make no sense before it has succeeded.
        """
        with self._changed:
            self._calls.append((call, first))
            self._changed.notify_all()

    def close(self, seconds: float) -> int:
        """Calls the remaining functions and ends the thread; returns how many were not called successfully.

        Args:
            seconds: how long to wait.
        """
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join(seconds)
        with self._changed:
            left = len(self._calls)
            self._calls.clear()  # a call that still runs is the last one
            return left

    def _run(self) -> None:
        failed = False  # the first function has failed before
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._calls or self._closing)
                if not self._calls:
                    return
                (call, first), closing = self._calls[0], self._closing
            error = self._failure(call)
            if error is None or (self._refuses(error) and not first):
                self._done([error])
                failed = False
            elif failed and not first and self._succeeds_later(error):
                failed = False
            elif failed and closing:
                return
            else:
                failed = True
                self._rest()

    def _failure(self, call: Callable[[], object]) -> Exception | None:
        try:
            call()
        except Exception as error:
            self.error = error
            return error
        self.error = None
        return None

    def _succeeds_later(self, error: Exception) -> bool:
        """Calls the functions after the first one, until one succeeds; those before it are left out then."""
        with self._changed:
            later = list(itertools.islice(self._calls, 1, 1 + _PROBES))
        failures: list[Exception | None] = [error]
        for call, first in later:
            if first:
                return False
            failures.append(self._failure(call))
            if failures[-1] is None:
                self._done(failures)
                return True
        return False

    def _done(self, failures: list[Exception | None]) -> None:
        """Removes the first functions."""
        self.refused += [error for error in failures if error is not None]
        if failures[-1] is not None:
            self.error = None  # the server has answered
        with self._changed:
            for _ in failures[: len(self._calls)]:
                self._calls.popleft()

    def _rest(self) -> None:
        until = time.monotonic() + self._patience
        with self._changed:
            self._changed.wait_for(lambda: self._closing, max(until - time.monotonic(), 0))
