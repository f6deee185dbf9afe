"""Starts iterations over an iterable, and counts the batches of each."""

from __future__ import annotations

import dataclasses
import time
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

from elegy.callers import stacklevel_of_caller
from elegy.data.convert import is_array_like
from elegy.data.foreign_order import (
    is_reseeded,
    let_grain_read_its_flags,
    random_state,
    random_state_within,
    reseeded,
    set_random_state,
    warn_if_repeated,
    warn_of_fork,
)
from elegy.data.foreign_state import get_state, has_state, set_state
from elegy.data.read_ahead import ReadAhead
from elegy.data.reading import Reading, reader_of
from elegy.errors import CheckpointError
from elegy.names import type_name
from elegy.waiting import RunInterrupted, Wait

SLOW_SECONDS = 5.0
"""Seconds of skipping batches after which there is a warning."""

REMEDY = "Data with `state_dict` and `load_state_dict`, or `get_state` and `set_state`, needs no skipping."
"""The advice about skipped batches in messages."""


@dataclasses.dataclass
class Iteration:
    """One iterator over the data, from its beginning to its end.

    Args:
        number: the index of the iteration; the order of the data may depend on it.
        iterable: the iterable.
        iterator: its iterator; None while a thread reads it, unless the user holds it, too.
        random: the state of the random generators before the iteration, for libraries that draw their order from them.
        read: how many batches were read.
        ended: True after the last batch.
        left: True if it was abandoned before its end.
        ahead: reads it in a thread; None if it is not read ahead.
    """

    number: int
    iterable: Any
    iterator: Iterator | None
    random: Any = None
    read: int = 0
    ended: bool = False
    left: bool = False
    ahead: ReadAhead | None = None

    def leave(self) -> None:
        """Drops the iterator before its end."""
        self.left, self.ended = not self.ended, True
        self.iterator = iter(())


class OwnState(NamedTuple):
    """The states of an iterator, of the iterable, and of the random generators that both use; None if there is none."""

    iterator: Any = None
    iterable: Any = None
    random: Any = None


class Reader:
    """Reads an iterable, one iteration after another.

    Args:
        iterable: the iterable; see `IterableSource`.
        what: the call, for messages. In `"fit"` each iteration is reseeded if the library supports it.
        number: the index of the first iteration.
        reading: how far, and in which block, the iterable may be read ahead; None for nowhere.

    Attributes:
        one_shot: True for an iterator.
        now: the running iteration, or the last one.
        before: the iteration before that.
        next_number: the index of the next iteration.
        seen: the number of batches that were taken, over all iterations.
        until: the number of batches up to which batches may be read ahead; infinity for all.
        interrupted: True if a signal ended the wait for a batch, so that the position of the iterator is unknown.
    """

    def __init__(self, iterable: Any, what: str, number: int = 0, reading: Reading | None = None):
        self.iterable, self.what, self.next_number = iterable, what, number
        self.one_shot = isinstance(iterable, Iterator)
        self._reading = Reading() if reading is None else reading
        self.until: float = 0
        self.now: Iteration | None = None
        self.before: Iteration | None = None
        self.seen = 0
        self.interrupted = False
        self._random: Any = None  # the state of the random generators for the next iteration
        self._state_before: Any = None  # before the last batch that was taken: a chunk may have ended without it
        self._warned: set[str] = set()

    @property
    def is_open(self) -> bool:
        """True while an iteration runs."""
        return self.now is not None and not self.now.ended

    @property
    def kind(self) -> str:
        """The type of the iterable, for messages."""
        return type(self.iterable).__name__

    def begin(self, first: int = 0) -> Iteration:
        """Begins the next iteration.

        Args:
            first: the index at which to begin in a sequence.

        Raises:
            TypeError: if a function did not return something to iterate over.
        """
        self._stop()
        begun: Iteration = self._wait(
            lambda: begin(
                self.iterable, self.next_number, self.what, reseed=self._reseeds, random=self._random, first=first
            )
        )
        if self._once("fork"):
            warn_of_fork(begun.iterable, self.what)
        if self._reseeds and self.now is not None and self.now.ended and self._once("repeats"):
            warn_if_repeated(begun.iterable, begun.iterator, self.what)
        begun.ahead = self._ahead(begun)
        self.before, self.now = self.now, begun
        self.next_number, self._random = self.next_number + 1, None
        return begun

    def _ahead(self, begun: Iteration) -> ReadAhead | None:
        """Returns what reads an iteration ahead; None for batches in memory, and outside of a block of reading."""
        if self.one_shot:
            return reader_of(self.iterable, _own_state if has_state(self.iterable) else None)
        if not self._reading.depth or isinstance(self.iterable, (list, tuple)):
            return None
        stateful = has_state(self.iterable) or has_state(begun.iterator)
        return ReadAhead(partial(_own_state, iterable=self.iterable) if stateful else None)

    def _stop(self) -> None:
        """Ends the thread of the iteration, which goes on if the user holds the iterator."""
        if self.now is not None and self.now.ahead is not None:
            self._reading.drop(self.now.ahead)

    def leave(self) -> None:
        """Drops the iterator before its end."""
        if self.now is not None:
            self._stop()
            self.now.leave()

    @property
    def _reseeds(self) -> bool:
        return self.what == "fit"

    def _once(self, warning: str) -> bool:
        if warning in self._warned:
            return False
        self._warned.add(warning)
        return True

    def read(self, prepare: Callable[[Any, int], Any]) -> Callable[[], Any]:
        """Reads the next batch of the iteration.

        Args:
            prepare: a function of the batch, as the iterable yields it, and of its number. It may be called ahead, in
                another thread.

        Returns:
            A function that returns the result of `prepare`, or raises its error.

        Raises:
            StopIteration: at the end.
        """
        now, number, depth = self.now, self.seen, self._reading.depth
        if now is None or now.ended:
            raise StopIteration
        before = self._state_now() if now.read and self.what == "fit" else None
        try:
            if now.ahead is not None and (depth or now.ahead.has_items):
                result = self._taken_ahead(now, now.ahead, prepare)
            else:
                result = partial(prepare, self._wait(now.iterator.__next__), number)  # type: ignore[union-attr]
        except StopIteration:
            now.ended = True
            raise
        now.read += 1
        self.seen += 1
        self._state_before = before
        return result

    def _taken_ahead(self, now: Iteration, ahead: ReadAhead, prepare: Callable[[Any, int], Any]) -> Callable[[], Any]:
        self._reading.add(ahead)
        items = now.iterator
        if not self.one_shot:  # it belongs to the thread now
            now.iterable = None if now.iterable is items else now.iterable
            now.iterator = None
        return partial(ahead.take(items, prepare, self.seen, self._most(1)).get, prepare, self.seen)

    def _most(self, taken: int) -> int:
        """Returns how many batches may be ready after some more are taken."""
        return int(min(self._reading.depth, max(self.until - self.seen - taken, 0)))

    def read_ahead_to(self, until: float, prepare: Callable[[Any, int], Any]) -> None:
        """Sets `until`, and begins to read ahead if a batch was read before; `prepare` as for `read`."""
        self.until = until
        if self.now is not None and self.now.ahead is not None:
            self.now.ahead.ask(prepare, self._most(0))

    def own_state(self, ahead: int) -> OwnState:
        """Returns the states of the iterator and the iterable; None without one, and if the state is not known.

        Args:
            ahead: how many of the batches that were read will be read again. The states after the last batch that was
                taken, and before it, are known.

        Raises:
            CheckpointError: if a state cannot be read or stored.
        """
        state = self._state_now() if not ahead else self._state_before if ahead == 1 else None
        if isinstance(state, CheckpointError):
            raise state
        return OwnState() if state is None else state

    def _state_now(self) -> OwnState | CheckpointError | None:
        """The states of the iterator and the iterable after the last batch that was taken, or the error."""
        now = self.now
        if now is None or now.ended:
            return _own_state(self.iterable) if self.one_shot else _own_state(None, self.iterable)
        if now.ahead is not None and now.ahead.has_items:
            return now.ahead.state
        return _own_state(now.iterator, None if self.one_shot else self.iterable)

    def _wait(self, call: Callable[[], Any]) -> Any:
        """Calls into the iterable. The call may hang, so a signal can end it."""
        try:
            with Wait():
                return call()
        except RunInterrupted:
            self.interrupted = True
            raise

    def place(self, ahead: int) -> tuple[int, int, Any]:
        """Returns the position of the next batch: the iteration's number, the index, and the initial random state.

        Args:
            ahead: how many of the batches that were read will be read again.
        """
        now, before = self.now, self.before
        if now is not None and before is not None and ahead > now.read:
            return before.number, before.read + now.read - ahead, before.random
        if now is not None and (ahead or not now.ended):
            return now.number, now.read - ahead, now.random
        return self.next_number, 0, random_state(self.iterable) if self._reseeds else None

    def go_to(self, number: int, random: Any = None) -> None:
        """Drops the iterations; the next one has this number and random state."""
        self._stop()
        self.now, self.before, self.next_number, self._random = None, None, number, random
        self._state_before = None

    def renumber(self, number: int) -> bool:
        """Sets the number of the running or next iteration.

        Returns:
            True if the number changes the order, so that the iteration was dropped.
        """
        now = self.now
        reseeds = self._reseeds and not self.one_shot
        if now is not None and now.number != number and reseeds and is_reseeded(now.iterable):
            self.go_to(number)
            return True
        if now is not None:
            now.number = number
        self.next_number = number if now is None else number + 1
        return False

    def set_own_state(self, state: Any) -> None:
        """Moves the iterator of the iteration to a position.

        Raises:
            CheckpointError: if it has no method for it.
        """
        assert self.now is not None
        if self.now.ahead is not None:
            self.now.ahead.forget()
        set_state(self.now.iterator, state)

    def skip(self, count: int, begun: bool = False) -> None:
        """Reads batches and drops them.

        Args:
            count: the number of batches.
            begun: True if the iterator was read before; if it ends, a new iteration begins.

        Raises:
            ValueError: if the data has fewer batches.

        Warns:
            UserWarning: if it takes longer than a few seconds.
        """
        started, done, self.until = time.monotonic(), 0, 0
        while done < count:
            try:
                self.read(_as_read)
            except StopIteration:
                if not (self.one_shot and begun):
                    raise self.other_data(count, done) from None
                self.begin()
                begun = False
                continue
            done, begun = done + 1, True
        seconds = time.monotonic() - started
        if seconds > SLOW_SECONDS:
            warnings.warn(
                f"reading the {count} batches that the interrupted run had seen took {seconds:.0f} s. {REMEDY}",
                stacklevel=stacklevel_of_caller(),
            )

    def other_data(self, count: int, found: int) -> ValueError:
        """Returns the error for data that ends before the position of a resumed run."""
        return ValueError(
            f"the interrupted run had read {count} batches, but the {self.kind} given to {self.what} ended after "
            f"{found}. Resume with the data that the run began with."
        )


def _as_read(item: Any, number: int) -> Any:
    return item


def _own_state(iterator: Any, iterable: Any = None) -> OwnState | CheckpointError:
    """Returns the states of an iterator and an iterable, or the error, which matters if a checkpoint is saved."""
    try:
        return OwnState(get_state(iterator), get_state(iterable), random_state_within(iterable))
    except CheckpointError as error:
        return error


def begin(
    iterable: Any, number: int, what: str, *, reseed: bool = False, random: Any = None, first: int = 0
) -> Iteration:
    """Begins an iteration.

    Args:
        iterable: something with `__iter__`, a sequence, or a function that returns something to iterate over.
        number: the number of the iteration.
        what: the call, for messages.
        reseed: True to reseed the iterable with the number, if its library supports it.
        random: the state of the random generators to begin with; None for their current state.
        first: the index at which to begin in a sequence.

    Raises:
        TypeError: if the function did not return something to iterate over.

    Example:
        >>> list(begin([1, 2], 0, "fit").iterator)
        [1, 2]
    """
    if is_sequence(iterable):
        return Iteration(number, iterable, (iterable[i] for i in range(first, len(iterable))), read=first)
    let_grain_read_its_flags()
    if not hasattr(iterable, "__iter__"):
        iterable = _called(iterable, what)
    if not reseed:
        return Iteration(number, iterable, iter(iterable))
    if random is not None:
        set_random_state(iterable, random)
    random = random_state(iterable)
    return Iteration(number, iterable, iter(reseeded(iterable, number)), random)


def is_sequence(iterable: Any) -> bool:
    """True if an object has `__getitem__` but no `__iter__`, so that it is read by index.

    Example:
        >>> is_sequence([1, 2])
        False
    """
    return not hasattr(iterable, "__iter__") and hasattr(iterable, "__getitem__")


def _called(function: Callable[[], Any], what: str) -> Any:
    result = function()
    if isinstance(result, tuple) or is_array_like(result) or not hasattr(result, "__iter__"):
        raise TypeError(
            f"the function given to {what} returned {type_name(result)}, but must return an iterator over "
            "batches. Write it as a generator: `yield inputs, labels`."
        )
    return result
