"""Reads an iterator ahead of its consumer, in a thread."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator
from queue import Empty, SimpleQueue
from typing import Any

from elegy.settings import inherited
from elegy.waiting import RunInterrupted, Wait, join, receive

_PATIENCE = 2.0
"""Seconds to wait for the item that a thread reads when it is stopped. A thread that hangs in a read is left alone."""

Convert = Callable[[Any, int], Any]
"""Makes the value of an item, from what the iterator returned and the number of the item; called in the thread."""

_END = object()


@dataclasses.dataclass(slots=True)
class Item:
    """One item that was read.

    Args:
        raw: what the iterator returned; None if the value is never made again.
        convert: the function that made the value; None if there is no value.
        value: the value.
        error: what the iterator or the function raised.
        state: the state of the data after the item was read.
    """

    raw: Any
    convert: Convert | None = None
    value: Any = None
    error: BaseException | None = None
    state: Any = None

    def get(self, convert: Convert, number: int) -> Any:
        """Returns the value that a function makes; raises what it raised in the thread.

        Args:
            convert: the function. If the thread called another one, it is called now.
            number: the number of the item.
        """
        if self.convert != convert:
            return convert(self.raw, number)
        if self.error is not None:
            _raise(self.error)
        return self.value


class ReadAhead:
    """Reads an iterator in a thread, as far ahead as its consumer allows. It can be stopped, and go on.

    The thread starts with the first item, reads all items, and lets go of the iterator itself, so that a generator
    runs in one thread from its beginning to its `finally`. It reads only what was asked for: an item that is taken,
    and a number of items after it. An exception of the iterator is raised by `take` in the place of its item, with
    the traceback of the thread.

    A signal can end the wait for an item (`elegy.waiting`). The item is not lost: the next call waits for it again.

    Args:
        state_of: returns the state of the data after each item; called in the thread with the iterator.
        keep: a function that copies what the iterator returned, so that items which were read but not taken when it is
            stopped are there in the next call of `take`, which may make other values of them; None to drop them.

    Attributes:
        state: the state of the data after the last item that was taken.

    Example:
        >>> reader, squares = ReadAhead(), iter([1, 2])
        >>> square = lambda item, number: item**2
        >>> [reader.take(squares, square, n, ahead=1).get(square, n) for n in range(2)]
        [1, 4]
        >>> reader.stop()
    """

    def __init__(self, state_of: Callable[[Iterator], Any] | None = None, keep: Callable[[Any], Any] | None = None):
        self.state: Any = None
        self._state_of, self._keep = state_of, keep
        self._read: deque[Item] = deque()
        self._ready: SimpleQueue[None] = SimpleQueue()  # wakes the consumer; may have more tokens than there are items
        self._requests: SimpleQueue[Convert | None] = SimpleQueue()
        self._asked = 0  # items that were asked for and not taken yet
        self._thread: threading.Thread | None = None
        self._stopped: list[bool] = []
        self._hangs = False

    @property
    def has_items(self) -> bool:
        """True if there are items that were read and not taken, or the thread still reads one."""
        return bool(self._read) or self._thread is not None

    def take(self, items: Iterator | None, convert: Convert, number: int, ahead: int) -> Item:
        """Returns the next item, and asks for others to be read meanwhile.

        Args:
            items: the iterator, if the thread has to be started; it then belongs to the thread.
            convert: makes the values of this item and of those ahead.
            number: the number of this item.
            ahead: how many items may be read beyond this one.

        Raises:
            StopIteration: at the end.
            Exception: what the iterator raised.
        """
        if self._read:
            with contextlib.suppress(Empty):
                self._ready.get_nowait()
        while not self._read:
            self._wait(items, convert, number)
        item = self._read.popleft()
        self._asked, self._hangs = self._asked - 1, False
        if item.raw is _END:
            self._thread, self._asked, self._requests = None, 0, SimpleQueue()
            if item.error is not None:
                _raise(item.error)
            raise StopIteration
        self.state = item.state
        self.ask(convert, ahead)
        return item

    def ask(self, convert: Convert, ahead: int) -> None:
        """Lets a running thread read ahead.

        Args:
            convert: makes the values of the items.
            ahead: how many items may be read and not taken.
        """
        while self._asked < ahead and self._thread is not None and not self._stopped:
            self._asked += 1
            self._requests.put(convert)

    def _wait(self, items: Iterator | None, convert: Convert, number: int) -> None:
        """Waits until there may be an item."""
        if self._thread is not None and self._stopped:  # in an earlier call; it ends after the item that it reads
            with Wait():
                join(self._thread)
            self._thread, self._asked = None, len(self._read)
            return
        if self._thread is None:
            assert items is not None
            self._start(items, number)
        self.ask(convert, 1)
        try:
            with Wait():
                receive(self._ready)
        except RunInterrupted:
            self._hangs = True
            raise

    def _start(self, items: Iterator, number: int) -> None:
        if self._state_of is not None:
            self.state = self._state_of(items)
        self._stopped, self._requests, self._asked, self._hangs = [], SimpleQueue(), 0, False
        work = _Work(
            self._requests,
            self._read,
            self._ready,
            self._stopped,
            self._state_of,
            self._keep,
            [items],
            number,
        )
        self._thread = threading.Thread(target=inherited(work.run), name="elegy-read-ahead", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread. Waits for the item that it reads, but not long."""
        thread = self._thread
        if thread is None:
            return
        self._stopped.append(True)
        self._requests.put(None)
        # Garbage collection may get here in the thread itself, or when other threads no longer run.
        if thread is not threading.current_thread() and not sys.is_finalizing():
            thread.join(0 if self._hangs else _PATIENCE)
        self._requests = SimpleQueue()  # requests may refer to the iterator
        if not thread.is_alive():
            self._thread, self._asked = None, len(self._read) if self._keep else 0
        if not self._keep:
            self._read.clear()
        for item in self._read:  # values, functions and errors may refer to the iterator, which nothing would free
            item.convert = item.value = None
            item.error = item.error if item.raw is _END else None

    def forget(self) -> None:
        """Ends the thread, and drops the items that were read and not taken: the data was moved to another position."""
        self.stop()
        while self._thread is not None:  # it still reads one
            self._wait(None, _no_value, 0)
        self._read.clear()
        self._asked = 0


@dataclasses.dataclass
class _Work:
    """What the thread does. It does not refer to its `ReadAhead`."""

    requests: SimpleQueue[Convert | None]
    read: deque[Item]
    ready: SimpleQueue[None]
    stopped: list[bool]
    state_of: Callable[[Iterator], Any] | None
    keep: Callable[[Any], Any] | None
    items: list[Iterator]  # emptied by the thread, so that it has the last reference
    number: int

    def run(self) -> None:
        items = self.items.pop()
        try:
            while not self.stopped and (convert := self.requests.get()) is not None and not self.stopped:
                self.read.append(self.next_item(items, convert))
                del convert
                self.ready.put(None)
        except StopIteration:
            self.read.append(Item(_END))
        except BaseException as error:
            if "thread" in str(error).lower():
                error.add_note(
                    "The data was read in a thread, ahead of the steps. With `prefetch=0` it is read in the thread "
                    "that calls `fit`, `evaluate` or `predict`."
                )
            self.read.append(Item(_END, error=_from_below(error, 2)))
        finally:
            self.ready.put(None)

    def next_item(self, items: Iterator, convert: Convert) -> Item:
        raw, number = next(items), self.number
        self.number += 1
        item = Item(None if self.keep is None else self.keep(raw))
        if self.state_of is not None:
            item.state = self.state_of(items)
        if not self.stopped:
            item.convert = convert
            try:
                item.value = convert(raw, number)
            except Exception as error:
                item.error = _from_below(error, 1)
        return item


def _no_value(raw: Any, number: int) -> None:
    return None


def _from_below(error: BaseException, calls: int) -> BaseException:
    """Takes calls of this file out of a traceback, which would keep their variables, such as the iterator, alive."""
    traceback = error.__traceback__
    for _ in range(calls):
        traceback = traceback and traceback.tb_next
    return error.with_traceback(traceback)


def _raise(error: BaseException) -> None:
    try:
        raise error
    finally:
        del error  # the traceback refers to this call, which would refer to the error
