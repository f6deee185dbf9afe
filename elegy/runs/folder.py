"""The folder of a run: its checkpoints, logs, configuration, environment and console output."""

from __future__ import annotations

import contextlib
import datetime
import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from elegy.callbacks import Callback, Event, ModelCheckpoint, TimeMonitor
from elegy.callbacks.items import Item
from elegy.callers import stacklevel_of_caller
from elegy.checkpoint.naming import CHECKPOINTS, RUN_FILE
from elegy.distributed import from_first, is_first, together
from elegy.errors import CheckpointError
from elegy.loggers import CSVLogger, JSONLines
from elegy.runs.console import Console
from elegy.runs.environment import environment
from elegy.runs.files import read_json, write_json, write_kept
from elegy.runs.place import Lock, check_writable, claim, has_lost_its_record, is_of, newest_step, runs_of

logger = logging.getLogger("elegy")

_LONGEST_PATH = 4096


class RunFolder(Callback):
    """Keeps what belongs to a run in one folder. `Trainer(run_dir=...)` makes one.

    The first `fit` of a trainer takes the first of `name`, `name_1`, `name_2`, ... that nothing is in. A further `fit`
    of the same trainer continues there, and so does a run that resumes from the folder.

    Args:
        wanted: the path of the folder.

    Attributes:
        path: the folder of the running or last run; None before the first one.
        parameters: path, shape and dtype of each parameter of the run.
    """

    writes_files = True

    def __init__(self, wanted: Path):
        self.wanted = wanted
        self.path: Path | None = None
        self.parameters: list[dict[str, Any]] = []
        self._continued: Path | None = None  # the folder of the run that is resumed
        self._step = 0  # the last step of the last run
        self._checkpoints: list[ModelCheckpoint] = []
        self._own = ModelCheckpoint()
        self._table, self._lines = _Table(wanted / "log.csv"), JSONLines(wanted / "log.jsonl")
        self._times = _Times()
        self._measured: TimeMonitor = self._times
        self._lock, self._console = Lock(), Console()
        self._record: dict[str, Any] = {}
        self._fit: dict[str, Any] = {}
        self._trainer: Any = None  # while a fit runs

    def with_callbacks(self, given: Sequence[Callback]) -> tuple[Callback, ...]:
        """Returns the callbacks of a fit: those given, the folder, and those that write to it.

        Args:
            given: the callbacks of the trainer and of the fit.
        """
        checkpoints = [c for c in given if isinstance(c, ModelCheckpoint) and c.in_run_folder]
        self._checkpoints = checkpoints or [self._own]
        monitors = [c for c in given if isinstance(c, TimeMonitor)]
        self._measured = monitors[-1] if monitors else self._times
        for checkpoint in self._checkpoints:
            checkpoint.place(None)
        own = () if checkpoints else (self._own,)
        return (self, *given, self._table, self._lines, *(() if monitors else (self._times,)), *own)

    def begin(self, resume: Any) -> None:
        """Finds the folder that a run continues, and its checkpoints: the newest with one that no trainer trains in.

        Args:
            resume: as for `Trainer.fit`: `"auto"`, or the path of a run folder; other values begin a new folder, or
                continue that of the trainer.

        Raises:
            CheckpointError: if another trainer is training in the folder at the path.
            OSError: if no folder can be made there.

        Warns:
            UserWarning: if the `run.json` of the folder is missing or damaged.
        """
        together(lambda: check_writable(self.wanted) if is_first() else None, "looking for the place of the run folder")
        self._continued = None
        if resume is None:
            return
        found = _shared(lambda: self._found(resume), "looking for the run to resume")
        if found is not None:
            if is_first() and has_lost_its_record(found):
                warnings.warn(
                    f"{found / RUN_FILE} is missing or damaged, so it is written anew, without the earlier calls of "
                    f"`fit`. The run continues from its checkpoints in {found / CHECKPOINTS}.",
                    stacklevel=stacklevel_of_caller(),
                )
            self._continued = found
            self._place(found)

    def _found(self, resume: Any) -> Path | None:
        if resume == "auto":
            runs = (path for path in runs_of(self.wanted) if newest_step(path) is not None)
            return next((path for path in runs if self._lock.acquire(path)), None)
        if not isinstance(resume, (str, os.PathLike)) or not is_of(Path(resume), self.wanted):
            return None
        if not self._lock.acquire(Path(resume)):
            raise CheckpointError(
                f"another trainer is training in {resume}: wait for its end, or resume from one of its checkpoints, "
                f"{Path(resume) / CHECKPOINTS}/step_..., which begins a folder of its own."
            )
        return Path(resume)

    def _place(self, folder: Path) -> None:
        """Directs checkpoints and logs to a folder."""
        for checkpoint in self._checkpoints:
            checkpoint.place(folder / CHECKPOINTS)
        if folder != self.path:
            self._table.write_to(folder / "log.csv")
            self._lines.write_to(folder / "log.jsonl")

    @contextlib.contextmanager
    def recording(self) -> Iterator[None]:
        """Records a fit, which is the block: its output, its times and how it ends."""
        self._record, self._fit = {}, {"started": _now()}
        copying = self._console.copying() if is_first() else contextlib.nullcontext()
        try:
            with copying:
                yield
        except BaseException as error:
            try:
                self._end(error)
            except OSError as other:  # the exception that ended the run matters more
                warnings.warn(
                    f"the run failed, and its record could not be written: {other}", stacklevel=stacklevel_of_caller()
                )
            raise
        else:
            self._end(None)
        finally:
            self._lock.release()
            self._continued = self._trainer = None

    def on_train_begin(self, event: Event) -> None:
        """Takes the folder, and writes the configuration and the environment."""
        resumes, self._trainer = self._continued, event.trainer
        folder = resumes or _shared(lambda: self._own_or_new(event.step), "making the run folder")
        assert folder is not None
        self._place(folder)
        self.path = folder
        if is_first():
            self._describe(event, resumes is not None)
        logger.info("run folder: %s", folder)

    def _own_or_new(self, step: int) -> Path:
        path = self.path
        if path is not None and 0 < self._step <= step and path.is_dir() and self._lock.acquire(path):
            newest = newest_step(path)
            if newest is None or newest <= step:
                return path
        path = claim(self.wanted)
        self._lock.acquire(path)
        return path

    def _describe(self, event: Event, resumed: bool) -> None:
        assert self.path is not None
        configuration = event.trainer.configuration()
        versions = configuration.pop("versions")
        write_kept(self.path / "config.json", configuration)
        write_kept(self.path / "environment.json", {"versions": versions, **environment()})
        write_kept(self.path / "model.json", {"parameters": self.parameters})
        known = read_json(self.path / RUN_FILE)
        self._record = {
            "format": 1,
            "name": self.wanted.name,
            "module": configuration["trainer"]["module"],
            "started": self._fit["started"],
            **known,
            "status": "running",
            "fits": [*known.get("fits", ()), self._fit],
        }
        self._fit |= {"first_step": event.step, "resumed": resumed}
        self._write(event.step, event.epoch)
        self._console.attach(self.path / "console.txt")

    def receive(self, item: Item) -> None:
        """Notes the checkpoint that was saved."""
        if item.kind == "checkpoint" and self._record and self._trainer is not None:
            self._write(item.step, self._trainer.epoch)  # the epoch of the item may have ended

    def on_train_end(self, event: Event) -> None:
        """Notes where the run ended."""
        self._step = event.trainer.step
        if self._record:
            self._fit["status"] = event.ended
            self._write(event.trainer.step, event.trainer.epoch)

    def _end(self, failure: BaseException | None) -> None:
        if not self._record:
            return
        if failure is not None:
            self._fit |= {"status": "failed", "error": f"{type(failure).__name__}: {failure}"}
        self._fit["ended"] = self._record["ended"] = _now()
        self._record["status"] = self._fit.get("status", "failed")
        self._fit["seconds"] = dict(self._measured.seconds)
        self._fit["warnings"] = [
            {"message": message, "category": category, "file": file, "line": line, "times": times}
            for (message, category, file, line), times in self._console.warnings.items()
        ]
        self._write(self._record["step"], self._record["epoch"])

    def _write(self, step: int, epoch: int) -> None:
        assert self.path is not None
        self._record |= {"step": step, "epoch": epoch, "checkpoints": [_saved(c) for c in self._checkpoints]}
        write_json(self.path / RUN_FILE, self._record)

    def __getstate__(self) -> dict[str, Any]:
        """Without the folder: a copy of the trainer begins one of its own."""
        return {"wanted": self.wanted}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Makes a new one."""
        self.__init__(state["wanted"])  # type: ignore[misc]


class _Table(CSVLogger):
    """Leaves the items to the log beside it."""

    def receive(self, item: Item) -> None:
        pass


class _Times(TimeMonitor):
    """Measures the times, and adds nothing to the logs."""

    def on_epoch_end(self, event: Event) -> None:
        pass


def _saved(checkpoint: ModelCheckpoint) -> dict[str, Any]:
    last, best, monitor = checkpoint.last_path, checkpoint.best_path, checkpoint.monitor
    return {
        "last": None if last is None else last.name,
        "monitor": None if monitor is None else monitor.name,
        "mode": checkpoint.mode,
        "best": None if best is None else best.name,
        "best_value": checkpoint.best_value,
    }


def _shared(find: Any, what: str) -> Path | None:
    """Runs a function in the first process, and returns the path that it returns in every process."""
    found = together(lambda: find() if is_first() else None, what)
    text = np.zeros(_LONGEST_PATH, np.uint8)
    data = os.fsencode(found) if found is not None else b""
    text[: len(data)] = np.frombuffer(data, np.uint8)
    shared = from_first(text)
    if shared is text:  # one process
        return found
    return Path(os.fsdecode(bytes(np.asarray(shared)).rstrip(b"\0"))) if shared.any() else None


def _now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="milliseconds")
