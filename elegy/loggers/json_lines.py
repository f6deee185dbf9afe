"""Logs to a file with one JSON object on each line."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from elegy import strict_json
from elegy.callbacks.items import Item
from elegy.loggers.block import blocks_of
from elegy.loggers.item_files import ItemFiles
from elegy.loggers.json_text import json_lines, kept_lines
from elegy.loggers.logger import OFTEN
from elegy.loggers.places import file_of, local, release
from elegy.loggers.record import Position, Record
from elegy.loggers.values import counts
from elegy.types import Every


class JSONLines(ItemFiles):
    """Writes one JSON object for each record to a file, which programs read line by line.

    `{"type": "step", "step": 50, "epoch": 0, "examples": 3200, "seconds": 1.2, "values": {"loss": 0.5}}`; the type of
    an epoch is `"epoch"`, that of evaluations inside of an epoch `"evaluation"`; other lines are of the type
    `"config"`, `"text"`, `"histogram"` (counts and edges) or `"checkpoint"`. Images, figures and files are in
    `log_items`. Numbers that are not finite are the strings `"NaN"`, `"Infinity"` and `"-Infinity"`: JSON has none.

    If the file has lines of another run, a new run writes to `log_1.jsonl`, and a warning says so. A second `fit` with
    the same logger and trainer continues the file, and so does a run that resumes from a checkpoint; it removes the
    lines after that checkpoint.

    Args:
        path: the file. Missing directories are made.
        every: the interval; see `Logger`.

    Attributes:
        path: the file of the running or last run.

    Raises:
        TypeError: if `every` is not an `Every`.
        ValueError: if the path is an address.
        OSError: at the beginning of the run, if the file cannot be written.

    Example:
        >>> JSONLines("run/log.jsonl", every=Every(steps=10)).every
        Every(steps=10)
    """

    def __init__(self, path: str | os.PathLike[str], every: Every = OFTEN):
        super().__init__(every)
        self.write_to(local(path))

    def write_to(self, path: Path) -> None:
        """Sets the file of the next run."""
        self.path, self._asked, self.run = path, path, None

    def open(self, run: str | None) -> str:
        """Opens the file of the run."""
        self.path = file_of(self._asked, run, lambda path: not path.exists() or not path.stat().st_size)
        self._file = self.path.open("ab")
        return self.path.name

    def rewind(self, position: Position) -> None:
        """Removes the lines and items after the checkpoint."""
        super().rewind(position)
        self._file.close()
        temporary = self.path.with_name(self.path.name + ".tmp")
        temporary.write_bytes(kept_lines(self.path, position, self._size))
        temporary.replace(self.path)
        self._file = self.path.open("ab")

    def log_block(self, records: Sequence[Record]) -> None:
        """Writes lines."""
        self._write(map(json_lines, blocks_of(records)))

    def log_config(self, config: Mapping[str, Any]) -> None:
        """Writes a line."""
        self._write([strict_json.dumps({"type": "config", **config}).encode(), b"\n"])

    def log_text(self, item: Item) -> None:
        """Writes a line for a text, a histogram or the path of a checkpoint."""
        fields = {"type": item.kind, "step": item.step, "epoch": item.epoch, "in_epoch": item.in_epoch}
        fields |= {"evaluated": True} if item.evaluated else {}
        value = {"text": "text", "checkpoint": "path"}.get(item.kind)
        given = counts(item.value) if value is None else {value: item.value}
        self._write([strict_json.dumps({**fields, "name": item.name, **given}).encode(), b"\n"])

    log_histogram = log_checkpoint = log_text

    def finish(self, ended: str) -> None:
        """Closes the file."""
        release(self.path)
        self._file.close()
        del self._file

    def _write(self, lines: Iterable[bytes]) -> None:
        self._file.writelines(lines)
        self._file.flush()
