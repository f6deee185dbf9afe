"""Tells Optuna how a trial goes, and ends those that it prunes."""

from __future__ import annotations

from typing import Any

from elegy.callbacks.callback import Callback
from elegy.callbacks.event import Event
from elegy.callbacks.monitor import Monitor
from elegy.lazy import require


class OptunaPruning(Callback):
    """Reports a value to an Optuna trial after every evaluation, and raises `optuna.TrialPruned` if it should end.

    `study.optimize` understands the exception; with another study loop, catch it around `fit`. The step that Optuna
    sees is the number of the report: 0, 1, and so on, so trials with different batch sizes can be compared. The study
    says whether small or large values are good.

    Args:
        trial: the `optuna.trial.Trial` that the objective function was given.
        monitor: the name of the log: of a validation (`"val_loss"`), reported whenever it runs, or of the training,
            reported at the end of each epoch.

    Raises:
        ImportError: if Optuna is not installed.
        TypeError: if `trial` is not a trial, or `monitor` not a string.
        ValueError: if the study has several objectives, for which Optuna prunes nothing; and when the run begins, if
            the log cannot exist.

    Example:
        >>> import optuna
        >>> optuna.logging.set_verbosity(optuna.logging.WARNING)
        >>> study = optuna.create_study(pruner=optuna.pruners.ThresholdPruner(upper=1.0))
        >>> trial = study.ask()
        >>> callback = OptunaPruning(trial, "loss")
        >>> callback.on_epoch_end(Event(None, "train", step=10, epoch=0, logs={"loss": 0.5}))
        >>> callback.on_epoch_end(Event(None, "train", step=20, epoch=1, logs={"loss": 1.5}))
        Traceback (most recent call last):
        ...
        optuna.exceptions.TrialPruned: loss is 1.5 after epoch 2, and the pruner ends the trial.
    """

    reads_logs = True

    def __init__(self, trial: Any, monitor: str = "val_loss"):
        self._optuna = require("optuna", "OptunaPruning")
        if not isinstance(trial, self._optuna.trial.BaseTrial):
            raise TypeError(
                f"trial must be an optuna.trial.Trial, as the objective function gets it, not {trial!r:.80}."
            )
        study = getattr(trial, "study", None)
        if study is not None and len(study.directions) > 1:
            raise ValueError(
                "the study has several objectives, and Optuna prunes only trials of one: leave out OptunaPruning."
            )
        self.trial = trial
        self.monitor = Monitor(monitor, "min")  # the study has the direction
        self._reports = 0

    def __repr__(self) -> str:
        return f"OptunaPruning(monitor={self.monitor.name!r}, trial={self.trial.number})"

    def on_train_begin(self, event: Event) -> None:
        """Checks that the log can exist."""
        self.monitor.check(event)

    def on_evaluation_end(self, event: Event) -> None:
        """Reports the value of an evaluation inside of the epoch."""
        if self.monitor.evaluated(event):
            self._report(event)

    def on_epoch_end(self, event: Event) -> None:
        """Reports the value of the epoch."""
        self._report(event)

    def _report(self, event: Event) -> None:
        value = self.monitor.value(event)
        if value is None:  # the validation did not run
            return
        self.trial.report(value, self._reports)
        self._reports += 1
        if self.trial.should_prune():
            raise self._optuna.TrialPruned(
                f"{self.monitor.name} is {value:g} after epoch {event.epoch + 1}, and the pruner ends the trial."
            )

    def state_dict(self) -> dict[str, Any]:
        """Returns the number of reports."""
        return {"reports": self._reports}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues to count the reports of the resumed run."""
        self._reports = state["reports"]
