"""Batches that come one after another, from anything that can be iterated."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from elegy.data.convert import as_batch, is_array_like
from elegy.data.plan import LIMIT_NAMES, positive_int
from elegy.data.weights import weigh_classes
from elegy.lazy import is_instance_of
from elegy.types import Batch


class IterableSource:
    """An iterable of batches, read one batch at a time and never ahead.

    Args:
        iterable: something to iterate over, once (an iterator) or again and again; a sequence with `__len__` and
            `__getitem__`; or a function without arguments that returns an iterator.
        class_weight: weights by class, multiplied into each batch's sample weights.
        what: the call, for messages: `"fit"`, `"validation"`, `"evaluate"` or `"predict"`.

    Attributes:
        steps: how many batches a pass has, where `len()` tells, else None.
        one_shot: whether every pass goes on where the last one stopped.

    Example:
        >>> source = IterableSource(iter([([1.0], [0]), ([2.0], [1])]))
        >>> source.one_shot, list(source.batches(limit=1)), list(source.batches(limit=1))
        (True, [(array([1.]), array([0]))], [(array([2.]), array([1]))])
    """

    def __init__(self, iterable: Any, *, class_weight: Mapping[int, float] | None = None, what: str = "fit"):
        self.one_shot = isinstance(iterable, Iterator)
        self.steps = _length(iterable)
        self._iterable = iterable
        self._class_weight = class_weight
        self._what = what
        self._lists_are_tuples = is_instance_of(iterable, "torch.utils.data", "DataLoader")
        self._current: Iterator | None = None
        self._seen = 0

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
        taken, goes_on = 0, self._current is not None
        iterator = self._iterator()
        while limit is None or taken < limit:
            try:
                item = next(iterator)
            except StopIteration:
                self._current = None
                if taken or not goes_on:
                    break
                iterator, goes_on = self._iterator(), False
                continue
            self._seen += 1
            taken += 1
            yield self._prepared(item)
        if not taken:
            raise ValueError(self._no_batch())
        if limit is not None and taken < limit:
            raise ValueError(self._too_short(name, limit, taken))

    def _iterator(self) -> Iterator:
        iterable = self._iterable
        if self.one_shot:
            # An iterator that has ended is asked again: a generator stays exhausted, but hand-written ones often begin
            # again in `__iter__`.
            if self._current is None:
                self._current = iter(iterable)
            return self._current
        if not hasattr(iterable, "__iter__") and hasattr(iterable, "__getitem__"):
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
        batch = as_batch(item, where, listed=self._lists_are_tuples)
        return batch if self._class_weight is None else weigh_classes(batch, self._class_weight, where)

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


def _length(iterable: Any) -> int | None:
    try:
        return len(iterable)
    except (
        TypeError,
        NotImplementedError,
    ):  # no `__len__`; data sets of unknown length raise here, each in its own way
        return None
