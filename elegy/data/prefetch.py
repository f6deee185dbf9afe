"""One thread that works ahead."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterable, Iterator
from queue import SimpleQueue
from typing import Any, TypeVar

T = TypeVar("T")

_ITEM, _ERROR, _END = range(3)


def prefetch(iterator: Iterable[T], depth: int) -> Iterator[T]:
    """Runs an iterator up to `depth` items ahead, in a thread of its own.

    The thread starts with the first item that is asked for. It ends, and is waited for, when the iterator does, or
    when the returned generator is closed, collected or left by an exception.

    Args:
        iterator: what to run. It must be safe to run in another thread: NumPy work is; a user's iterable may not be.
        depth: how many items may wait; 0 runs the iterator in the caller's thread.

    Returns:
        A generator of the same items. An exception of the iterator is raised here, with its traceback.

    Raises:
        ValueError: when the depth is negative.

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
    try:
        while True:
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
    finally:
        stopped.append(True)
        room.put(False)
        # A collection may close this generator in the thread itself, or after threads were frozen for good.
        if thread is not threading.current_thread() and not sys.is_finalizing():
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
