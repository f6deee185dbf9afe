"""Callbacks that act at intervals."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar

from elegy.callbacks.callback import Callback
from elegy.callbacks.event import Event
from elegy.types import Every

EVERY_EPOCH = Every(epochs=1)

Method = TypeVar("Method", bound=Callable[..., Any])

_BY_INTERVAL: set[Callable[..., Any]] = set()


def by_interval(method: Method) -> Method:
    """Decorates a `selected_batches` that depends on `every` alone: of callbacks with the same interval, one is asked.

    Args:
        method: the method.
    """
    _BY_INTERVAL.add(method)
    return method


def is_by_interval(callback: Callback) -> bool:
    """True if the batches that a callback selects depend on its interval alone."""
    return type(callback).selected_batches in _BY_INTERVAL and "selected_batches" not in vars(callback)


def interval_ends(every: Every, step: int, examples: int, sizes: Sequence[int]) -> Sequence[int]:
    """Returns the batches after which an interval in steps or examples ends; none for other units.

    Args:
        every: the interval.
        step: training steps completed before the first batch.
        examples: training examples seen by the run before it.
        sizes: the examples of each batch.

    Returns:
        Indices into `sizes`.

    Example:
        >>> interval_ends(Every(steps=2), 3, 0, [8, 8, 8]), interval_ends(Every(examples=20), 0, 0, [8, 8, 8])
        (range(0, 3, 2), [2])
    """
    if every.steps is not None:
        return range(-(step + 1) % every.steps, len(sizes), every.steps)
    if every.examples is None:
        return ()
    seen = list(itertools.accumulate(sizes, initial=examples))
    return [k for k in range(len(sizes)) if every.due(seen[k], seen[k + 1])]


def interval_steps(every: Every, batch_size: int | None) -> int | None:
    """Returns the number of steps of an interval in steps or examples; None if it is unknown.

    Args:
        every: the interval.
        batch_size: examples of a full batch; None if that is not known.
    """
    if every.examples is not None and batch_size is not None:
        return -(-every.examples // batch_size)
    return every.steps


class PeriodicCallback(Callback):
    """Base of callbacks that act every so many steps, epochs, examples or seconds.

    `on_train_batch_end` is not called if `every` counts epochs. Steps and epochs are counted over the trainer's life,
    so that a resumed run acts at the same steps; examples and seconds over the run. A class that overrides
    `on_train_begin` or `on_epoch_begin` calls the method of the base class, too.

    If several steps run in one execution, it ends at the steps at which the interval ends, so that
    `event.trainer.state` is the state of that step, and a stop takes effect at once. With an interval in seconds, the
    callback is called at the end of an execution. A class that only reads logs sets `only_logs = True`; it does not
    shorten executions.

    Args:
        every: the interval.

    Attributes:
        only_logs: True if the batch hooks read the event's numbers and logs only, and never stop the run.

    Raises:
        TypeError: if `every` is not an `Every`.

    Example:
        >>> class Print(PeriodicCallback):
        ...     only_logs = True
        ...     def on_train_batch_end(self, event):
        ...         if self.due(event):
        ...             print(event.step)
        >>> callback = Print(Every(steps=2))
        >>> callback.on_train_begin(Event(None, "train", step=0, epoch=0))
        >>> for step in (1, 2, 3, 4):
        ...     callback.on_train_batch_end(Event(None, "train", step=step, epoch=0, batch=step - 1))
        2
        4
    """

    only_logs: bool = False

    def __init__(self, every: Every):
        if not isinstance(every, Every):
            raise TypeError(
                f"{type(self).__name__}(every={every!r}): an interval is an `elegy.Every`, for example "
                "`Every(steps=100)` or `Every(epochs=1)`."
            )
        self.every = every
        self._seen: float = 0

    def listens(self, hook: str) -> bool:
        """As `Callback.listens`, but False for the batch hooks if the interval counts epochs."""
        return super().listens(hook) and (hook != "on_train_batch_end" or self.every.unit != "epochs")

    def longest_execution(self, batch_size: int | None) -> int | None:
        """The steps of the interval; None for an interval in seconds or epochs."""
        if self.only_logs:
            return None
        return interval_steps(self.every, batch_size)

    def acts_on_run(self, step: int, examples: int, sizes: Sequence[int]) -> Iterable[int]:
        """The batches at which the interval ends."""
        if self.only_logs or self.every.unit in ("seconds", "epochs"):
            return ()
        return PeriodicCallback.selected_batches(self, step, examples, sizes)

    @by_interval
    def selected_batches(self, step: int, examples: int, sizes: Sequence[int]) -> Iterable[int]:
        """The batches at which the interval ends; for seconds, the last batch."""
        if self.every.unit in ("seconds", "epochs"):
            return range(len(sizes) - 1, len(sizes))
        return interval_ends(self.every, step, examples, sizes)

    def on_train_begin(self, event: Event) -> None:
        """Starts counting."""
        self._seen = self._count_before(event)

    def on_epoch_begin(self, event: Event) -> None:
        """Resets the count if the run went back to a checkpoint."""
        self._seen = min(self._seen, self._count_before(event))

    def due(self, event: Event) -> bool:
        """True if the interval ended since the last call; call it once in a hook.

        Epochs end in `on_epoch_end`, other intervals in `on_train_batch_end`: in other hooks the result is False.

        Args:
            event: the event of one of these hooks.
        """
        if (event.batch is None) != (self.every.unit == "epochs"):
            return False
        if self.every.unit == "seconds" and not event.is_current:
            return False
        before, self._seen = self._seen, self._count(event)
        if self.every.unit == "epochs":  # a run that resumes within `on_epoch_end` began after this epoch
            before = min(before, event.epoch)
        return self.every.due(before, self._seen)

    def offsets(self, event: Event) -> list[int]:
        """Returns how many steps before that of the event the interval ended, of the steps since the last event.

        Call it once in `on_train_batch_end`, in place of `due`.

        Args:
            event: the event of the hook.

        Returns:
            Numbers in descending order; 0 is the step of the event itself.
        """
        skipped = event.skipped
        if skipped is None or self.every.unit == "seconds":
            return [0] if self.due(event) else []
        self._seen = self._count(event)
        return event.shared(("offsets", self.every), lambda: _offsets(self.every, event, skipped.sizes))

    def _count_before(self, event: Event) -> float:
        """The count before an epoch."""
        return event.epoch if self.every.unit == "epochs" else self._count(event)

    def _count(self, event: Event) -> float:
        unit = self.every.unit
        if unit == "steps":
            return event.step
        if unit == "epochs":
            return event.epoch + 1
        return event.examples if unit == "examples" else event.elapsed


def _offsets(every: Every, event: Event, sizes: Sequence[int]) -> list[int]:
    count = len(sizes)
    found = interval_ends(every, event.step - count, event.examples - sum(sizes), sizes)
    return [count - 1 - k for k in found]
