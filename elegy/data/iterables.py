"""Batches that come one after another, from anything that can be iterated."""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from elegy.data.convert import as_batch, copied, is_array_like
from elegy.data.foreign_state import get_state, has_state, set_state
from elegy.data.plan import LIMIT_NAMES, positive_int
from elegy.data.weights import weigh_classes
from elegy.types import Batch
from elegy.waiting import RunInterrupted, Wait

SLOW_SECONDS = 5.0
"""Reading past batches for longer than this is worth a warning."""


class IterableSource:
    """An iterable of batches, read one batch at a time and never ahead.

    A batch that is a list, `[inputs, labels]`, is a tuple in another hand: loaders that collate make lists.

    Args:
        iterable: something to iterate over, once (an iterator) or again and again; a sequence with `__len__` and
            `__getitem__`; or a function without arguments that returns an iterator.
        class_weight: weights by class, multiplied into each batch's sample weights.
        what: the call, for messages: `"fit"`, `"validation"`, `"evaluate"` or `"predict"`.

    Attributes:
        steps: how many batches a pass has, where `len()` tells, else None.
        one_shot: whether every pass goes on where the last one stopped.
        class_weight: as given.
        taken: how many batches of the running pass have been read; 0 once it has ended.

    Example:
        >>> source = IterableSource(iter([([1.0], [0]), ([2.0], [1])]))
        >>> source.one_shot, list(source.batches(limit=1)), list(source.batches(limit=1))
        (True, [(array([1.]), array([0]))], [(array([2.]), array([1]))])
    """

    def __init__(self, iterable: Any, *, class_weight: Mapping[int, float] | None = None, what: str = "fit"):
        self.one_shot = isinstance(iterable, Iterator)
        self.steps = _length(iterable)
        self._iterable = iterable
        self.class_weight = class_weight
        self._what = what
        self._current: Iterator | None = None
        self._seen = 0
        self.taken = 0
        self._passed = 0  # the batches of the last pass that ended
        self._running: Iterator | None = None
        self._open = False  # whether the last pass stopped before its iterator ended
        self._resumed: tuple[Iterator, int] | None = None
        self._left = False  # whether a signal ended the wait for a batch, so that nobody knows how far the iterator is

    def __repr__(self) -> str:
        return f"IterableSource({type(self._iterable).__name__}, steps={self.steps}, one_shot={self.one_shot})"

    def batches(self, limit: int | None = None) -> Iterator[Batch]:
        """A pass over the data: from the beginning, or from where the last one stopped if it is one-shot.

        Args:
            limit: how many batches to read; no more are pulled. None reads until the end.

        Raises:
            TypeError: when the limit is no integer, a batch holds what is no array, or the function returned
                no iterator.
            ValueError: when the limit is not positive or beyond the data, or the pass has no batch at all.
        """
        name = LIMIT_NAMES.get(self._what, "steps")
        if limit is not None:
            limit = positive_int(limit, name)
            if self.steps is not None and limit > self.steps and not self.one_shot:
                raise ValueError(self._too_short(name, limit, self.steps))
        return self._pass(limit, name)

    def _pass(self, limit: int | None, name: str) -> Iterator[Batch]:
        if self._resumed is not None:
            (iterator, self.taken), goes_on, self._resumed = self._resumed, True, None
        else:
            goes_on, self.taken = self._current is not None, 0
            iterator = self._wait(self._iterator)
        self._running, self._open = iterator, True
        while limit is None or self.taken < limit:
            try:
                item = self._wait(iterator.__next__)
            except StopIteration:
                self._current, self._open = None, False
                if self.taken or not goes_on:
                    break
                self._running = iterator = self._wait(self._iterator)
                goes_on, self._open = False, True
                continue
            self._seen += 1
            self.taken += 1
            yield self._prepared(item)
        taken = self.taken
        self.end()
        if not taken:
            raise ValueError(self._no_batch())
        if limit is not None and taken < limit:
            raise ValueError(self._too_short(name, limit, taken))

    def _wait(self, call: Callable[[], Any]) -> Any:
        """Calls into the iterable, which may take for ever: a signal ends that."""
        try:
            with Wait():
                return call()
        except RunInterrupted:
            self._left = True
            raise

    def end(self) -> None:
        """The running pass is over, though nobody asked it for more after its last batch."""
        if self.taken:
            self._passed, self.taken, self._running = self.taken, 0, None

    def state(self, taken: int, *, own: bool = True) -> dict[str, Any]:
        """Where the data stands, fit for JSON: from here `load_state` goes on.

        Iterables and iterators that offer `state_dict` / `load_state_dict` or `get_state` / `set_state` are asked
        for their own state; of the others the batches are counted.

        Args:
            taken: how many batches of the running pass count as seen; 0 between passes. Where more were read, the
                position is a count of batches whatever the iterable offers.
            own: whether to ask the iterable for a state of its own. One that a signal stopped while it read a batch
                is not asked: how far it has got is not known.

        Raises:
            CheckpointError: when the iterable's own state cannot be had, or stored.
        """
        read_to_end = taken > 0 and not self.taken
        over = read_to_end and taken >= self._passed  # above: a process's share that ended before the others'
        if read_to_end and not over:
            return {"taken": taken, "seen": self._seen - (self._passed - taken)}
        ahead = 0 if over else self.taken - taken
        state: dict[str, Any] = {"taken": min(taken, self._passed) if over else taken, "seen": self._seen - ahead}
        if over:
            state["over"], taken = True, 0
        if self._left:
            state["left"] = True
        elif own and not ahead:
            if self.one_shot:
                state["iterator"] = get_state(self._iterable if self._current is None else self._current)
            else:
                state["iterator"] = get_state(self._running) if taken else None
                state["iterable"] = get_state(self._iterable)
                state["cut"] = not taken and self._open
        return state

    def load_state(self, state: Mapping[str, Any]) -> bool:
        """Makes the next pass go on where `state` was taken; batches that were read here before do not count.

        Args:
            state: what `state` returned, for the same data.

        Returns:
            Whether that takes another pass than one that was begun here: data that stands where it has to is left
            alone.

        Raises:
            CheckpointError: when the data had a state of its own and offers no way to take it back.
            ValueError: when the data ends before the position.

        Warns:
            UserWarning: when batches were read to get there and that took long, or the data is an iterator, which
                nobody can ask whether it stands at its beginning; if a state of its own is missing, because a signal
                ended the run while it read a batch.
        """
        taken, read = state["taken"], self._seen
        own, of_iterable = state.get("iterator"), state.get("iterable")
        if left := state.get("left", False) and has_state(self._iterable):
            self._warn_counted(taken)
        if own is None and of_iterable is None and not (state["seen"] if self.one_shot else taken):
            self._seen += state["seen"]
            return False
        self._seen, self._running = state["seen"], None
        if of_iterable is not None:
            set_state(self._iterable, of_iterable)
            if state["cut"]:
                self._iterator()  # the run had begun this pass already, and its next one takes another iterator
        over = state.get("over", False)
        self._passed = taken
        if over and not self.one_shot:
            self._resumed = (iter(()), taken)
            return True
        iterator = self._iterator()
        if own is not None:
            set_state(iterator, own)
        elif self.one_shot:
            iterator = self._skip(iterator, max(state["seen"] - read, 0))
            remedy = f" {_REMEDY}" if self._what == "fit" else ""
            warnings.warn(
                f"the position of the {type(self._iterable).__name__} given to {self._what} is not known: "
                f"{state['seen']} batches of it were read and left aside, as if it began where the interrupted run's "
                f"did.{remedy}",
                stacklevel=2,
            )
        elif taken and of_iterable is None:
            if state.get("left") and not left and has_state(iterator):
                self._warn_counted(taken)
            iterator = self._skipped(iterator, taken)
        self._resumed = (iter(()) if over else iterator, taken)
        return True

    def _warn_counted(self, taken: int) -> None:
        warnings.warn(
            f"the interrupted run was stopped while the {type(self._iterable).__name__} given to {self._what} read a "
            f"batch, so its own state is not in the checkpoint: the first {taken} batches of the pass are read and "
            "left aside. That is exact if every pass gives the same batches; otherwise resume from an older one.",
            stacklevel=4,
        )

    def _skipped(self, iterator: Iterator, count: int) -> Iterator:
        iterable = self._iterable
        if not _is_sequence(iterable):
            return self._skip(iterator, count)
        if count > len(iterable):
            raise ValueError(self._other_data(count, len(iterable)))
        return (iterable[i] for i in range(count, len(iterable)))

    def _skip(self, iterator: Iterator, count: int) -> Iterator:
        began = time.monotonic()
        done, begun = 0, self._current is not None
        while done < count:
            try:
                next(iterator)
            except StopIteration:
                if not (self.one_shot and begun):
                    raise ValueError(self._other_data(count, done)) from None
                self._current, begun = None, False
                iterator = self._iterator()
                continue
            done, begun = done + 1, True
        seconds = time.monotonic() - began
        if seconds > SLOW_SECONDS:
            warnings.warn(
                f"reading the {count} batches that the interrupted run had seen took {seconds:.0f} s. {_REMEDY}",
                stacklevel=3,
            )
        return iterator

    def _other_data(self, count: int, found: int) -> str:
        return (
            f"the interrupted run had read {count} batches, but the {type(self._iterable).__name__} given to "
            f"{self._what} ended after {found}. Resume with the data that the run began with."
        )

    def _iterator(self) -> Iterator:
        iterable = self._iterable
        if self.one_shot:
            # An iterator that has ended is asked again: a generator stays exhausted, but hand-written ones often begin
            # again in `__iter__`.
            if self._current is None:
                self._current = iter(iterable)
            return self._current
        if _is_sequence(iterable):
            return (iterable[i] for i in range(len(iterable)))
        if not hasattr(iterable, "__iter__"):
            iterable = iterable()
            if isinstance(iterable, tuple) or is_array_like(iterable) or not hasattr(iterable, "__iter__"):
                raise TypeError(
                    f"the function given to {self._what} returned a {type(iterable).__name__}, but must return an "
                    "iterator over batches. Write it as a generator: `yield inputs, labels`."
                )
        return iter(iterable)

    def _prepared(self, item: Any) -> Batch:
        where = f"batch {self._seen - 1}: "
        # A loader may fill its next batch into the same buffers, while this one still waits for the device.
        batch = copied(as_batch(item, where, listed=True))
        return batch if self.class_weight is None else weigh_classes(batch, self.class_weight, where)

    def _no_batch(self) -> str:
        kind = type(self._iterable).__name__
        if not self._seen:
            return f"the data of {self._what} is empty: the {kind} yielded no batch."
        return (
            f"the {kind} given to {self._what} is exhausted: it yielded {self._seen} batches before and has none for "
            "another pass. Give something that can be iterated again, such as a list, a data loader, or a function "
            "that returns a new generator, or limit the steps of each pass."
        )

    def _too_short(self, name: str, limit: int, found: int) -> str:
        kind = type(self._iterable).__name__
        return (
            f"{name}={limit} is beyond the data: the {kind} had {found} batches for this pass. Lower {name}, "
            "leave it out to read to the end, or give data that is longer."
        )


_REMEDY = (
    "Data that offers `state_dict` and `load_state_dict`, or `get_state` and `set_state`, is put in its place at once."
)


def _is_sequence(iterable: Any) -> bool:
    return not hasattr(iterable, "__iter__") and hasattr(iterable, "__getitem__")


def _length(iterable: Any) -> int | None:
    try:
        return len(iterable)
    except (
        TypeError,
        NotImplementedError,
    ):  # no `__len__`; data sets of unknown length raise here, each in its own way
        return None
