"""Reading logs without waiting for the device."""

from __future__ import annotations

import time
from collections.abc import Callable


class Behind:
    """Puts off what reads logs until the next time where times come fast: the device has computed them by then.

    A loop that reads the logs of a step at once waits for that step, and has not given the device the next one.

    Args:
        seconds: what comes later than this after the last time is done at once.

    Example:
        >>> behind = Behind(seconds=60)
        >>> for k in range(3):
        ...     behind.do(lambda k=k: print(k))
        0
        1
        >>> behind.catch_up()
        2
    """

    def __init__(self, seconds: float):
        self._seconds = seconds
        self._held: Callable[[], None] | None = None
        self._last = -float("inf")

    @property
    def holds(self) -> bool:
        """Whether something is put off."""
        return self._held is not None

    def do(self, work: Callable[[], None]) -> None:
        """Does what was put off; does `work`, or puts it off.

        Args:
            work: reads logs.
        """
        self.catch_up()
        if time.monotonic() - self._last < self._seconds:
            self._held = work
        else:
            work()
        self._last = time.monotonic()

    def catch_up(self) -> None:
        """Does what was put off."""
        held, self._held = self._held, None
        if held is not None:
            held()
