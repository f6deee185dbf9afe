"""Saves the trainer during a run, and keeps the best and the newest."""

from __future__ import annotations

import dataclasses
import math
import os
import re
import warnings
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from elegy.callbacks.callback import Callback
from elegy.callbacks.event import Event
from elegy.callbacks.interval import EVERY_EPOCH, PeriodicCallback
from elegy.callbacks.monitor import Mode, Monitor
from elegy.callbacks.nan import TerminateOnNaN
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
from elegy.distributed import is_first
from elegy.errors import CheckpointError
from elegy.types import Every


@dataclasses.dataclass(frozen=True)
class _Saved:
    name: str
    step: int
    value: float | None  # None: not measured, or NaN


class ModelCheckpoint(PeriodicCallback):
    """Saves checkpoints into `directory` as `step_00000123`, and deletes those that are no longer wanted.

    Neither the newest nor the best is ever deleted. Only checkpoints that this object saved are, each once a newer one
    is complete, and again at the next save where that fails. A run that Ctrl-C or SIGTERM ends is saved where it
    stopped; with `save_last`, so is the end of every other run. Weights that `EarlyStopping(restore_best_weights=True)`
    put back are saved where it ended the run, unless the last checkpoint is the best one, too; a run of all its epochs
    or steps is saved with its own weights, from which a longer one goes on. `fit` waits for the last save; an error of
    a save in the background is raised by the next one, or at the end of `fit`. A run whose loss `TerminateOnNaN` finds
    to be no number saves nothing from there on, so that a resumed one goes on from the last good checkpoint.

    Args:
        directory: where the checkpoints go, a path or an address such as `gs://bucket/run`; made where missing. It
            belongs to one run: a run that begins at an earlier step than an intact checkpoint that is there is refused.
        monitor: the log that tells which checkpoint is best, read after the epoch's validation; None to keep the
            newest `save_top_k` instead.
        mode: `"min"`, `"max"`, or `"auto"`, which decides by the name (see `Monitor`).
        save_top_k: how many of the best to keep; -1 keeps all.
        save_last: whether to save whenever due and at the end of the run, and keep the newest; otherwise only what is
            among the best is saved.
        every: when to save. Where it counts other than epochs, a monitored `val_` name is looked at after each
            validation as well, and other names are read within the epoch.
        async_save: whether checkpoints are written beside the loop, which goes on at once; a save that is due while
            the one before is being written waits for it.
        save_on_exception: whether a run that an exception ends is saved where it stopped, too.

    Raises:
        TypeError: when `every` is no `Every`.
        ValueError: for an unknown mode, or when nothing would ever be saved; when a run without validation begins and
            a `val_` name is monitored; at the first save, when the monitored name is not logged (the message lists
            those that are).
        CheckpointError: for an address of an unknown protocol; when a run begins, if the directory holds checkpoints
            of another one, or is an address and the program has several processes; a second `ModelCheckpoint` of the
            run with this directory is a `ValueError`.
        ImportError: for an address whose library is not installed.

    Example:
        >>> ModelCheckpoint("run/checkpoints", monitor="val_accuracy", save_top_k=3, every=Every(epochs=1)).mode
        'max'
    """

    batch_hooks_read: Literal["state"] = "state"
    runs_last = True

    def __init__(
        self,
        directory: str | os.PathLike[str],
        monitor: str | None = None,
        mode: Mode = "auto",
        save_top_k: int = 1,
        save_last: bool = True,
        every: Every = EVERY_EPOCH,
        async_save: bool = True,
        save_on_exception: bool = False,
    ):
        super().__init__(every)
        if save_top_k < -1:
            raise ValueError(f"save_top_k={save_top_k}: it must be a count, or -1 to keep all.")
        if save_top_k == 0 and not save_last:
            raise ValueError("save_top_k=0 with save_last=False would save nothing.")
        self.directory = path_of(directory)
        self.monitor = None if monitor is None else Monitor(monitor, mode)
        self.save_top_k = save_top_k
        self.save_last = save_last
        self.async_save = async_save
        self.save_on_exception = save_on_exception
        self._saved: list[_Saved] = []
        self._saver: AsyncSaver | None = None
        self._begun = False  # the run may use the directory
        self._watchers: list[TerminateOnNaN] = []
        self._state: Callable[[], Any] | None = None  # gives the state that was saved last, while somebody has it

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

    def wait(self) -> None:
        """Returns when no save is under way.

        Raises:
            CheckpointError: when the last one failed.
        """
        if self._saver is None:
            return
        try:
            self._saver.wait()
        except BaseException:
            self._saved = [saved for saved in self._saved if self._exists(saved.name)]
            raise

    def meet(self, callbacks: Sequence[Callback]) -> None:
        """Finds those that know whether a state is worth saving; refuses another one with the same directory."""
        self._begun = False
        self._watchers = [callback for callback in callbacks if isinstance(callback, TerminateOnNaN)]
        for other in callbacks:
            if other is self or not isinstance(other, ModelCheckpoint):
                continue
            if _resolved(other.directory) == _resolved(self.directory):
                raise ValueError(
                    f"two ModelCheckpoints save into {self.directory}, where each would delete what the other keeps: "
                    "give each a directory of its own."
                )

    def on_train_begin(self, event: Event) -> None:
        """Makes the directory, and removes what saves that were cut off left in it."""
        super().on_train_begin(event)
        if self.monitor is not None:
            self.monitor.check(event)
        self._state = None
        self._check_directory(event.step)
        place_of(self.directory).make()
        if is_first():
            remove_leftovers(self.directory)
        self._saver = AsyncSaver() if self.async_save else None
        self._begun = True

    def _check_directory(self, step: int) -> None:
        """What is newer than the run would be taken for its own, and resumed from, by `resume="auto"`."""
        later = [path for path in find_checkpoints(self.directory) if checkpoint_step(path) > step]
        if found := [path.name for path in later if is_intact(path)]:
            raise CheckpointError(
                f"the run begins at step {step}, but {self.directory} holds checkpoints of another run, or of this one "
                f"at later steps: {', '.join(found[-3:])}. Pass `resume='auto'` to `fit` to go on from the newest, "
                "give a directory of its own, or delete them."
            )

    def before_end(self, event: Event) -> None:
        """Saves the end of a run that nobody stopped: a longer one goes on from this state, not from a callback's."""
        if self._begun and event.ended == "finished" and self.save_last and not event.trainer.stop_training:
            self._save_where_it_stopped(event)

    def on_train_end(self, event: Event) -> None:
        """Saves where the run stopped, and waits for what is being written."""
        if not self._begun:  # a directory that was refused is not the run's to write into
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
        if (not self._saved or self._saved[-1].step != event.step) and not self._lost(event):
            self._save(event, _Saved(checkpoint_name(event.step), event.step, None))

    def _save_the_end(self, event: Event) -> None:
        if self._lost(event):
            return
        self._save_where_it_stopped(event)
        last = self._saved[-1]
        replaced = self._state is not None and self._state() is not event.trainer.state
        if replaced and self.best_path != self.last_path:
            # Its value was that of the weights before, and those are gone.
            self._save(event, dataclasses.replace(last, value=None))

    def _save_in_an_emergency(self, event: Event) -> None:
        try:
            self._save_where_it_stopped(event)
            self.wait()
        except Exception as error:  # the exception that ended the run is the one to see
            warnings.warn(f"the run failed, and it could not be saved where it stopped: {error}", stacklevel=2)

    def on_train_batch_end(self, event: Event) -> None:
        """Saves when due; a validation value is not known yet."""
        if self.due(event):
            measured = self.monitor is not None and not self.monitor.name.startswith("val_")
            self._consider(event, due=True, measured=measured)

    def on_epoch_end(self, event: Event) -> None:
        """Saves when due, or when the epoch's validation puts it among the best."""
        if self.every.unit == "epochs":
            if self.due(event):
                self._consider(event, due=True, measured=self.monitor is not None)
        elif self.monitor is not None and self.monitor.name.startswith("val_"):
            self._consider(event, due=False, measured=True)

    def _consider(self, event: Event, *, due: bool, measured: bool) -> None:
        self.wait()
        if self._lost(event):
            return
        value = self.monitor.value(event) if self.monitor is not None and measured else None
        if value is not None and math.isnan(value):
            value = None
        saved = _Saved(checkpoint_name(event.step), event.step, value)
        others = [other for other in self._saved if other.name != saved.name]
        if (due and self.save_last) or saved in self._best_of([*others, saved]):
            self._save(event, saved)

    def _lost(self, event: Event) -> bool:
        return any(watcher.lost(event) for watcher in self._watchers)

    def _save(self, event: Event, saved: _Saved) -> None:
        before = self._saved
        self._saved = [*(other for other in before if other.name != saved.name), saved]
        path = self.directory / saved.name
        try:
            # The checkpoint holds this callback's state, in which it must be listed itself.
            if self._saver is None:
                event.trainer.save(path)
                self._prune()
            else:
                event.trainer.save(path, saver=self._saver, then=self._prune)
            self._state = weakref.ref(event.trainer.state)
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
                # The new one is there, and the run has done nothing wrong: the next save tries again.
                warnings.warn(f"an old checkpoint stays: {error}", stacklevel=2)
            else:
                self._saved.remove(saved)

    def _exists(self, name: str) -> bool:
        return place_of(self.directory / name).exists()

    def state_dict(self) -> dict[str, Any]:
        """Returns the kept checkpoints and their values."""
        return {"saved": [[s.name, s.step, s.value] for s in self._saved]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on with those checkpoints of the interrupted run that still exist."""
        saved = [_Saved(name, step, value) for name, step, value in state["saved"]]
        # What is listed may be deleted later, so a name must not lead out of the directory.
        self._saved = [s for s in saved if re.fullmatch(r"step_\d+", s.name) and self._exists(s.name)]

    def __getstate__(self) -> dict[str, Any]:
        """What is pickled: no part of a run."""
        return {**self.__dict__, "_saver": None, "_begun": False, "_watchers": [], "_state": None}


def _resolved(directory: Path | Address) -> Path | tuple[Any, str]:
    """The directory, however it is written."""
    if isinstance(directory, Path):
        return directory.resolve()
    files, root = directory.connect()
    return Path(root).resolve() if "file" in files.protocol else (files, root)
