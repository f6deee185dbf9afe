"""Reading logs without waiting for the device."""

from __future__ import annotations

import time
import warnings
from collections import deque
from collections.abc import Callable, Mapping

from elegy.callbacks.event import Event

_MOST = 8
"""So many readings may be put off: the device is then that far behind the loop, and has work while one waits."""


class Behind:
    """Puts off what reads logs until the device has computed them, where such readings come fast.

    A loop that reads the logs of a step at once waits for that step, and has not given the device the next one.

    Args:
        seconds: what comes later than this after the last reading is done at once, whatever it waits for.

    Example:
        >>> from elegy.callbacks import LazyLogs
        >>> behind, computed = Behind(seconds=60), []
        >>> for k in range(3):
        ...     logs = LazyLogs(lambda k=k: {"loss": k}, ready=lambda k=k: k in computed)
        ...     behind.do(lambda logs=logs: print(logs["loss"]), logs)
        ...     computed.append(k)
        0.0
        1.0
        >>> behind.catch_up()
        2.0
    """

    def __init__(self, seconds: float):
        self._seconds = seconds
        self._held: deque[tuple[Callable[[], None], Mapping[str, float]]] = deque()
        self._last = -float("inf")

    @property
    def holds(self) -> bool:
        """Whether something is put off."""
        return bool(self._held)

    def do(self, work: Callable[[], None], logs: Mapping[str, float]) -> None:
        """Does what was put off and need not wait; does `work`, or puts it off. The order is kept.

        Args:
            work: reads logs.
            logs: those that it reads.
        """
        self._held.append((work, logs))
        fast = time.monotonic() - self._last < self._seconds
        while self._held and (not fast or self._is_time()):
            self._held.popleft()[0]()
        self._last = time.monotonic()

    def _is_time(self) -> bool:
        """Whether the oldest reading need wait no longer: where nobody knows better, until the next one comes."""
        ready = getattr(self._held[0][1], "ready", None)
        return len(self._held) > (1 if ready is None else _MOST) or bool(ready)

    def catch_up(self) -> None:
        """Does what was put off; what comes after a reading that fails is forgotten."""
        held, self._held = self._held, deque()
        for work, _ in held:
            work()

    def clear(self) -> None:
        """Forgets what was put off."""
        self._held.clear()

    def end(self, event: Event, close: Callable[[], None]) -> None:
        """Does what was put off, and closes; of a run that failed, its own exception is the one to see.

        Args:
            event: the event of `on_train_end`.
            close: closes the files.

        Warns:
            UserWarning: when the run failed, and this does, too.
        """
        try:
            try:
                self.catch_up()
            finally:
                close()
        except Exception as error:
            if event.ended != "failed":
                raise
            warnings.warn(f"the run failed, and its last logs could not be written: {error}", stacklevel=3)
