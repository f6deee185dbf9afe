"""Callbacks about the wall time of a run: a budget, and what the time is spent on."""

from __future__ import annotations

import datetime
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import perf_counter

from elegy.callbacks.callback import Callback
from elegy.callbacks.event import Event
from elegy.walltime import PARTS, Part, WallTimes, measuring


class Timer(Callback):
    """Interrupts `fit` when its time is used up, as a signal does: a `ModelCheckpoint` of the run saves the last step.

    The run stops after the first step beyond the budget, so the next job can resume it with
    `fit(..., resume="auto")`. Each call of `fit` has the whole budget; `fit(max_time=)` also counts the time before a
    run was resumed, and ends it as finished. Executions of several steps become shorter before the time is up. A
    running evaluation or save is not interrupted, so leave time for them.

    Args:
        budget: seconds, or a `datetime.timedelta`.

    Attributes:
        expired: True if the last run was stopped by this budget.

    Raises:
        TypeError: if the budget has another type.
        ValueError: if it is not positive and finite.

    Example:
        >>> import numpy as np, optax, flax.linen as nn
        >>> import elegy as eg
        >>> x = np.ones((8, 1), np.float32)
        >>> trainer = eg.Trainer(nn.Dense(1), eg.losses.MeanSquaredError(), optimizer=optax.sgd(0.5))
        >>> timer = Timer(datetime.timedelta(hours=23.5))
        >>> history = trainer.fit(x, x, callbacks=[timer], verbose=0)
        >>> timer.expired
        False
    """

    def __init__(self, budget: float | datetime.timedelta):
        seconds = budget.total_seconds() if isinstance(budget, datetime.timedelta) else budget
        if isinstance(seconds, bool) or not isinstance(seconds, (int, float)):
            raise TypeError(f"Timer({budget!r}): give a number of seconds or a `datetime.timedelta`.")
        if not (0 < seconds < math.inf):
            raise ValueError(f"Timer({budget!r}): the budget must be positive and finite.")
        self.time_budget = float(seconds)
        self.expired = False

    def on_train_begin(self, event: Event) -> None:
        """Starts anew."""
        self.expired = False

    def on_train_end(self, event: Event) -> None:
        """Finds out why the run ended."""
        self.expired = event.ended == "interrupted" and event.trainer.interrupted is None


class TimeMonitor(Callback):
    """Measures what the wall time of `fit` is spent on, and adds the seconds of each epoch to the logs.

    The logs are `seconds_compile` (tracing and compiling), `seconds_data` (waiting for batches), `seconds_steps`
    (computing steps, including waiting for the device), `seconds_evaluation`, `seconds_saving` (the part that the loop
    waits for), `seconds_callbacks` and `seconds_other` (reading arguments, the first state, counters). Each moment
    belongs to one part. An evaluation contains its own steps, data and callbacks; its compilation counts as such. What
    happens after the logs of an epoch are complete, such as saving it, belongs to the next epoch.

    To tell the parts apart, the loop waits for the device at the end of each epoch and each evaluation.

    Args:
        clock: a function that returns seconds.

    Attributes:
        seconds: the seconds of each part of the last `fit`, or of the running one up to its last epoch.
            `print(monitor)` shows them as a table.

    Example:
        >>> import numpy as np, optax, flax.linen as nn
        >>> import elegy as eg
        >>> x = np.ones((8, 1), np.float32)
        >>> trainer = eg.Trainer(nn.Dense(1), eg.losses.MeanSquaredError(), optimizer=optax.sgd(0.5))
        >>> monitor = TimeMonitor()
        >>> history = trainer.fit(x, x, epochs=2, callbacks=[monitor], verbose=0).history
        >>> len(history["seconds_compile"]), max(monitor.seconds, key=monitor.seconds.get)
        (2, 'compile')
    """

    def __init__(self, clock: Callable[[], float] = perf_counter):
        self._clock = clock
        self._times: WallTimes | None = None
        self._before: dict[Part, float] = {}
        self.seconds: dict[Part, float] = dict.fromkeys(PARTS, 0.0)

    @contextmanager
    def measure_fit(self) -> Iterator[None]:
        """Measures the block, which is one `fit`."""
        times = self._times = WallTimes(self._clock)
        self._before = dict.fromkeys(PARTS, 0.0)
        try:
            with measuring(times):
                yield
        finally:
            self.seconds, self._times = times.read(), None

    def on_epoch_end(self, event: Event) -> None:
        """Adds the seconds of the epoch."""
        if self._times is None:
            return
        self.seconds = self._times.read()
        for part, seconds in self.seconds.items():
            event.log(f"seconds_{part}", seconds - self._before[part])
        self._before = self.seconds

    def __str__(self) -> str:
        """Returns a table of the parts with their seconds and shares."""
        whole = sum(self.seconds.values())
        rows = [(part, seconds, 100 * seconds / whole if whole else 0.0) for part, seconds in self.seconds.items()]
        lines = [f"{part:<10} {seconds:>10.3f} s {share:>6.1f} %" for part, seconds, share in rows]
        return "\n".join([*lines, f"{'all':<10} {whole:>10.3f} s {sum(row[2] for row in rows):>6.1f} %"])
