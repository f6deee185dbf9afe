"""Logs to a CSV file."""

from __future__ import annotations

import csv
import itertools
import os
import re
import warnings
from pathlib import Path
from typing import IO, Any

from elegy.callbacks.deferred_logs import DeferredLogReader
from elegy.callbacks.event import Event
from elegy.callbacks.interval import EVERY_EPOCH, PeriodicCallback
from elegy.callbacks.items import Item
from elegy.loggers.places import numbered, release, reserve, take
from elegy.types import Every

_SECONDS = 1.0


class CSVLogger(PeriodicCallback):
    """Writes the logs to a CSV file, one row at a time. Written rows survive a crash.

    Rows that come less than a second apart are written up to eight rows late, so that the loop does not wait for the
    device. The file is complete when a checkpoint is saved, and at the end of the run.

    The columns are `epoch` (its index), `step` (completed training steps) and one for each log. A log that appears
    later gets a new column: the file is rewritten, and the earlier rows are empty there.

    A run never changes the rows of another run. If `log.csv` has rows, a new run writes to `log_1.csv`, the next to
    `log_2.csv`, and a warning says so. A second `fit` with the same logger and trainer continues the file. A run that
    resumes from a checkpoint, or goes back to one, also continues its file: it deletes the rows after that checkpoint.
    If that checkpoint was saved at the step of an evaluation or the last step of an epoch, before its validation, its
    row is replaced.

    Args:
        filename: the file. Missing directories are made.
        separator: the character between values.
        append: True to add the rows of a new run to an existing file.
        every: when to write a row. With an interval other than epochs, rows contain the running values of the epoch,
            and an epoch with a validation gets one more row at its end. Each evaluation inside of an epoch gets a row,
            with the running values of the epoch.

    Attributes:
        path: the file of the running or last run.

    Raises:
        TypeError: if `every` is not an `Every`.
        OSError: At the beginning of the run, if the file cannot be written.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp()) / "log.csv"
        >>> logger = CSVLogger(path)
        >>> logger.on_train_begin(Event(None, "train", step=0, epoch=0))
        >>> logger.on_epoch_end(Event(None, "train", step=10, epoch=0, logs={"loss": 0.5}))
        >>> logger.on_train_end(Event(None, "train", step=10, epoch=0))
        >>> print(path.read_text())
        epoch,step,loss
        0,10,0.5
    """

    reads_logs = True
    writes_files = True
    batch_hooks_read = "logs"
    only_logs = True
    first_process_only = True

    def __init__(
        self, filename: str | os.PathLike[str], separator: str = ",", append: bool = False, every: Every = EVERY_EPOCH
    ):
        super().__init__(every)
        self.path = self._asked = Path(filename)
        self.separator = separator
        self.append = append
        self._columns: list[str] = []
        self._file: IO[str] | None = None
        self._has_place = False  # True if `path` is the file of this run
        self._rows = 0  # the number of rows of this run
        self._step = 0  # the last step of the last run
        self._resumed: int | None = None  # the step of the checkpoint that the run resumes from
        self._trainer: Any = None
        self._ends: int | None = None  # the index of the first row after the checkpoint that may be written again
        self._said = False
        self._reader = DeferredLogReader(_SECONDS)

    def write_to(self, filename: Path) -> None:
        """Sets the file of the next run.

        Args:
            filename: the file.
        """
        self.path = self._asked = filename
        self._has_place = False

    def on_train_begin(self, event: Event) -> None:
        """Continues the file of the last run if the trainer is the same."""
        super().on_train_begin(event)
        trains_on = self._has_place and 0 < self._step <= event.step and self.path.exists()
        self._columns, self._rows, self._ends, self._resumed = [], 0, None, None
        self._trainer = event.trainer
        self._reader.clear()
        if self.append:
            self.path = self._asked
        if self.append or trains_on:
            self._use(self.path)
            self._columns, rows = self._read()
            self._rows = len(rows)
        else:
            self._has_place = False  # until it is known whether the run resumes

    def on_epoch_begin(self, event: Event) -> None:
        """Opens the file, so that an error is raised before the first step."""
        super().on_epoch_begin(event)
        self._take_place()

    def _take_place(self) -> None:
        if not self._has_place:
            self._asked.parent.mkdir(parents=True, exist_ok=True)
            self._use(take(numbered(self._asked), self._is_free))

    def _use(self, path: Path) -> None:
        self.path, self._has_place = path, True
        reserve(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a"):
            pass

    def _is_free(self, path: Path) -> bool:
        """True if the file is missing, empty, or has nothing but the header of a run that wrote no row."""
        try:
            with path.open("rb") as file:
                lines = [*itertools.islice(file, 2)]
        except FileNotFoundError:
            return True
        return not lines or (len(lines) == 1 and lines[0].startswith(f"epoch{self.separator}step".encode()))

    def receive(self, item: Item) -> None:
        """Says once that a table has only numbers."""
        if item.kind != "checkpoint" and not self._said:
            self._said = True
            warnings.warn(f"the logger CSV logs only numbers: {item.name!r} and the like are left out.", stacklevel=2)

    def on_train_batch_end(self, event: Event) -> None:
        """Writes a row if the interval has ended."""
        if self.due(event):
            self._reader.defer(lambda: self._write(event), event.logs)

    def on_epoch_end(self, event: Event) -> None:
        """Writes the epoch's row."""
        if self.due(event):
            self._reader.defer(lambda: self._write(event), event.logs)
        elif self.every.unit != "epochs" and event.validates:
            self._reader.defer(lambda: self._write_validated(event), event.logs)

    def on_evaluation_end(self, event: Event) -> None:
        """Writes a row for evaluations inside of an epoch."""
        self._reader.defer(lambda: self._write(event), event.logs)

    def on_train_end(self, event: Event) -> None:
        """Completes and closes the file."""
        self._step, self._trainer = event.step, None
        if self._has_place:
            release(self.path)
        self._reader.finish(event, self._close)

    def state_dict(self) -> dict[str, Any]:
        """Writes deferred rows; returns the file's name, its columns and the number of its rows."""
        self._reader.flush()
        if self._trainer is not None:
            self._take_place()
        return {
            "file": self.path.name,
            "columns": list(self._columns),
            "rows": self._rows,
            "step": self._step if self._trainer is None else self._trainer.step,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues the file: keeps the rows up to the checkpoint's step."""
        self._reader.flush()  # a run that goes back has deferred rows of which some will be deleted
        self._close()
        if not self._has_place:
            name = state.get("file", self._asked.name)
            if not re.fullmatch(rf"{re.escape(self._asked.stem)}(_\d+)?{re.escape(self._asked.suffix)}", name):
                return  # the file belongs to another run
            self._use(self._asked.with_name(name))
        self._columns, self._rows, self._resumed = list(state["columns"]), state["rows"], state.get("step")
        self._ends = None

    def _write_validated(self, event: Event) -> None:
        if any(name.startswith("val_") for name in event.logs):
            self._write(event)

    def _write(self, event: Event) -> None:
        row = {"epoch": event.epoch, "step": event.step, **event.logs}
        file = self._file_for(row, ends=event.batch is None or bool(event.evaluated))
        self._rows += 1
        writer = csv.writer(file, delimiter=self.separator, lineterminator="\n")
        writer.writerow(row.get(name, "") for name in self._columns)
        file.flush()

    def _file_for(self, row: dict[str, Any], ends: bool) -> IO[str]:
        """The open file, whose header has every column of `row`; `ends` for a row of an evaluation or an epoch."""
        if self._file is not None and all(name in self._columns for name in row):
            return self._file
        self._take_place()
        rows = self._kept()
        if self._file is None and ends and self._ends is not None and row["step"] == self._resumed:
            # The checkpoint is of this step, before the evaluation or the end of the epoch, which are repeated.
            del rows[self._ends :]
        self._ends = None
        self._columns = list(dict.fromkeys([*self._columns, *row]))
        self._rows = len(rows)
        self._close()
        self._file = self._rewrite(rows)
        return self._file

    def _kept(self) -> list[dict[str, str]]:
        """The rows of the file up to the checkpoint that the run resumes from."""
        rows = self._read()[1]
        kept = rows[: self._rows]
        for row in rows[self._rows :]:
            if row.get("step") != str(self._resumed):
                break
            # An earlier callback saved the checkpoint at this step before this callback was called.
            self._columns = list(dict.fromkeys([*self._columns, *(name for name in row if row[name])]))
            evaluated = any(row[name] for name in row if name.startswith("val_"))
            if self._ends is None and (self.every.unit == "epochs" or evaluated):
                self._ends = len(kept)
            kept.append(row)
        return kept

    def _read(self) -> tuple[list[str], list[dict[str, str]]]:
        """The columns and the rows of an existing file."""
        with self.path.open(newline="") as file:
            reader = csv.DictReader(file, delimiter=self.separator, restval="")
            rows = [{name: value for name, value in row.items() if name is not None} for row in reader]
            return list(reader.fieldnames or ()), rows

    def _rewrite(self, rows: list[dict[str, str]]) -> IO[str]:
        temporary = self.path.with_name(self.path.name + ".tmp")
        with temporary.open("w", newline="") as file:
            writer = csv.DictWriter(
                file, self._columns, restval="", extrasaction="ignore", delimiter=self.separator, lineterminator="\n"
            )
            writer.writeheader()
            writer.writerows(rows)
        temporary.replace(self.path)
        return self.path.open("a", newline="")

    def _close(self) -> None:
        file, self._file = self._file, None  # before `close`, which may raise (full disk)
        if file is not None:
            file.close()
