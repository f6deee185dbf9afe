"""Curves in the output of a notebook's cell while a run goes on."""

from __future__ import annotations

import time
import warnings

from elegy.callbacks.deferred_logs import DeferredLogReader, finish
from elegy.callbacks.event import Event
from elegy.callbacks.history_plot import charts_of
from elegy.callbacks.interval import EVERY_EPOCH, PeriodicCallback
from elegy.callers import stacklevel_of_caller
from elegy.html.notebook import Output, in_notebook
from elegy.html.page import embedded, grid
from elegy.types import Every

_SECONDS = 1.0


class LiveCurves(PeriodicCallback):
    """Draws the values of epochs and evaluations in a notebook while `fit` runs, at most once a second.

    The drawing stays in the notebook when the run has ended. Elsewhere it does nothing. Values are read from the device
    later than they are computed, so that the loop does not wait. A name that was not logged is named in a warning when
    the run has ended, because a callback may log it at any time.

    Args:
        *names: the names of the logs to draw, without `val_`; none for all.
        every: when to add a point. With an interval other than epochs, the running values of the epoch are added.

    Raises:
        TypeError: if `every` is not an `Every`, or a name not a string.

    Example:
        >>> LiveCurves("loss", every=Every(steps=100)).every
        Every(steps=100)
    """

    reads_logs = True
    batch_hooks_read = "logs"
    only_logs = True
    first_process_only = True

    def __init__(self, *names: str, every: Every = EVERY_EPOCH):
        super().__init__(every)
        if wrong := [name for name in names if not isinstance(name, str)]:
            raise TypeError(f"LiveCurves takes names of logs, not {wrong[0]!r}.")
        self.names = names
        self._lines: dict[str, dict[str, tuple[list[int], list[float]]]] = {}
        self._logged: set[str] = set()
        self._reader = DeferredLogReader(_SECONDS)
        self._output = Output()
        self._drawn = 0.0

    def listens(self, hook: str) -> bool:
        """Nothing is listened to outside of a notebook."""
        return super().listens(hook) and in_notebook()

    def on_train_begin(self, event: Event) -> None:
        """Starts empty curves."""
        super().on_train_begin(event)
        self._lines, self._logged, self._output, self._drawn = {}, set(), Output(), 0.0
        self._reader.clear()

    def on_train_batch_end(self, event: Event) -> None:
        """Adds the running values of the epoch if the interval has ended."""
        if self.due(event):
            self._reader.defer(lambda: self._add(event, evaluated=False), event.logs)

    def on_epoch_end(self, event: Event) -> None:
        """Adds the values of the epoch."""
        self._reader.defer(lambda: self._add(event), event.logs)

    def on_evaluation_end(self, event: Event) -> None:
        """Adds the values of evaluations inside of an epoch."""
        self._reader.defer(lambda: self._add(event), event.logs)

    def on_train_end(self, event: Event) -> None:
        """Draws all values, and warns of names that were not logged."""
        finish(event, self._reader.flush, self._draw)
        unknown = [name for name in self.names if name not in self._lines]
        if unknown and self._logged and event.ended != "failed":
            warnings.warn(
                f"LiveCurves draws nothing for {unknown[0]!r}, which was not logged. "
                f"Logged were (without val_): {', '.join(sorted(self._logged))}.",
                stacklevel=stacklevel_of_caller(),
            )

    def _add(self, event: Event, evaluated: bool = True) -> None:
        within = event.batch is not None and evaluated
        for name, value in event.logs.items():
            prefix = event.evaluation_of(name)
            if (prefix is None and within) or (prefix is not None and prefix not in event.evaluated):
                continue
            base, line = name.removeprefix(prefix or ""), (prefix or "train").removesuffix("_")
            self._logged.add(base)
            if self.names and base not in self.names:
                continue
            steps, values = self._lines.setdefault(base, {}).setdefault(line, ([], []))
            steps.append(event.step)
            values.append(float(value))
        if time.perf_counter() - self._drawn >= _SECONDS:
            self._draw()

    def _draw(self) -> None:
        self._drawn = time.perf_counter()
        if self._lines:
            self._output.show(embedded(grid(charts_of(self._lines))))
