"""Logs for TensorBoard."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

from elegy.callbacks.event import Event
from elegy.callbacks.interval import EVERY_EPOCH
from elegy.callbacks.items import Item
from elegy.lazy import require
from elegy.loggers.block import blocks_of
from elegy.loggers.board import directories, encoded, histograms, hyperparameters, is_free, part_of
from elegy.loggers.board_files import BoardFiles
from elegy.loggers.item_files import ItemFiles
from elegy.loggers.places import local, release, reserve, take
from elegy.loggers.record import Position, Record
from elegy.types import Every


class TensorBoard(ItemFiles):
    """Writes the logs for TensorBoard, training under `log_dir/train`, validation under `log_dir/validation`.

    A log `loss` becomes `epoch_loss`, and `batch_loss` for the running values within an epoch. Validation names lose
    their `val_`, so that both curves share a chart over the completed training steps. The configuration is shown as
    hyperparameters, the path of a checkpoint as a text. Items have their names; files are copied to `log_dir/items`.

    If `log_dir` has curves of another run, a new run writes to `log_dir/run_1`, with a warning. A second `fit` with the
    same logger and trainer goes on there, as a run that resumes does; TensorBoard shows no step twice.

    Args:
        log_dir: the directory.
        every: when to write. With an interval other than epochs, the running values are written at each interval.
        histograms: True to write a histogram of every parameter array with the values of the epoch.

    Attributes:
        path: the directory of the running or last run.

    Raises:
        TypeError: if `every` is not an `Every`.
        ValueError: if the path is an address.
        ImportError: at the beginning of the run, if tensorboardX is not installed.

    Example:
        >>> TensorBoard("logs", every=Every(steps=100)).every
        Every(steps=100)
    """

    def __init__(self, log_dir: str | os.PathLike[str] = "logs", every: Every = EVERY_EPOCH, histograms: bool = False):
        super().__init__(every)
        self.step_values = ()  # the running values of the epoch
        self.log_dir = self.path = local(log_dir)
        self.histograms, self.first_process_only = histograms, not histograms  # all processes collect divided arrays

    def open(self, run: str | None) -> str:
        """Opens the training file."""
        require("tensorboardX", "the TensorBoard callback")
        name = self.log_dir.name
        if run is not None and re.fullmatch(rf"{re.escape(name)}(/run_\d+)?", run):
            reserve(path := self.log_dir / run[len(name) + 1 :])
        else:
            path = take(directories(self.log_dir), is_free)
        self.path, self._files = path, BoardFiles(path)
        self._files.file("train")
        return name if self.path == self.log_dir else f"{name}/{self.path.name}"

    def rewind(self, position: Position) -> None:
        """Hides the records and removes the files after the checkpoint."""
        super().rewind(position)
        self._files.rewind(position.step)

    def log_block(self, records: Sequence[Record]) -> None:
        """Writes records."""
        self._files.scalars(blocks_of(records))

    def log_config(self, config: Mapping[str, Any]) -> None:
        """Writes the configuration as hyperparameters."""
        self._files.add("train", 0, hyperparameters(config))

    def log_text(self, item: Item) -> None:
        """Writes an item."""
        part, name = part_of(item.name)
        self._files.add(part, item.step, encoded(item, name))

    log_image = log_figure = log_histogram = log_checkpoint = log_text

    def record_epoch(self, event: Event) -> None:
        """Logs the values of an epoch, and histograms of the parameters."""
        super().record_epoch(event)
        for item in histograms(event) if self.histograms else ():
            self.log_item(item)

    def finish(self, ended: str) -> None:
        """Closes the files."""
        release(self.path)
        self._files.close()
        del self._files
