"""Saves checkpoints during a run, and keeps the best and the newest."""

from __future__ import annotations

import dataclasses
import math
import os
import re
import warnings
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from elegy.callbacks.callback import Callback
from elegy.callbacks.event import Event
from elegy.callbacks.interval import EVERY_EPOCH, PeriodicCallback
from elegy.callbacks.monitor import Mode, Monitor
from elegy.callbacks.nan import TerminateOnNaN
from elegy.callers import stacklevel_of_caller
from elegy.checkpoint import (
    Address,
    AsyncSaver,
    checkpoint_name,
    checkpoint_step,
    find_checkpoints,
    is_intact,
    remove,
    remove_leftovers,
)
from elegy.checkpoint.address import path_of
from elegy.checkpoint.directory import place_of
from elegy.checkpoint.naming import CHECKPOINTS
from elegy.distributed import is_first
from elegy.errors import CheckpointError
from elegy.integers import as_integer
from elegy.keywords import OF_MODEL_CHECKPOINT, explain_keywords
from elegy.types import Every
from elegy.walltime import measured


@dataclasses.dataclass(frozen=True)
class _Saved:
    name: str
    step: int
    value: float | None  # None if not measured, or NaN


class ModelCheckpoint(PeriodicCallback):
    """Saves checkpoints to `directory/step_00000123`, and deletes old ones.

    It keeps the newest and the `save_top_k` best checkpoints, and deletes only checkpoints that it saved itself, after
    a newer one is complete. It saves the last state if Ctrl-C or SIGTERM ends the run; with `save_last`, also at the
    end of every other run. If `EarlyStopping(restore_best_weights=True)` ends the run, it saves the restored state,
    unless the last checkpoint is the best one. After a run of all its epochs or steps it saves the last state, from
    which a longer run continues. `fit` waits for the last save. The next save, or the end of `fit`, raises the error
    of a save in the background. After `TerminateOnNaN` has found a loss that is not finite, nothing is saved, so that
    a resumed run starts from a finite state.

    Args:
        directory: a path or an address such as `gs://bucket/run`; it is made if it is missing. Each run needs its own:
            a run that begins at an earlier step than an intact checkpoint in the directory raises an error, and so does
            one that begins while another, of any process, saves to the same path. None is `checkpoints/` in the folder
            of the run, which `Trainer(run_dir=...)` makes.
        monitor: the log that ranks the checkpoints, read after the epoch's validation. None keeps the newest
            `save_top_k` instead. A `val_` name is also read after each evaluation inside of epochs
            (`validation_freq=Every(steps=500)`), and the state is saved then if it is among the best, whatever `every`
            is. The value always belongs to the state that is saved: a checkpoint without an evaluation at its step has
            none.
        mode: `"min"`, `"max"`, or `"auto"`, which decides by the name (see `Monitor`).
        save_top_k: the number of best checkpoints to keep; -1 keeps all.
        save_last: True to save at every interval and at the end of the run, and to keep the newest checkpoint; False
            to save only states that are among the best.
        every: when to save. With an interval other than epochs, a monitored `val_` name is also read after each
            validation, and other names are read within the epoch.
        async_save: True to write checkpoints in a background thread. A save waits for the one before it.
        save_on_exception: True to save the last state if an exception ends the run.

    Raises:
        TypeError: if `every` is not an `Every`, the monitored name not a string, or `save_top_k` not an integer.
        ValueError: if the mode is unknown, the directory a template of names, or nothing would ever be saved; at the
            beginning of a run, if a `val_` name is monitored without validation data, or two callbacks have the same
            directory; at the first save, if the monitored name is not logged (the message lists the logs).
        CheckpointError: if the protocol of an address is unknown; at the beginning of a run, if nothing can be written
            to the directory, if it contains checkpoints of another run or another trainer saves to it, or if it is an
            address and the program has several processes.
        ImportError: if the library for an address is not installed.

    Example:
        >>> ModelCheckpoint("run/checkpoints", monitor="val_accuracy", save_top_k=3, every=Every(epochs=1)).mode
        'max'
    """

    reads_logs = True
    writes_files = True
    batch_hooks_read = "state"
    runs_last = True

    def listens(self, hook: str) -> bool:
        """As `PeriodicCallback.listens`; evaluations inside of epochs only with a monitor."""
        return super().listens(hook) and (hook != "on_evaluation_end" or self.monitor is not None)

    def __init__(
        self,
        directory: str | os.PathLike[str] | None = None,
        monitor: str | None = None,
        mode: Mode = "auto",
        save_top_k: int = 1,
        save_last: bool = True,
        every: Every = EVERY_EPOCH,
        async_save: bool = True,
        save_on_exception: bool = False,
    ):
        super().__init__(every)
        if as_integer(save_top_k) is None:
            raise TypeError(f"save_top_k={save_top_k!r}: it must be an integer, or -1 to keep all.")
        if save_top_k < -1:
            raise ValueError(f"save_top_k={save_top_k}: it must be a count, or -1 to keep all.")
        if save_top_k == 0 and not save_last:
            raise ValueError("save_top_k=0 with save_last=False would save nothing.")
        if re.search(r"\{\w*(:[^{}]*)?\}", str(directory)):
            raise ValueError(
                f"directory={str(directory)!r}: a directory for checkpoints named `step_N`, not a template of names."
            )
        self.in_run_folder = directory is None
        self.directory = path_of(CHECKPOINTS if directory is None else directory)
        self.placed = directory is not None  # False while the run's folder is not known
        self.monitor = None if monitor is None else Monitor(monitor, mode)
        self.save_top_k = save_top_k
        self.save_last = save_last
        self.async_save = async_save
        self.save_on_exception = save_on_exception
        self._saved: list[_Saved] = []
        self._saver: AsyncSaver | None = None
        self._begun = False  # True while the run may write to the directory
        self._nan_callbacks: list[TerminateOnNaN] = []
        self._state: Callable[[], Any] | None = None  # a weak reference to the state that was saved last
        self._epoch = 0  # the number of completed epochs in the last checkpoint

    @property
    def mode(self) -> str | None:
        """`"min"` or `"max"`; None without a monitor."""
        return self.monitor.mode if self.monitor else None

    @property
    def best_path(self) -> Path | Address | None:
        """The checkpoint with the best value; None without a monitor, or before the first value."""
        ranked = self._ranked(self._saved)
        return self.directory / ranked[0].name if ranked else None

    @property
    def best_value(self) -> float | None:
        """The monitored value of `best_path`."""
        ranked = self._ranked(self._saved)
        return ranked[0].value if ranked else None

    @property
    def last_path(self) -> Path | Address | None:
        """The newest checkpoint."""
        return self.directory / self._saved[-1].name if self._saved else None

    @property
    def paths(self) -> list[Path | Address]:
        """The checkpoints that are kept, newest first."""
        return [self.directory / saved.name for saved in reversed(self._saved)]

    def place(self, directory: Path | None) -> None:
        """Sets the directory in the folder of the run.

        Args:
            directory: the directory; None while it is not known.
        """
        self.placed = directory is not None
        if directory is not None and directory != self.directory:
            self.directory, self._saved = directory, []

    def wait(self) -> None:
        """Waits for a save in the background.

        Raises:
            CheckpointError: if the save failed.
        """
        if self._saver is None:
            return
        try:
            with measured("saving"):
                self._saver.wait()
        except BaseException:
            self._saved = [saved for saved in self._saved if self._exists(saved.name)]
            raise

    def meet(self, callbacks: Sequence[Callback]) -> None:
        """Finds the `TerminateOnNaN` callbacks of the run.

        Args:
            callbacks: the callbacks of the run.
        """
        self._begun = False
        self._nan_callbacks = [callback for callback in callbacks if isinstance(callback, TerminateOnNaN)]

    def on_train_begin(self, event: Event) -> None:
        """Makes the directory, and deletes the files of interrupted saves."""
        super().on_train_begin(event)
        if self.monitor is not None:
            self.monitor.check(event)
        self._state, self._epoch = None, event.trainer.epoch
        self._check_directory(event.step)
        place_of(self.directory).make()
        if is_first():
            remove_leftovers(self.directory)
        self._saver = AsyncSaver() if self.async_save else None
        self._begun = True

    def _check_directory(self, step: int) -> None:
        """Refuses a directory with newer checkpoints: `resume="auto"` would take them for this run's."""
        later = [path for path in find_checkpoints(self.directory) if checkpoint_step(path) > step]
        if found := [path.name for path in later if is_intact(path)]:
            raise CheckpointError(
                f"the run begins at step {step}, but {self.directory} has checkpoints of another run, or of this one "
                f"at later steps: {', '.join(found[-3:])}. Pass `resume='auto'` to `fit` to continue from the newest, "
                "choose another directory, or delete them."
            )

    def before_end(self, event: Event) -> None:
        """Saves the end of a run that was not stopped, before a callback replaces the state in `on_train_end`."""
        if self._begun and event.ended == "finished" and self.save_last and not event.trainer.stop_training:
            self._save_where_it_stopped(event)

    def on_train_end(self, event: Event) -> None:
        """Saves the last state, and waits for the save."""
        if not self._begun:  # the directory was refused
            return
        self._begun = False
        try:
            if event.ended == "interrupted":
                self._save_where_it_stopped(event)
            elif event.ended == "failed" and self.save_on_exception:
                self._save_in_an_emergency(event)
            elif event.ended == "finished" and self.save_last and event.trainer.stop_training:
                self._save_the_end(event)
        finally:
            self.wait()

    def _save_where_it_stopped(self, event: Event) -> None:
        self.wait()
        if self._lost(event):
            return
        if not self._saved or self._saved[-1].step != event.step:
            self._save(event, _Saved(checkpoint_name(event.step), event.step, None))
        elif self._epoch != event.trainer.epoch:  # saved at the last step of an epoch, before the epoch ended
            self._save_again(event)

    def _save_the_end(self, event: Event) -> None:
        if self._lost(event):
            return
        self._save_where_it_stopped(event)
        if self._replaced(event):
            self._save_again(event)

    def _replaced(self, event: Event) -> bool:
        """True if a callback has replaced the state since it was saved."""
        return self._state is not None and self._state() is not event.trainer.state

    def _save_again(self, event: Event) -> None:
        last = self._saved[-1]
        if not self._replaced(event):
            self._save(event, last)
        elif self.best_path != self.last_path:
            # The measured value belongs to the state before the callback replaced it.
            self._save(event, dataclasses.replace(last, value=None))

    def _save_in_an_emergency(self, event: Event) -> None:
        try:
            self._save_where_it_stopped(event)
            self.wait()
        except Exception as error:  # `fit` raises the exception that ended the run
            warnings.warn(
                f"the run failed, and it could not be saved where it stopped: {error}",
                stacklevel=stacklevel_of_caller(),
            )

    def on_train_batch_end(self, event: Event) -> None:
        """Saves if the interval has ended. A validation value is not known yet."""
        if self.due(event):
            measured = self.monitor is not None and not self.monitor.name.startswith("val_")
            self._consider(event, due=True, measured=measured)

    def on_epoch_end(self, event: Event) -> None:
        """Saves if the interval has ended, or the epoch's validation ranks the state among the best."""
        if self.every.unit == "epochs":
            if self.due(event):
                self._consider(event, due=True, measured=self.monitor is not None)
        elif self.monitor is not None and self.monitor.name.startswith("val_"):
            self._consider(event, due=False, measured=True)

    def on_evaluation_end(self, event: Event) -> None:
        """Saves if an evaluation inside of the epoch ranks the state among the best."""
        if self.monitor is not None and self.monitor.evaluated(event):
            self._consider(event, due=False, measured=True)

    def _consider(self, event: Event, *, due: bool, measured: bool) -> None:
        self.wait()
        if self._lost(event):
            return
        value = self.monitor.value(event) if self.monitor is not None and measured else None
        before = next((saved for saved in self._saved if saved.step == event.step), None)
        if value is None and before is not None and self._state is not None:  # a value of this state stays
            value = None if self._replaced(event) else before.value
        if value is not None and math.isnan(value):
            value = None
        saved = _Saved(checkpoint_name(event.step), event.step, value)
        others = [other for other in self._saved if other.name != saved.name]
        if (due and self.save_last) or saved in self._best_of([*others, saved]):
            self._save(event, saved)

    def _lost(self, event: Event) -> bool:
        return any(callback.lost(event) for callback in self._nan_callbacks)

    def _save(self, event: Event, saved: _Saved) -> None:
        before = self._saved
        self._saved = [*(other for other in before if other.name != saved.name), saved]
        path = self.directory / saved.name
        try:
            # The checkpoint contains this callback's state, which must list the checkpoint itself.
            if self._saver is None:
                event.trainer.save(path)
                self._prune()
            else:
                event.trainer.save(path, saver=self._saver, then=self._prune)
            self._state, self._epoch = weakref.ref(event.trainer.state), event.trainer.epoch
            event.log_checkpoint(path)
        except BaseException:
            self._saved = before
            raise

    def _ranked(self, saved: list[_Saved]) -> list[_Saved]:
        measured = [s for s in saved if s.value is not None]
        return sorted(measured, key=lambda s: s.value or 0.0, reverse=self.mode == "max")

    def _best_of(self, saved: list[_Saved]) -> list[_Saved]:
        ranked = self._ranked(saved) if self.monitor is not None else saved[::-1]
        return ranked if self.save_top_k == -1 else ranked[: self.save_top_k]

    def _prune(self) -> None:
        if self.save_top_k == -1:
            return
        keep = {self._saved[-1].name, *(s.name for s in self._best_of(self._saved))}
        for saved in [s for s in self._saved if s.name not in keep]:
            try:
                if is_first() and self._exists(saved.name):
                    remove(self.directory / saved.name)
            except CheckpointError as error:
                # The new checkpoint is complete, so the run goes on; the next save tries again.
                warnings.warn(f"an old checkpoint could not be deleted: {error}", stacklevel=stacklevel_of_caller())
            else:
                self._saved.remove(saved)

    def _exists(self, name: str) -> bool:
        return place_of(self.directory / name).exists()

    def state_dict(self) -> dict[str, Any]:
        """Returns the kept checkpoints and their values, with what ranks them: `elegy.checkpoint.best` reads it."""
        return {
            "saved": [[s.name, s.step, s.value] for s in self._saved],
            "monitor": None if self.monitor is None else self.monitor.name,
            "mode": self.mode,
            "directory": self.directory.name,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores the list of the interrupted run, without checkpoints that no longer exist.

        The values of another log than the one that is monitored now are left out.
        """
        own = None if self.monitor is None else self.monitor.name
        same = state.get("monitor", own) == own
        saved = [_Saved(name, step, value if same else None) for name, step, value in state["saved"]]
        # `_prune` deletes listed checkpoints, so a name must not lead out of the directory.
        self._saved = [s for s in saved if re.fullmatch(r"step_\d+", s.name) and self._exists(s.name)]

    def __getstate__(self) -> dict[str, Any]:
        """Returns the attributes to pickle, without those of a run."""
        return {**self.__dict__, "_saver": None, "_begun": False, "_nan_callbacks": [], "_state": None}


explain_keywords(ModelCheckpoint, "__init__", theirs=OF_MODEL_CHECKPOINT)
