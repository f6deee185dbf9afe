"""Signal handlers: the first SIGINT or SIGTERM ends the run after the running step, a second Ctrl-C raises."""

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
"""Seconds to wait for the next batch after the first signal, so that a loader that works can return it."""


class Interrupts:
    """The signal handler of one run, which stores the first signal.

    After the first signal it checks every two seconds if the main thread still waits for the same batch, and ends that
    wait. As a context manager it defers a second Ctrl-C until the block ends: inside, a step consumes the buffers of
    the state, and its results are not stored yet.

    Args:
        trainer: the object whose `stop_training` is set.

    Attributes:
        signal: the number of the first signal, or None.
        timed_out: True if the time budget of a callback is used up.

    Example:
        >>> from types import SimpleNamespace
        >>> Interrupts(SimpleNamespace(stop_training=False)).interrupted
        False
    """

    def __init__(self, trainer: Any):
        self.trainer = trainer
        self.signal: int | None = None
        self.timed_out = False
        self._passed_on = False
        self._shared = getattr(getattr(trainer, "strategy", None), "processes", 1) > 1
        self._defers = self._deferred = False
        self._wait = 0  # the number of the main thread's wait at the last check
        self._looks = False
        self._lock, self._closed = threading.Lock(), threading.Event()

    def __enter__(self) -> Self:
        """Defers a second Ctrl-C from here on."""
        self._defers = True
        return self

    def __exit__(self, *_: object) -> None:
        """Raises a deferred Ctrl-C."""
        self._defers = False
        if self._deferred:
            self._deferred = False
            raise KeyboardInterrupt

    @property
    def interrupted(self) -> bool:
        """True if a signal was received, or the time budget is used up."""
        return self.signal is not None or self.timed_out

    @property
    def ending(self) -> Literal["finished", "interrupted"]:
        """How a run that raises no exception ended, for `Event.ended`."""
        return "interrupted" if self.interrupted else "finished"

    def time_out(self) -> None:
        """Stops the run as a signal does, because its time budget is used up."""
        self.timed_out = self.trainer.stop_training = True

    def agree(self) -> None:
        """Stops the run of several processes at the same step after one of them received SIGTERM.

        Every process must call it equally often.
        """
        from jax.experimental import multihost_utils

        if multihost_utils.reached_preemption_sync_point(next(_MEETINGS)):
            self.end()

    def __call__(self, signum: int, frame: FrameType | None) -> None:
        """Handles a signal."""
        if self._looks:
            self._looks = False
            self._end_long_wait()
            return
        if (self.interrupted or self._passed_on) and signum == signal.SIGINT:
            if not self._defers:
                raise KeyboardInterrupt
            self._deferred = True
            return
        if self.interrupted:
            return
        if self._shared:
            self._passed_on = True
            signal.raise_signal(signal.SIGTERM)  # JAX's handler tells the other processes
        else:
            self.end(signum)
        # Writing fails if the signal interrupted a write to the same stream; the run then stops without the message.
        with suppress(RuntimeError, OSError, ValueError):
            print(
                f"\n{_name(signum)}: training ends after the running step. Ctrl-C{_again(signum)} stops it at once.",
                file=sys.stderr,
                flush=True,
            )
        self._wait = current_wait()
        threading.Thread(target=self._look_again, args=(signum,), name="elegy-interrupt", daemon=True).start()

    def _look_again(self, signum: int) -> None:
        """Sends the signal again every two seconds: the handler runs in the main thread and can end its system call."""
        while not self._closed.wait(PATIENCE):
            with self._lock:
                installed = signal.getsignal(signum) is self  # the data of this run may call another trainer's fit
                if installed and not self._closed.is_set():
                    self._looks = True
                    signal.pthread_kill(threading.main_thread().ident, signum)  # type: ignore[arg-type]

    def _end_long_wait(self) -> None:
        """Ends the wait of the main thread if it is the one of the last check."""
        before, self._wait = self._wait, current_wait()
        if self._wait and self._wait == before:
            self.end()
            end_wait()

    def close(self) -> None:
        """Stops the periodic checks."""
        with self._lock:
            self._closed.set()
        while self._looks:  # a signal on its way must not reach another handler
            time.sleep(0)

    def end(self, signum: int = signal.SIGTERM) -> None:
        """Stops the run, and stores the signal if it is the first one.

        Args:
            signum: the number of the signal.
        """
        self.signal = self.signal or signum
        self.trainer.stop_training = True


def _name(signum: int) -> str:
    return "Interrupted" if signum == signal.SIGINT else "Terminated"


def _again(signum: int) -> str:
    return " again" if signum == signal.SIGINT else ""


@contextmanager
def handle_interrupts(trainer: Any) -> Iterator[Interrupts]:
    """Inside of the block, the first SIGINT (Ctrl-C) or SIGTERM sets `trainer.stop_training`, a second SIGINT raises.

    If the main thread still waits for data two seconds after the signal, the wait raises `RunInterrupted`.

    The previous handlers are restored at the end. The block does nothing outside of the main thread, where Python
    allows no handlers, or inside of another such block of the same trainer. Signals that are ignored (`nohup`) or have
    a handler that is not Python code keep their handler, and so does SIGTERM in a program of several processes: JAX's
    handler makes all of them stop at the same step.

    Args:
        trainer: the object whose `stop_training` is set.

    Returns:
        A context manager that returns the `Interrupts`; its `interrupted` is True if a signal stopped the run.

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
    with no_wait():  # the block may run inside of a `Wait`, for example in the data of another trainer
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


@contextmanager
def interrupt_deferred() -> Iterator[None]:
    """Inside of the block, Ctrl-C waits for its end: a step consumes the state, and its results are not stored yet.

    The block does nothing outside of the main thread, or if the handler of Ctrl-C is not Python code.

    Example:
        >>> with suppress(KeyboardInterrupt), interrupt_deferred():
        ...     signal.raise_signal(signal.SIGINT)
        ...     print("stored")
        stored
    """
    handler = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(handler):
        yield
        return
    received: list[tuple[int, FrameType | None]] = []
    signal.signal(signal.SIGINT, lambda *arguments: received.append(arguments))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        if received:
            handler(*received[0])


@contextmanager
def interrupt_kept() -> Iterator[None]:
    """A block that ends with `KeyboardInterrupt` if Ctrl-C was pressed in it, also where Python dropped the exception.

    What is raised in the callback of a weak reference or in `__del__` is only printed. These are often the first to run
    after a long call into C, such as the compiler's, so that a waiting signal raises there.

    The block does nothing outside of the main thread, or if Ctrl-C has another handler than Python's own.

    Example:
        >>> with suppress(KeyboardInterrupt), interrupt_kept():
        ...     with suppress(KeyboardInterrupt):  # as Python does for a weak reference
        ...         signal.raise_signal(signal.SIGINT)
        ...     print("goes on")
        goes on
    """
    usual = signal.default_int_handler
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGINT) is not usual:
        yield
        return
    received: list[int] = []

    def handle(signum: int, frame: FrameType | None) -> None:
        received.append(signum)
        usual(signum, frame)

    signal.signal(signal.SIGINT, handle)
    try:
        yield
    finally:
        if signal.getsignal(signal.SIGINT) is handle:
            signal.signal(signal.SIGINT, usual)
    if received:
        raise KeyboardInterrupt
