"""Reading logs later, when the device has them."""

from __future__ import annotations

import time
import warnings
from collections import deque
from collections.abc import Callable, Mapping

from elegy.callbacks.event import Event
from elegy.callers import stacklevel_of_caller

MOST = 8
"""The largest number of deferred reads: the device is then this many steps behind the loop, and does not run idle."""


class DeferredLogReader:
    """Defers functions that read logs until the device has computed them, if such reads come in quick succession.

    A loop that reads the logs of a step at once waits for that step before it gives the device the next one.

    Args:
        seconds: a read that comes later than this after the last one is done at once, and waits for the device.

    Example:
        >>> from elegy.callbacks import LazyLogs
        >>> reader, computed = DeferredLogReader(seconds=60), []
        >>> for k in range(3):
        ...     logs = LazyLogs(lambda k=k: {"loss": k}, ready=lambda k=k: k in computed)
        ...     reader.defer(lambda logs=logs: print(logs["loss"]), logs)
        ...     computed.append(k)
        0.0
        1.0
        >>> reader.flush()
        2.0
    """

    def __init__(self, seconds: float):
        self._seconds = seconds
        self._pending: deque[tuple[Callable[[], None], Mapping[str, float]]] = deque()
        self._last = -float("inf")

    @property
    def pending(self) -> bool:
        """True if a read is deferred."""
        return bool(self._pending)

    def defer(self, read: Callable[[], None], logs: Mapping[str, float]) -> None:
        """Does the deferred reads whose logs are ready, then does or defers this one. The order is kept.

        Args:
            read: reads the logs.
            logs: the logs that it reads.
        """
        self._pending.append((read, logs))
        fast = time.monotonic() - self._last < self._seconds
        while self._pending and (not fast or self._is_time()):
            self._pending.popleft()[0]()
        self._last = time.monotonic()

    def _is_time(self) -> bool:
        """True if the oldest deferred read can run. Without readiness information, reads are deferred by one."""
        ready = getattr(self._pending[0][1], "ready", None)
        return len(self._pending) > (1 if ready is None else MOST) or bool(ready)

    def flush(self) -> None:
        """Does all deferred reads. If one of them fails, those after it are dropped."""
        pending, self._pending = self._pending, deque()
        for read, _ in pending:
            read()

    def clear(self) -> None:
        """Drops all deferred reads."""
        self._pending.clear()


def finish(event: Event, flush: Callable[[], None], close: Callable[[], None], *, warn: bool = True) -> None:
    """Does all deferred reads, then closes the files.

    Args:
        event: the event of `on_train_end`.
        flush: does the reads.
        close: closes the files.
        warn: False if the run failed because of these files.

    Warns:
        UserWarning: if the run failed and the reads fail, too: the run's own exception is the one to raise.
    """
    try:
        try:
            flush()
        finally:
            close()
    except Exception as error:
        if event.ended != "failed" or not warn:
            raise
        warnings.warn(
            f"the run failed, and its last logs could not be written: {error}", stacklevel=stacklevel_of_caller()
        )
