"""Ctrl-C: the first ends the run cleanly, the second at once."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Any


class Interrupts:
    """The handler of one run: counts its interrupts.

    Args:
        trainer: the object whose `stop_training` is set.

    Attributes:
        interrupted: whether there was one.

    Example:
        >>> from types import SimpleNamespace
        >>> Interrupts(SimpleNamespace(stop_training=False)).interrupted
        False
    """

    def __init__(self, trainer: Any):
        self.trainer = trainer
        self.interrupted = False

    def __call__(self, signum: int, frame: FrameType | None) -> None:
        """Receives the signal."""
        if self.interrupted:
            raise KeyboardInterrupt
        self.interrupted = True
        self.trainer.stop_training = True
        # A stream that is being written to refuses; the message is a courtesy, the stop is not.
        with suppress(RuntimeError, OSError, ValueError):
            print(
                "\nInterrupted: training ends after the running step. Ctrl-C again stops it at once.",
                file=sys.stderr,
                flush=True,
            )


@contextmanager
def handle_interrupts(trainer: Any) -> Iterator[Interrupts]:
    """While it is open, the first Ctrl-C sets `trainer.stop_training` and the second raises `KeyboardInterrupt`.

    The handler that was there before comes back at the end. Nothing is done outside of the main thread, where Python
    allows no handlers, where interrupts are ignored (`nohup`) or handled by other than Python code, and inside of
    another such block of the same trainer.

    Args:
        trainer: the object whose `stop_training` is set.

    Returns:
        A context manager that gives the `Interrupts`, whose `interrupted` tells a stop by Ctrl-C from others.

    Example:
        >>> from types import SimpleNamespace
        >>> trainer = SimpleNamespace(stop_training=False)
        >>> with handle_interrupts(trainer) as interrupts:
        ...     signal.raise_signal(signal.SIGINT)
        >>> trainer.stop_training, interrupts.interrupted
        (True, True)
    """
    handler = Interrupts(trainer)
    if threading.current_thread() is not threading.main_thread():
        yield handler
        return
    previous = signal.getsignal(signal.SIGINT)
    if isinstance(previous, Interrupts) and previous.trainer is trainer:
        yield previous
        return
    if previous is None or previous is signal.SIG_IGN:
        yield handler
        return
    signal.signal(signal.SIGINT, handler)
    try:
        yield handler
    finally:
        signal.signal(signal.SIGINT, previous)
