"""Moments at which a thread waits, seen in its stack: no test depends on the speed of the machine."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator

from elegy import waiting


def wait_until(condition: Callable[[], bool]) -> None:
    while not condition():
        time.sleep(0.001)


def waits_in(thread: threading.Thread, function: Callable[..., object]) -> bool:
    """True if a thread waits for another one, a lock or an event in a call of a Python function."""
    frame = sys._current_frames().get(thread.ident or 0)
    if frame is None or frame.f_code.co_filename not in (threading.__file__, waiting.__file__):
        return False
    while frame is not None and frame.f_code is not function.__code__:
        frame = frame.f_back
    return frame is not None


@contextlib.contextmanager
def signal_in(function: Callable[..., object], number: int) -> Iterator[None]:
    """Sends one signal to the main thread, as soon as it waits in a call of a function."""
    main, ended = threading.main_thread(), threading.Event()

    def send() -> None:
        wait_until(lambda: ended.is_set() or waits_in(main, function))
        if not ended.is_set():
            signal.pthread_kill(main.ident, number)

    thread = threading.Thread(target=send)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()


@contextlib.contextmanager
def signals(handler: Callable[[], None], begin: threading.Event) -> Iterator[None]:
    """From an event on, sends signals which call a function in the main thread, which may do nothing at first."""
    before, ended = signal.signal(signal.SIGUSR1, lambda *_: handler()), threading.Event()

    def send() -> None:
        begin.wait()
        while not ended.wait(0.01):
            signal.pthread_kill(threading.main_thread().ident, signal.SIGUSR1)

    thread = threading.Thread(target=send)
    thread.start()
    try:
        yield
    finally:
        begin.set()
        ended.set()
        thread.join()
        signal.signal(signal.SIGUSR1, before)  # calls the handler for a signal that has just come
