"""Ends a run whose loss is no number."""

from __future__ import annotations

import math
import warnings
from collections.abc import Mapping
from typing import Literal

from elegy.callbacks.event import Event
from elegy.callbacks.interval import PeriodicCallback
from elegy.types import Every

_OFTEN = Every(steps=50)


class TerminateOnNaN(PeriodicCallback):
    """Stops training, with a warning, when the loss is NaN or infinite.

    The loss is read when the interval is due and at every epoch's end; reading waits for the device, so a short
    interval costs speed. A step whose loss is NaN shows in the epoch's running value, whichever step is read. Where
    no log is named `loss`, all training logs are looked at. Under `Trainer(nonfinite="skip")` the loss stays finite;
    there a step that was left out ends the run.

    `ModelCheckpoint` asks it before each save: a state after such a loss is not saved, and the last one before stays.

    Args:
        every: how often to look.

    Raises:
        TypeError: when `every` is no `Every`.

    Example:
        >>> from types import SimpleNamespace
        >>> import warnings
        >>> trainer = SimpleNamespace(stop_training=False)
        >>> with warnings.catch_warnings(action="ignore"):
        ...     TerminateOnNaN().on_epoch_end(Event(trainer, "train", step=9, epoch=0, logs={"loss": float("nan")}))
        >>> trainer.stop_training
        True
    """

    batch_hooks_read: Literal["logs"] = "logs"

    def __init__(self, every: Every = _OFTEN):
        super().__init__(every)
        self._skipped = 0
        self._stopped = self._lost = False

    def on_train_begin(self, event: Event) -> None:
        """Starts counting."""
        super().on_train_begin(event)
        self._stopped = self._lost = False
        self._skipped = getattr(event.trainer, "skipped_steps", 0)

    def on_train_batch_end(self, event: Event) -> None:
        """Looks when due."""
        if self.due(event):
            self._look(event)

    def on_epoch_end(self, event: Event) -> None:
        """Looks once more."""
        self._look(event)

    def lost(self, event: Event) -> bool:
        """Whether the state is not worth keeping: the loss was no number, be it seen before or in these logs.

        Args:
            event: an event of the run; the logs of a hook that has some are looked at.
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
            warnings.warn(f"training is stopped: {what} not finite.", RuntimeWarning, stacklevel=2)
            return
        for name, value in _watched(event.logs).items():
            if not math.isfinite(value):
                self._stopped = self._lost = True
                event.trainer.stop_training = True
                warnings.warn(
                    f"training is stopped: {name!r} is {value} at step {event.step} of epoch {event.epoch + 1}. Look "
                    "at the learning rate and the inputs; `jax.config.update('jax_debug_nans', True)` finds the "
                    "operation.",
                    RuntimeWarning,
                    stacklevel=2,
                )
                return


def _watched(logs: Mapping[str, float]) -> Mapping[str, float]:
    if "loss" in logs:
        return {"loss": logs["loss"]}
    return {name: value for name, value in logs.items() if not name.startswith("val_")}
