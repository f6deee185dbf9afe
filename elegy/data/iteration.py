"""Iterations over an iterable: how each begins, and how far it got."""

from __future__ import annotations

import dataclasses
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

from elegy.data.convert import is_array_like
from elegy.data.foreign_order import (
    is_reseeded,
    random_state,
    reseeded,
    set_random_state,
    warn_if_repeated,
    warn_of_fork,
)
from elegy.names import type_name
from elegy.waiting import RunInterrupted, Wait

SLOW_SECONDS = 5.0
"""Reading past batches for longer than this is worth a warning."""

REMEDY = (
    "Data that offers `state_dict` and `load_state_dict`, or `get_state` and `set_state`, is put in its place at once."
)
"""What to do about batches that are read only to be counted, for messages."""


@dataclasses.dataclass
class Iteration:
    """One iterator over the data, from its beginning to its end.

    Args:
        number: counts the iterations; the order of the data may depend on it.
        iterable: what is iterated over.
        iterator: yields what the data yields.
        random: the state of the random generators before it began, where a library draws its order from them.
        read: how many batches were read.
        ended: whether it gives no more batches.
        left: whether it was left before its end.
    """

    number: int
    iterable: Any
    iterator: Iterator
    random: Any = None
    read: int = 0
    ended: bool = False
    left: bool = False

    def leave(self) -> None:
        """Lets go of the iterator, before its end."""
        self.left, self.ended = not self.ended, True
        self.iterator = iter(())


class Reader:
    """Reads an iterable, one iteration after another.

    Args:
        iterable: something to iterate over; see `IterableSource`.
        what: the call, for messages. In `"fit"` each iteration is reseeded where the library has a way.
        number: the number of the first iteration.

    Attributes:
        one_shot: whether the iterable is an iterator.
        now: the iteration that runs, or the last one that ran.
        before: the iteration before that.
        next_number: the number of the next iteration.
        seen: the number of batches that were read, over all iterations.
        interrupted: whether a signal ended the wait for a batch, so that nobody knows how far the iterator is.
    """

    def __init__(self, iterable: Any, what: str, number: int = 0):
        self.iterable, self.what, self.next_number = iterable, what, number
        self.one_shot = isinstance(iterable, Iterator)
        self.now: Iteration | None = None
        self.before: Iteration | None = None
        self.seen = 0
        self.interrupted = False
        self._random: Any = None  # the state of random generators that the next iteration begins with
        self._warned: set[str] = set()

    @property
    def is_open(self) -> bool:
        """True if an iteration runs."""
        return self.now is not None and not self.now.ended

    @property
    def kind(self) -> str:
        """The type of the iterable, for messages."""
        return type(self.iterable).__name__

    def begin(self, first: int = 0) -> Iteration:
        """Begins the next iteration.

        Args:
            first: of a sequence, the index to begin at.

        Raises:
            TypeError: if a function did not return something to iterate over.
        """
        begun: Iteration = self._wait(
            lambda: begin(
                self.iterable, self.next_number, self.what, reseed=self._reseeds, random=self._random, first=first
            )
        )
        if self._once("fork"):
            warn_of_fork(begun.iterable, self.what)
        if self._reseeds and self.now is not None and self.now.ended and self._once("repeats"):
            warn_if_repeated(begun.iterable, begun.iterator, self.what)
        self.before, self.now = self.now, begun
        self.next_number, self._random = self.next_number + 1, None
        return begun

    @property
    def _reseeds(self) -> bool:
        return self.what == "fit"

    def _once(self, warning: str) -> bool:
        if warning in self._warned:
            return False
        self._warned.add(warning)
        return True

    def read(self) -> Any:
        """The next batch of the iteration, as the iterable yields it.

        Raises:
            StopIteration: at the end.
        """
        now = self.now
        if now is None or now.ended:
            raise StopIteration
        try:
            item = self._wait(now.iterator.__next__)
        except StopIteration:
            now.ended = True
            raise
        now.read += 1
        self.seen += 1
        return item

    def _wait(self, call: Callable[[], Any]) -> Any:
        """Calls into the iterable, which may take for ever: a signal ends that."""
        try:
            with Wait():
                return call()
        except RunInterrupted:
            self.interrupted = True
            raise

    def place(self, ahead: int) -> tuple[int, int, Any]:
        """Where the next batch is: the number of its iteration, its index, and the random state before the iteration.

        Args:
            ahead: how many of the batches that were read come again.
        """
        now, before = self.now, self.before
        if now is not None and before is not None and ahead > now.read:
            return before.number, before.read + now.read - ahead, before.random
        if now is not None and (ahead or not now.ended):
            return now.number, now.read - ahead, now.random
        return self.next_number, 0, random_state(self.iterable) if self._reseeds else None

    def go_to(self, number: int, random: Any = None) -> None:
        """Lets go of the iterations; the next one to begin has this number and random state."""
        self.now, self.before, self.next_number, self._random = None, None, number, random

    def renumber(self, number: int) -> bool:
        """Sets the number of the iteration that runs, or begins next.

        Returns:
            Whether that number means another order, so that the iteration was let go of.
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

    def skip(self, count: int, begun: bool = False) -> None:
        """Reads batches and drops them.

        Args:
            count: how many.
            begun: whether an iterator has been read before: if it ends, it is asked for a new beginning.

        Raises:
            ValueError: if the data ends before.

        Warns:
            UserWarning: if it takes long.
        """
        started, done = time.monotonic(), 0
        while done < count:
            try:
                self.read()
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
                stacklevel=4,
            )

    def other_data(self, count: int, found: int) -> ValueError:
        """The error for data that ends before the batch with which an interrupted run goes on."""
        return ValueError(
            f"the interrupted run had read {count} batches, but the {self.kind} given to {self.what} ended after "
            f"{found}. Resume with the data that the run began with."
        )


def begin(
    iterable: Any, number: int, what: str, *, reseed: bool = False, random: Any = None, first: int = 0
) -> Iteration:
    """Begins an iteration.

    Args:
        iterable: something with `__iter__`, a sequence, or a function that returns something to iterate over.
        number: the number of the iteration.
        what: the call, for messages.
        reseed: whether the iterable is told the number, where its library has a way.
        random: the state of the random generators to begin with; None for the one that they have.
        first: of a sequence, the index to begin at.

    Raises:
        TypeError: if the function did not return something to iterate over.

    Example:
        >>> list(begin([1, 2], 0, "fit").iterator)
        [1, 2]
    """
    if is_sequence(iterable):
        return Iteration(number, iterable, (iterable[i] for i in range(first, len(iterable))), read=first)
    if not hasattr(iterable, "__iter__"):
        iterable = _called(iterable, what)
    if not reseed:
        return Iteration(number, iterable, iter(iterable))
    if random is not None:
        set_random_state(iterable, random)
    random = random_state(iterable)
    return Iteration(number, iterable, iter(reseeded(iterable, number)), random)


def is_sequence(iterable: Any) -> bool:
    """True if something is read by index: it has `__getitem__`, but not `__iter__`.

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
