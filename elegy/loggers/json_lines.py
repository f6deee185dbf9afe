"""Logs to a file with one JSON object on each line."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np

from elegy import strict_json
from elegy.callbacks.items import Item
from elegy.loggers.logger import OFTEN, Logger, Position, Record
from elegy.loggers.places import numbered, release, reserve, take
from elegy.types import Every


class JSONLines(Logger):
    """Writes one JSON object for each record to a file, which programs read line by line.

    `{"type": "step", "step": 50, "epoch": 0, "examples": 3200, "seconds": 1.2, "values": {"loss": 0.5}}`; the type of
    an epoch is `"epoch"`, that of evaluations inside of an epoch `"evaluation"`; other lines are of the type
    `"config"`, `"text"`, `"histogram"` (counts and edges) or `"checkpoint"`. Numbers that are not finite are the
    strings `"NaN"`, `"Infinity"` and `"-Infinity"`, because JSON has no such numbers; `float` reads them.

    A run never changes the lines of another run: if the file has some, a new run writes to `log_1.jsonl`, and a warning
    says so. A second `fit` with the same logger and trainer continues the file, and so does a run that resumes from a
    checkpoint; it removes the lines after that checkpoint.

    Args:
        path: the file. Missing directories are made.
        every: the interval; see `Logger`.

    Attributes:
        path: the file of the running or last run.

    Raises:
        TypeError: if `every` is not an `Every`.
        OSError: at the beginning of the run, if the file cannot be written.

    Example:
        >>> JSONLines("run/log.jsonl", every=Every(steps=10)).every
        Every(steps=10)
    """

    def __init__(self, path: str | os.PathLike[str], every: Every = OFTEN):
        super().__init__(every)
        self.path = self._asked = Path(path)
        self._file: IO[str] | None = None

    def write_to(self, path: Path) -> None:
        """Sets the file of the next run.

        Args:
            path: the file.
        """
        self.path = self._asked = path
        self.run = None

    def open(self, run: str | None) -> str:
        """Opens the file of the run."""
        self._asked.parent.mkdir(parents=True, exist_ok=True)
        name = f"{re.escape(self._asked.stem)}(_\\d+)?{re.escape(self._asked.suffix)}"
        if run is not None and re.fullmatch(name, run):
            self.path = self._asked.with_name(run)
            reserve(self.path)
        else:
            self.path = take(numbered(self._asked), lambda path: not path.exists() or not path.stat().st_size)
        self._file = self.path.open("a", encoding="utf-8")
        return self.path.name

    def rewind(self, position: Position) -> None:
        """Removes the lines after the checkpoint."""
        assert self._file is not None
        self._file.close()
        kept = [line for line in _whole_lines(self.path) if _kept(line, position)]
        temporary = self.path.with_name(self.path.name + ".tmp")
        temporary.write_text("".join(kept), encoding="utf-8")
        temporary.replace(self.path)
        self._file = self.path.open("a", encoding="utf-8")

    def log_scalars(self, record: Record) -> None:
        """Writes a line."""
        fields = {"examples": record.examples, "seconds": round(record.seconds, 3), "values": dict(record.values)}
        self._write(record.kind, step=record.step, epoch=record.epoch, **fields)

    def log_config(self, config: Mapping[str, Any]) -> None:
        """Writes a line."""
        self._write("config", **config)

    def log_text(self, item: Item) -> None:
        """Writes a line."""
        self._write_item(item, text=item.value)

    def log_histogram(self, item: Item) -> None:
        """Writes a line with counts and edges of the finite values."""
        counts, edges = np.histogram(item.value[np.isfinite(item.value)], bins=64)
        self._write_item(item, counts=counts.tolist(), edges=edges.tolist())

    def log_checkpoint(self, item: Item) -> None:
        """Writes a line."""
        self._write_item(item, path=item.value)

    def finish(self, ended: str) -> None:
        """Closes the file."""
        release(self.path)
        file, self._file = self._file, None
        if file is not None:
            file.close()

    def _write_item(self, item: Item, **fields: Any) -> None:
        where = {"step": item.step, "epoch": item.epoch, "in_epoch": item.in_epoch}
        self._write(item.kind, **where, name=item.name, **fields)

    def _write(self, kind: str, **fields: Any) -> None:
        assert self._file is not None
        self._file.write(strict_json.dumps({"type": kind, **fields}) + "\n")
        self._file.flush()


def _whole_lines(path: Path) -> list[str]:
    """The lines of a file, without one that a crash has cut."""
    return [line for line in path.read_text(encoding="utf-8").splitlines(keepends=True) if line.endswith("\n")]


def _kept(line: str, position: Position) -> bool:
    entry = json.loads(line)
    kind = "step" if entry.get("in_epoch") else entry["type"]
    return "step" not in entry or position.has(kind, entry["step"], entry["epoch"])
