"""One `fit` of a trainer at a time, and what other threads may not do meanwhile."""

from __future__ import annotations

import contextlib
import threading
import weakref
from collections.abc import Iterator
from typing import Any

_fitting: weakref.WeakKeyDictionary[Any, tuple[int]] = weakref.WeakKeyDictionary()
"""For each running fit a tuple of its own, which has the number of its thread."""


@contextlib.contextmanager
def one_fit(session: Any) -> Iterator[None]:
    """While the block runs, the trainer cannot be fitted by another thread, a callback or the data.

    Raises:
        RuntimeError: if it is being fitted already.
    """
    mine = (threading.get_ident(),)
    try:
        if _fitting.setdefault(session, mine) is not mine:
            raise _refusal("fit")
        yield
    finally:
        if _fitting.get(session) is mine:
            del _fitting[session]


def not_in_fit(session: Any, method: str) -> None:
    """Checks that the trainer is not being fitted: another training would change the counters of that run.

    Raises:
        RuntimeError: while `fit` runs, in whichever thread.
    """
    if session in _fitting:
        raise _refusal(method)


def _refusal(method: str) -> RuntimeError:
    return RuntimeError(
        f"{method} was called while fit of the same trainer runs, whose steps and epochs it would take: call it "
        "before or after, and not in another thread. Within a callback, evaluate and predict may be called, and "
        "`trainer.stop_training = True` ends the run."
    )


def in_thread_of_fit(session: Any, method: str) -> None:
    """Checks that no other thread fits the trainer: its state and its counters would be those of different steps.

    Raises:
        RuntimeError: while `fit` runs in another thread.
    """
    here = (threading.get_ident(),)
    if _fitting.get(session, here) != here:
        raise RuntimeError(
            f"{method} was called while fit of the same trainer runs in another thread, where the next step may have "
            "begun, so that the state would not fit the counters. Call it before or after, or in a callback. Data that "
            "a thread reads ahead may save with `fit(prefetch=0)`; state, predict and evaluate may be used."
        )
