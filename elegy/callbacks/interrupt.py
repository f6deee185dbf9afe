"""Ctrl-C and SIGTERM: the first signal ends the run cleanly, a second Ctrl-C at once."""

from __future__ import annotations

import itertools
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any, Literal, Self

import jax

from elegy.waiting import current_wait, end_wait, no_wait

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_MEETINGS = itertools.count(1)

PATIENCE = 2.0
"""Seconds that a batch may take to come after the first signal; data that works is not torn out of its next batch."""


class Interrupts:
    """The handler of one run: remembers its first signal.

    From the first signal on it looks every two seconds whether the main thread still waits for the same batch, and
    ends that wait. As a context manager it holds a second Ctrl-C back until the block ends: inside, a step consumes the
    state's buffers, and its results are not yet where they belong.

    Args:
        trainer: the object whose `stop_training` is set.

    Attributes:
        signal: the number of the first signal; None while there was none.

    Example:
        >>> from types import SimpleNamespace
        >>> Interrupts(SimpleNamespace(stop_training=False)).interrupted
        False
    """

    def __init__(self, trainer: Any):
        self.trainer = trainer
        self.signal: int | None = None
        self._passed_on = False
        self._shared = getattr(getattr(trainer, "strategy", None), "processes", 1) > 1
        self._holds = self._held_back = False
        self._wait = 0  # the wait of the main thread when it was looked at last
        self._looks = False
        self._lock, self._closed = threading.Lock(), threading.Event()

    def __enter__(self) -> Self:
        """From here on a second Ctrl-C waits."""
        self._holds = True
        return self

    def __exit__(self, *_: object) -> None:
        """Raises what waited."""
        self._holds = False
        if self._held_back:
            self._held_back = False
            raise KeyboardInterrupt

    @property
    def interrupted(self) -> bool:
        """Whether there was a signal."""
        return self.signal is not None

    @property
    def ending(self) -> Literal["finished", "interrupted"]:
        """How a run without an exception ends."""
        return "interrupted" if self.interrupted else "finished"

    def agree(self) -> None:
        """Stops the run where several processes have agreed to, because one of them received SIGTERM.

        All of them call it equally often.
        """
        from jax.experimental import multihost_utils

        if multihost_utils.reached_preemption_sync_point(next(_MEETINGS)):
            self.end()

    def __call__(self, signum: int, frame: FrameType | None) -> None:
        """Receives a signal."""
        if self._looks:
            self._looks = False
            self._end_long_wait()
            return
        if (self.interrupted or self._passed_on) and signum == signal.SIGINT:
            if not self._holds:
                raise KeyboardInterrupt
            self._held_back = True
            return
        if self.interrupted:
            return
        if self._shared:
            self._passed_on = True
            signal.raise_signal(signal.SIGTERM)  # JAX hears it and tells the other processes
        else:
            self.end(signum)
        # A stream that is being written to refuses; the message is a courtesy, the stop is not.
        with suppress(RuntimeError, OSError, ValueError):
            print(
                f"\n{_name(signum)}: training ends after the running step. Ctrl-C{_again(signum)} stops it at once.",
                file=sys.stderr,
                flush=True,
            )
        self._wait = current_wait()
        threading.Thread(target=self._look_again, args=(signum,), name="elegy-interrupt", daemon=True).start()

    def _look_again(self, signum: int) -> None:
        """Has the handler look from time to time: it runs in the main thread, where a signal ends system calls."""
        while not self._closed.wait(PATIENCE):
            with self._lock:
                installed = signal.getsignal(signum) is self  # another trainer's fit may run inside of this one's data
                if installed and not self._closed.is_set():
                    self._looks = True
                    signal.pthread_kill(threading.main_thread().ident, signum)  # type: ignore[arg-type]

    def _end_long_wait(self) -> None:
        """Ends a wait in which the main thread was the last time, too."""
        before, self._wait = self._wait, current_wait()
        if self._wait and self._wait == before:
            self.end()
            end_wait()

    def close(self) -> None:
        """The run is over: the handler will not be called by this object any more."""
        with self._lock:
            self._closed.set()
        while self._looks:  # that signal is on its way, and must not meet another handler
            time.sleep(0)

    def end(self, signum: int = signal.SIGTERM) -> None:
        """Stops the run because of a signal: the first one counts.

        Args:
            signum: its number.
        """
        self.signal = self.signal or signum
        self.trainer.stop_training = True


def _name(signum: int) -> str:
    return "Interrupted" if signum == signal.SIGINT else "Terminated"


def _again(signum: int) -> str:
    return " again" if signum == signal.SIGINT else ""


@contextmanager
def handle_interrupts(trainer: Any) -> Iterator[Interrupts]:
    """While it is open, the first SIGINT (Ctrl-C) or SIGTERM sets `trainer.stop_training`, a second SIGINT raises.

    A wait of the main thread for data that goes on for two seconds after the signal raises `RunInterrupted`.

    The handlers that were there before come back at the end. Nothing is done outside of the main thread, where Python
    allows no handlers, and inside of another such block of the same trainer. A signal that is ignored (`nohup`) or
    handled by other than Python code is left alone, and so is SIGTERM in a program of several processes: there JAX
    listens to it, so that all of them stop at the same step.

    Args:
        trainer: the object whose `stop_training` is set.

    Returns:
        A context manager that gives the `Interrupts`, whose `interrupted` tells a stop by a signal from others.

    Example:
        >>> from types import SimpleNamespace
        >>> trainer = SimpleNamespace(stop_training=False)
        >>> with handle_interrupts(trainer) as interrupts:
        ...     signal.raise_signal(signal.SIGTERM)
        >>> trainer.stop_training, interrupts.interrupted
        (True, True)
    """
    handler = Interrupts(trainer)
    if threading.current_thread() is not threading.main_thread():
        yield handler
        return
    previous: dict[signal.Signals, Any] = {}
    for number in _SIGNALS:
        before = signal.getsignal(number)
        if isinstance(before, Interrupts) and before.trainer is trainer:
            yield before
            return
        if before is None or before is signal.SIG_IGN:
            continue
        if number == signal.SIGTERM and jax.distributed.is_initialized():
            continue
        previous[number] = before
    with no_wait():  # the block may run inside of code that is waited for, such as data of another trainer
        for number in previous:
            signal.signal(number, handler)
        try:
            yield handler
        finally:
            try:
                handler.close()
            finally:
                for number, before in previous.items():
                    signal.signal(number, before)
