"""One iteration over an iterable: how it begins, and how far it got."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

from elegy.data.convert import is_array_like
from elegy.data.foreign_order import random_state, reseeded, set_random_state


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
    """Whether something is read by index: it has `__getitem__`, but not `__iter__`.

    Example:
        >>> is_sequence([1, 2])
        False
    """
    return not hasattr(iterable, "__iter__") and hasattr(iterable, "__getitem__")


def _called(function: Callable[[], Any], what: str) -> Any:
    result = function()
    if isinstance(result, tuple) or is_array_like(result) or not hasattr(result, "__iter__"):
        raise TypeError(
            f"the function given to {what} returned a {type(result).__name__}, but must return an iterator over "
            "batches. Write it as a generator: `yield inputs, labels`."
        )
    return result
