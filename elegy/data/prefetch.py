"""Prefetches items of an iterator in a thread."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Generator, Iterable
from queue import SimpleQueue
from typing import Any, TypeVar

import jax

from elegy.settings import inherited
from elegy.waiting import RunInterrupted, Wait, receive

T = TypeVar("T")

_ITEM, _ERROR, _END = range(3)


def prefetch(iterator: Iterable[T], depth: int) -> Generator[T, None, None]:
    """Runs an iterator up to `depth` items ahead, in a thread.

    The thread starts when the first item is requested. It is joined when the iterator ends, or the returned generator
    is closed, collected or left by an exception. If a signal ends the wait for an item, the thread is not joined.

    Args:
        iterator: the iterator. It must be safe to run in another thread: NumPy code is; a user's iterable may not be.
        depth: how many items may be ready ahead; 0 runs the iterator in the caller's thread.

    Returns:
        A generator of the same items. It raises the exceptions of the iterator, with their traceback.

    Raises:
        ValueError: if the depth is negative.

    Example:
        >>> list(prefetch(range(3), depth=2))
        [0, 1, 2]
    """
    if depth < 0:
        raise ValueError(f"the depth of a prefetch must not be negative: {depth}.")
    return _ahead(iterator, depth) if depth else (item for item in iterator)


def _ahead(iterator: Iterable[T], depth: int) -> Generator[T, None, None]:
    # Simple queues: garbage collection may interrupt a `put` and call another `put`, which would deadlock in a queue
    # with a Python lock. The tokens in `room` bound how far the thread gets ahead.
    room: SimpleQueue[bool] = SimpleQueue()
    ready: SimpleQueue[tuple[int, Any]] = SimpleQueue()
    stopped: list[bool] = []
    for _ in range(depth):
        room.put(True)
    args = iterator, room, ready, stopped
    thread = threading.Thread(target=inherited(_work), args=args, name="elegy-prefetch", daemon=True)
    thread.start()
    left = False
    # A signal must not end the wait of one of several processes: all of them must stop after the same step.
    wait = contextlib.nullcontext() if jax.distributed.is_initialized() else Wait()
    try:
        while True:
            with wait:
                kind, value = receive(ready)
            if kind == _END:
                return
            if kind == _ERROR:
                try:
                    raise value
                finally:
                    del value  # the traceback refers to this frame: avoid a cycle that keeps the batch alive
            room.put(True)
            yield value
            del value
    except RunInterrupted:
        left = True
        raise
    finally:
        stopped.append(True)
        room.put(False)
        # Garbage collection may close this generator in the thread itself or at interpreter shutdown, when other
        # threads no longer run; a thread that hangs in a read never ends.
        if not left and thread is not threading.current_thread() and not sys.is_finalizing():
            thread.join()


def _work(iterator: Iterable, room: SimpleQueue, ready: SimpleQueue, stopped: list[bool]) -> None:
    try:
        items = iter(iterator)
        while room.get() and not stopped:
            try:
                item = next(items)
            except StopIteration:
                break
            ready.put((_ITEM, item))
            del item
        close = getattr(items, "close", None)
        if close is not None:
            close()
        ready.put((_END, None))
    except BaseException as error:
        ready.put((_ERROR, error))
