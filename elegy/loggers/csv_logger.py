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
from elegy.loggers.item_files import ItemFiles
from elegy.loggers.places import file_of, local, release
from elegy.loggers.record import Position, Record
from elegy.types import Every


class CSVLogger(ItemFiles):
    """Writes the logs to a CSV file, one row for a step.

    The columns are `epoch` (its index), `step` (completed training steps) and one for each log that has appeared.
    `log.csv.json` has the configuration and the paths of the checkpoints, `log_items` the items. If `log.csv` has rows
    of another run, a new run writes to `log_1.csv`, and a warning says so. A second `fit` with the same logger and
    trainer continues the file; a run that resumes from a checkpoint also does, without the rows after it.

    Args:
        filename: the file. Missing directories are made.
        separator: the character between values.
        append: True to add the rows of a new run to an existing file.
        every: when to write a row. With an interval other than epochs, rows have the running values of the epoch.

    Attributes:
        path: the file of the running or last run.

    Raises:
        OSError: at the beginning of the run, if the file cannot be written.

    Example:
        >>> CSVLogger("run/log.csv", every=Every(steps=10)).every
        Every(steps=10)
    """

    def __init__(
        self, filename: str | os.PathLike[str], separator: str = ",", append: bool = False, every: Every = EVERY_EPOCH
    ):
        super().__init__(every)
        self.separator, self.append, self.step_values = separator, append, ()  # the running values of the epoch
        self.write_to(local(filename))

    def write_to(self, filename: Path) -> None:
        """Sets the file of the next run."""
        self.path, self._asked, self.run = filename, filename, None

    def open(self, run: str | None) -> str:
        """Opens the file of the run."""
        is_free = functools.partial(has_no_rows, separator=self.separator)
        self.path = file_of(self._asked, self._asked.name if self.append else run, is_free)
        about = self.path.with_name(self.path.name + ".json")
        self._table, self._about = CSVTable(self.path, self.separator), About(about)
        return self.path.name

    def rewind(self, position: Position) -> None:
        """Deletes the rows and items after the checkpoint."""
        super().rewind(position)
        self._table.rewind(position.step, self._about.first)
        self._about.rewind(position)

    def log_block(self, records: Sequence[Record]) -> None:
        """Writes rows."""
        self._table.append(records)

    def log_config(self, config: Mapping[str, Any]) -> None:
        """Writes the configuration to the file beside the table."""
        self._about.configure(config, self._table.count)

    def log_checkpoint(self, item: Item) -> None:
        """Writes the path to the file beside the table."""
        self._about.add(item)

    def record_epoch(self, event: Event) -> None:
        """Logs an epoch of which some values have no row."""
        if self.every.unit == "epochs" or event.evaluated:
            super().record_epoch(event)

    def evaluation_values(self, event: Event) -> Mapping[str, float]:
        """Returns the values of evaluations and the running values of the epoch."""
        return event.logs

    def finish(self, ended: str) -> None:
        """Closes the file."""
        release(self.path)
        self._table.close()
        del self._table, self._about


CSV = CSVLogger
