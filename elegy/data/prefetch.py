"""One thread that works ahead."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Iterable, Iterator
from queue import SimpleQueue
from typing import Any, TypeVar

import jax

from elegy.waiting import RunInterrupted, Wait

T = TypeVar("T")

_ITEM, _ERROR, _END = range(3)


def prefetch(iterator: Iterable[T], depth: int) -> Iterator[T]:
    """Runs an iterator up to `depth` items ahead, in a thread of its own.

    The thread starts with the first item that is asked for. It ends, and is waited for, when the iterator does, or
    when the returned generator is closed, collected or left by an exception. A signal that ends `fit` while an item is
    waited for ends that wait, and does not wait for the thread.

    Args:
        iterator: what to run. It must be safe to run in another thread: NumPy work is; a user's iterable may not be.
        depth: how many items may wait; 0 runs the iterator in the caller's thread.

    Returns:
        A generator of the same items. An exception of the iterator is raised here, with its traceback.

    Raises:
        ValueError: if the depth is negative.

    Example:
        >>> list(prefetch(range(3), depth=2))
        [0, 1, 2]
    """
    if depth < 0:
        raise ValueError(f"the depth of a prefetch must not be negative: {depth}.")
    return _ahead(iterator, depth) if depth else (item for item in iterator)


def _ahead(iterator: Iterable[T], depth: int) -> Iterator[T]:
    # Simple queues, because their `put` may run inside a garbage collection that interrupts another `put`: a queue
    # with a Python lock could meet itself there. The tokens in `room` bound how far the thread gets ahead.
    room: SimpleQueue[bool] = SimpleQueue()
    ready: SimpleQueue[tuple[int, Any]] = SimpleQueue()
    stopped: list[bool] = []
    for _ in range(depth):
        room.put(True)
    thread = threading.Thread(target=_work, args=(iterator, room, ready, stopped), name="elegy-prefetch", daemon=True)
    thread.start()
    left = False
    # Of several processes none may leave the others alone: they agree on the step after which all of them stop.
    wait = contextlib.nullcontext() if jax.distributed.is_initialized() else Wait()
    try:
        while True:
            with wait:
                kind, value = ready.get()
            if kind == _END:
                return
            if kind == _ERROR:
                try:
                    raise value
                finally:
                    del value  # the traceback holds this frame: no cycle may keep the batch alive
            room.put(True)
            yield value
            del value
    except RunInterrupted:
        left = True
        raise
    finally:
        stopped.append(True)
        room.put(False)
        # A collection may close this generator in the thread itself, or after threads were frozen for good; a thread
        # that hangs in a read never ends.
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
