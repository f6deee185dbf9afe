"""Logs to a CSV file."""

from __future__ import annotations

import csv
import os
from pathlib import Path
from typing import IO, Any, Literal

from elegy.callbacks.deferred_logs import DeferredLogReader
from elegy.callbacks.event import Event
from elegy.callbacks.interval import EVERY_EPOCH, PeriodicCallback
from elegy.types import Every

_SECONDS = 1.0


class CSVLogger(PeriodicCallback):
    """Writes the logs to a CSV file, a row at a time; what is written survives a crash.

    Rows that come less than a second apart are written up to eight rows late, so that the device need not wait for
    them; with a checkpoint and at the end of the run the file is complete.

    The columns are `epoch` (its index), `step` (completed training steps) and one for each log. A log that appears
    later gets a column then: the file is rewritten, and earlier rows are empty there. A run that resumes from a
    checkpoint, or goes back to one, goes on with its file, less the rows that came after that checkpoint and the row
    of an epoch that was stopped inside and now ends as a whole.

    Args:
        filename: the file; its directory is made where missing.
        separator: what stands between values.
        append: whether to keep the rows of an existing file.
        every: when to write a row. Otherwise than with epochs, rows hold the epoch's running values, and an epoch
            with validation gets one more at its end.

    Raises:
        TypeError: when `every` is no `Every`.
        OSError: at the run's beginning, when the file cannot be written.

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

    batch_hooks_read: Literal["logs"] = "logs"
    first_process_only = True

    def __init__(
        self, filename: str | os.PathLike[str], separator: str = ",", append: bool = False, every: Every = EVERY_EPOCH
    ):
        super().__init__(every)
        self.path = Path(filename)
        self.separator = separator
        self.append = append
        self._columns: list[str] = []
        self._file: IO[str] | None = None
        self._rows = 0  # of the rows
        self._step = 0  # at which the last run ended
        self._resumed: int | None = None  # the step of the checkpoint from which the run goes on
        self._trainer: Any = None
        self._epoch_row: tuple[int, int] | None = None  # of the last epoch that ended: its index, that of its row
        self._reader = DeferredLogReader(_SECONDS)

    def on_train_begin(self, event: Event) -> None:
        """Makes sure that the file can be written."""
        super().on_train_begin(event)
        self._columns, self._rows, self._epoch_row, self._resumed = [], 0, None, None
        self._trainer = event.trainer
        self._reader.clear()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a"):
            pass
        if self.append:
            self._columns, rows = self._read()
            self._rows = len(rows)

    def on_train_batch_end(self, event: Event) -> None:
        """Writes a row when due."""
        if self.due(event):
            self._reader.defer(lambda: self._write(event), event.logs)

    def on_epoch_end(self, event: Event) -> None:
        """Writes the epoch's row."""
        if self.due(event):
            self._reader.defer(lambda: self._write(event), event.logs)
        elif self.every.unit != "epochs" and event.validates:
            self._reader.defer(lambda: self._write_validated(event), event.logs)

    def on_train_end(self, event: Event) -> None:
        """Completes and closes the file."""
        self._step, self._trainer = event.step, None
        self._reader.finish(event, self._close)

    def state_dict(self) -> dict[str, Any]:
        """Completes the file; returns its columns and how far it is."""
        self._reader.flush()
        step = self._step if self._trainer is None else self._trainer.step
        return {"columns": list(self._columns), "rows": self._rows, "epoch_row": self._epoch_row, "step": step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Keeps the rows that the file had then, and those of the same step that came after the checkpoint."""
        self._reader.flush()  # a run that goes back has put rows off that are none any more
        self._close()
        self._columns, self._rows, self._resumed = list(state["columns"]), state["rows"], state.get("step")
        self._epoch_row = tuple(state["epoch_row"]) if state["epoch_row"] else None

    def _write_validated(self, event: Event) -> None:
        if any(name.startswith("val_") for name in event.logs):
            self._write(event)

    def _write(self, event: Event) -> None:
        row = {"epoch": event.epoch, "step": event.step, **event.logs}
        file = self._file_for(row)
        if event.batch is None:
            self._epoch_row = (event.epoch, self._rows)
        self._rows += 1
        writer = csv.writer(file, delimiter=self.separator, lineterminator="\n")
        writer.writerow(row.get(name, "") for name in self._columns)
        file.flush()

    def _file_for(self, row: dict[str, Any]) -> IO[str]:
        """The open file, whose header has every column of `row`."""
        if self._file is not None and all(name in self._columns for name in row):
            return self._file
        rows = self._kept()
        if self._file is None and self._epoch_row is not None and self._epoch_row[0] == row["epoch"]:
            # The run was stopped inside of this epoch and resumed, and the epoch has not ended after all.
            del rows[self._epoch_row[1] : self._epoch_row[1] + 1]
            self._epoch_row = None
        self._columns = list(dict.fromkeys([*self._columns, *row]))
        self._rows = len(rows)
        self._close()
        self._file = self._rewrite(rows)
        return self._file

    def _kept(self) -> list[dict[str, str]]:
        """The rows of the file, less those that came after the checkpoint from which the run goes on."""
        rows = self._read()[1]
        kept = rows[: self._rows]
        for row in rows[self._rows :]:
            if row.get("step") != str(self._resumed):
                break
            # A callback before this one saved at that step, of which this one had not been told yet.
            self._columns = list(dict.fromkeys([*self._columns, *(name for name in row if row[name])]))
            if self.every.unit == "epochs" or any(row[name] for name in row if name.startswith("val_")):
                self._epoch_row = (int(row["epoch"]), len(kept))
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
        file, self._file = self._file, None  # first: a full disk refuses
        if file is not None:
            file.close()
