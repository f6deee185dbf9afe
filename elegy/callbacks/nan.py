"""Ends a run whose loss is NaN or infinite."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Iterable, Mapping, Sequence

from elegy.callbacks.callback import Callback
from elegy.callbacks.event import Event
from elegy.callbacks.interval import PeriodicCallback
from elegy.callers import stacklevel_of_caller
from elegy.types import Every

_OFTEN = Every(steps=50)

_MOST = 1024
"""The largest number of executions between two readings of the loss."""

_ADVICE = (
    "Look at the learning rate and the inputs. `Trainer(nonfinite='raise')` names the parameters whose gradients are "
    "not finite; `Trainer(strategy='eager')` with `jax.config.update('jax_debug_nans', True)` stops in the operation."
)


class TerminateOnNaN(PeriodicCallback):
    """Stops training, with a warning that names the step, when the loss is NaN or infinite.

    The loss is read at the end of each interval and of each epoch. Reading waits for the device, so a short interval
    costs speed. The running value of the epoch stays NaN after a step whose loss is NaN, so no such step is missed;
    the warning names the first one since the last reading. If no log is named `loss`, all training logs are read.
    Under `Trainer(nonfinite="skip")` the loss stays finite, and a skipped step ends the run.

    `ModelCheckpoint` calls `lost` before each save, and does not save a state after such a loss.

    Args:
        every: how often to read the loss. An execution of several steps ends where the interval ends, so that no step
            runs after the one that stops the run. The default reads every 50 steps and does not shorten executions,
            because that is faster; the stop takes effect at the end of the execution.

    Raises:
        TypeError: if `every` is not an `Every`.

    Example:
        >>> from types import SimpleNamespace
        >>> import warnings
        >>> trainer = SimpleNamespace(stop_training=False)
        >>> with warnings.catch_warnings(action="ignore"):
        ...     TerminateOnNaN().on_epoch_end(Event(trainer, "train", step=9, epoch=0, logs={"loss": float("nan")}))
        >>> trainer.stop_training
        True
    """

    reads_logs = True
    batch_hooks_read = "logs"

    def __init__(self, every: Every = _OFTEN):
        super().__init__(every)
        self.only_logs = every is _OFTEN
        self._skipped = 0
        self._stopped = self._lost = False
        self._unread: list[tuple[int, Mapping[str, float]]] = []  # ends of executions since the last reading
        self._read = -1  # the step of the last reading

    def listens(self, hook: str) -> bool:
        """As `Callback.listens`: the batch hooks are called with every kind of interval."""
        return Callback.listens(self, hook)

    def selected_batches(self, step: int, examples: int, sizes: Sequence[int]) -> Iterable[int]:
        """The batches at which the interval ends, and the last one, whose logs cover the execution."""
        return {*super().selected_batches(step, examples, sizes), len(sizes) - 1}

    def on_train_begin(self, event: Event) -> None:
        """Starts counting."""
        super().on_train_begin(event)
        self._stopped = self._lost = False
        self._skipped = getattr(event.trainer, "skipped_steps", 0)

    def on_epoch_begin(self, event: Event) -> None:
        """Drops the logs of the last epoch: running values start anew."""
        super().on_epoch_begin(event)
        self._unread, self._read = [], event.step

    def on_train_batch_end(self, event: Event) -> None:
        """Reads the loss if the interval has ended."""
        if self.due(event) or len(self._unread) >= _MOST:
            self._look(event)
        else:
            self._unread.append((event.step, event.logs))

    def on_epoch_end(self, event: Event) -> None:
        """Reads the loss."""
        self._look(event)

    def on_train_end(self, event: Event) -> None:
        """Drops the stored logs."""
        self._unread = []

    def lost(self, event: Event) -> bool:
        """True if the loss is not finite in the event's logs or at the last reading.

        Args:
            event: an event of the run.
        """
        if not self._lost and event.logs:
            self._look(event)
        return self._lost

    def _look(self, event: Event) -> None:
        if self._stopped:
            return
        skipped = getattr(event.trainer, "skipped_steps", 0) - self._skipped
        if skipped > 0:
            self._stopped = True
            event.trainer.stop_training = True
            what = "1 step of this run was" if skipped == 1 else f"{skipped} steps of this run were"
            warnings.warn(f"training is stopped: {what} not finite.", RuntimeWarning, stacklevel=stacklevel_of_caller())
            return
        for name, value in _monitored(event.logs).items():
            if not math.isfinite(value):
                self._stopped = self._lost = True
                event.trainer.stop_training = True
                warnings.warn(
                    f"training is stopped: {name!r} is {value} {self._since(event, name)} of epoch {event.epoch + 1}. "
                    f"{_ADVICE}",
                    RuntimeWarning,
                    stacklevel=stacklevel_of_caller(),
                )
                return
        self._unread, self._read = [], event.step

    def _since(self, event: Event, name: str) -> str:
        """Names the first step since the last reading at which a log is not finite."""
        steps = itertools.chain(self._unread, [(event.step, event.logs)])
        step, logs = next((step, logs) for step, logs in steps if not math.isfinite(logs.get(name, 0.0)))
        before = getattr(logs, "previous", None)
        while before is not None and step - 1 > self._read and not math.isfinite(before.get(name, 0.0)):
            step, before = step - 1, before.previous
        return f"since step {step}" if step < event.step else f"at step {step}"


def _monitored(logs: Mapping[str, float]) -> Mapping[str, float]:
    if "loss" in logs:
        return {"loss": logs["loss"]}
    return {name: value for name, value in logs.items() if not name.startswith("val_")}
