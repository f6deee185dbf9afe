"""Calls functions in a thread, one after another, and tries failed ones again."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable


class Sender:
    """A thread that calls functions in order, so that the loop never waits for a server.

    A function that raises an error is called again after a while, before the others. When the sender closes, the
    functions are called once more at most.

    Args:
        name: the name of the thread.
        patience: seconds before a failed function is called again.

    Attributes:
        error: the last error, until a function succeeds; None without one.

    Example:
        >>> sender, sent = Sender("example"), []
        >>> sender.put(lambda: sent.append(1))
        >>> sender.close(seconds=10), sent
        (0, [1])
    """

    def __init__(self, name: str, patience: float = 60.0):
        self._patience = patience
        self._calls: deque[Callable[[], object]] = deque()
        self._changed = threading.Condition()
        self._closing = False
        self.error: Exception | None = None
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def put(self, call: Callable[[], object]) -> None:
        """Appends a function."""
        with self._changed:
            self._calls.append(call)
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
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._calls or self._closing)
                if not self._calls:
                    return
                call, last_try = self._calls[0], self._closing
            try:
                call()
            except Exception as error:
                self.error = error
                if last_try:
                    return
                self._rest()
            else:
                self.error = None
                with self._changed:
                    if self._calls:
                        self._calls.popleft()

    def _rest(self) -> None:
        until = time.monotonic() + self._patience
        with self._changed:
            self._changed.wait_for(lambda: self._closing, max(until - time.monotonic(), 0))
