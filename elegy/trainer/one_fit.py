"""One `fit` of a trainer at a time, and what other threads may not do meanwhile."""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections.abc import Iterator
from typing import Any

_fitting: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()  # the thread of each running fit
_fitting_lock = threading.Lock()


@contextlib.contextmanager
def one_fit(session: Any) -> Iterator[None]:
    """While the block runs, the trainer cannot be fitted by another thread, a callback or the data.

    Raises:
        RuntimeError: if it is being fitted already.
    """
    with _fitting_lock:
        not_in_fit(session, "fit")
        _fitting[session] = threading.get_ident()
    try:
        yield
    finally:
        del _fitting[session]


def not_in_fit(session: Any, method: str) -> None:
    """Checks that the trainer is not being fitted: another training would change the counters of that run.

    Raises:
        RuntimeError: while `fit` runs, in whichever thread.
    """
    if session in _fitting:
        raise RuntimeError(
            f"{method} was called while fit of the same trainer runs, whose steps and epochs it would take: call it "
            "before or after, and not in another thread. Within a callback, evaluate and predict may be called, and "
            "`trainer.stop_training = True` ends the run."
        )


def in_thread_of_fit(session: Any, method: str) -> None:
    """Checks that no other thread fits the trainer: its state and its counters would be those of different steps.

    Raises:
        RuntimeError: while `fit` runs in another thread.
    """
    if _fitting.get(session, here := threading.get_ident()) != here:
        raise RuntimeError(
            f"{method} was called while fit of the same trainer runs in another thread, where the next step may have "
            "begun, so that the state would not fit the counters. Call it before or after, or in a callback. Data that "
            "a thread reads ahead may save with `fit(prefetch=0)`; state, predict and evaluate may be used."
        )
