"""Logs to a CSV file."""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from elegy.callbacks.event import Event
from elegy.callbacks.interval import EVERY_EPOCH
from elegy.callbacks.items import Item
from elegy.loggers.about import About
from elegy.loggers.csv_table import CSVTable, has_no_rows
from elegy.loggers.logger import Logger
from elegy.loggers.places import file_of, release
from elegy.loggers.record import Position, Record
from elegy.types import Every


class CSVLogger(Logger):
    """Writes the logs to a CSV file, one row for a step. Written rows survive a crash; see `Logger`.

    The columns are `epoch` (its index), `step` (completed training steps) and one for each log. A log that appears
    later gets a new column: the file is rewritten, and the earlier rows are empty there. `log.csv.json` has the
    configuration of the run and the paths of its checkpoints.

    A run never changes the rows of another run. If `log.csv` has rows, a new run writes to `log_1.csv`, the next to
    `log_2.csv`, and a warning says so. A second `fit` with the same logger and trainer continues the file. A run that
    resumes from a checkpoint, or goes back to one, also continues its file: it deletes the rows after that checkpoint.

    Args:
        filename: the file. Missing directories are made.
        separator: the character between values.
        append: True to add the rows of a new run to an existing file.
        every: when to write a row. With an interval other than epochs, rows contain the running values of the epoch,
            and an epoch with a validation has a row at its end, as each evaluation inside of an epoch.

    Attributes:
        path: the file of the running or last run.

    Raises:
        TypeError: if `every` is not an `Every`.
        OSError: at the beginning of the run, if the file cannot be written.

    Example:
        >>> CSVLogger("run/log.csv", every=Every(steps=10)).every
        Every(steps=10)
    """

    def __init__(
        self, filename: str | os.PathLike[str], separator: str = ",", append: bool = False, every: Every = EVERY_EPOCH
    ):
        super().__init__(every)
        self.step_values = ()  # the running values of the epoch
        self.separator, self.append = separator, append
        self.write_to(Path(filename))
        self._first = 0  # the number of rows of earlier runs

    def write_to(self, filename: Path) -> None:
        """Sets the file of the next run."""
        self.path = self._asked = filename
        self.run = None

    def open(self, run: str | None) -> str:
        """Opens the file of the run."""
        is_free = functools.partial(has_no_rows, separator=self.separator)
        self.path = file_of(self._asked, self._asked.name if self.append else run, is_free)
        self._table = CSVTable(self.path, self.separator)
        continues = run == self.path.name
        self._first = self._first if continues else self._table.count
        self._about = About(self.path.with_name(self.path.name + ".json"), continues)
        return self.path.name

    def rewind(self, position: Position) -> None:
        """Deletes the rows after the checkpoint."""
        self._table.rewind(position.step, self._first)
        self._about.rewind(position)

    def log_scalars(self, record: Record) -> None:
        """Writes a row."""
        self.log_block([record])

    def log_block(self, records: Sequence[Record]) -> None:
        """Writes rows."""
        self._table.append([{"epoch": record.epoch, "step": record.step, **record.values} for record in records])

    def log_config(self, config: Mapping[str, Any]) -> None:
        """Writes the configuration to the file beside the table."""
        self._about.configure(config)

    def log_checkpoint(self, item: Item) -> None:
        """Writes the path to the file beside the table."""
        self._about.add(item)

    def record_epoch(self, event: Event) -> None:
        """Logs an epoch of which not all values have a row."""
        if self.every.unit == "epochs" or event.evaluated:
            super().record_epoch(event)

    def evaluation_values(self, event: Event) -> Mapping[str, float]:
        """Returns the values of evaluations and the running values of the epoch."""
        return event.logs

    def finish(self, ended: str) -> None:
        """Closes the file."""
        release(self.path)
        self._table.close()

    def state_dict(self) -> dict[str, Any]:
        """As `Logger.state_dict`, with the number of rows of earlier runs."""
        return {**super().state_dict(), "first": self._first}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """As `Logger.load_state_dict`."""
        self._first = state.get("first", 0)
        super().load_state_dict(state)


CSV = CSVLogger
