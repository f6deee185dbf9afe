"""Logs for TensorBoard."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from elegy.callbacks.event import Event
from elegy.callbacks.interval import EVERY_EPOCH
from elegy.callbacks.items import Item, checked
from elegy.distributed import collect
from elegy.lazy import require
from elegy.loggers.board import directories, encoded, hyperparameters, is_free, part_of
from elegy.loggers.board_files import BoardFiles
from elegy.loggers.logger import Logger
from elegy.loggers.places import release, reserve, take
from elegy.loggers.record import Position, Record
from elegy.names import path_name
from elegy.types import Every


class TensorBoard(Logger):
    """Writes the logs for TensorBoard, training under `log_dir/train`, validation under `log_dir/validation`.

    A log `loss` becomes `epoch_loss`, and `batch_loss` for the running values within an epoch. Validation names lose
    their `val_`, so that both curves share a chart. The horizontal axis counts completed training steps. The
    configuration of a run is shown as hyperparameters, the path of a checkpoint as a text. Texts, images, figures and
    histograms that callbacks log have their names.

    A run never adds to the curves of another run. If `log_dir` has curves, a new run writes to `log_dir/run_1`, the
    next to `log_dir/run_2`, and a warning says so; TensorBoard shows them side by side. A second `fit` with the same
    logger and trainer continues its directory. A run that resumes from a checkpoint, or goes back to one, also
    continues its directory; TensorBoard no longer shows the records after that checkpoint.

    Args:
        log_dir: the directory.
        every: when to write. With an interval other than epochs, the running values are written at each interval, and
            the values of the epoch at its end. Evaluations inside of epochs are written whenever they run.
        histograms: True to write a histogram of every parameter array with the values of the epoch.

    Attributes:
        path: the directory of the running or last run.

    Raises:
        TypeError: if `every` is not an `Every`.
        ImportError: at the beginning of the run, if tensorboardX is not installed.

    Example:
        >>> TensorBoard("logs", every=Every(steps=100)).every
        Every(steps=100)
    """

    def __init__(self, log_dir: str | os.PathLike[str] = "logs", every: Every = EVERY_EPOCH, histograms: bool = False):
        super().__init__(every)
        self.step_values = ()  # the running values of the epoch
        self.log_dir = self.path = Path(log_dir)
        self.histograms = histograms
        # Reading an array that is divided over processes is a collective operation, so all processes do it.
        self.first_process_only = not histograms

    def open(self, run: str | None) -> str:
        """Opens the training file."""
        require("tensorboardX", "the TensorBoard callback")
        name = self.log_dir.name
        if run is not None and re.fullmatch(rf"{re.escape(name)}(/run_\d+)?", run):
            self.path = self.log_dir / run[len(name) + 1 :]
            reserve(self.path)
        else:
            self.path = take(directories(self.log_dir), is_free)
        self._files = BoardFiles(self.path)
        self._files.file("train")
        return name if self.path == self.log_dir else f"{name}/{self.path.name}"

    def rewind(self, position: Position) -> None:
        """Hides the records after the checkpoint."""
        self._files.rewind(position.step)

    def log_scalars(self, record: Record) -> None:
        """Writes a record."""
        self.log_block([record])

    def log_block(self, records: Sequence[Record]) -> None:
        """Writes records."""
        self._files.scalars(records)

    def log_config(self, config: Mapping[str, Any]) -> None:
        """Writes the configuration as hyperparameters."""
        for message in hyperparameters(config):
            self._files.add("train", 0, message)

    def log_text(self, item: Item) -> None:
        """Writes an item."""
        part, name = part_of(item.name)
        for message in encoded(item, name):
            self._files.add(part, item.step, message)

    log_image = log_figure = log_histogram = log_checkpoint = log_text

    def record_epoch(self, event: Event) -> None:
        """Logs the values of an epoch, and histograms of the parameters."""
        super().record_epoch(event)
        if self.histograms:
            for path, leaf in jax.tree_util.tree_leaves_with_path(event.trainer.state.get_params()):
                if jnp.issubdtype(leaf.dtype, jnp.floating):
                    name = f"params/{path_name(path)}"
                    values = checked("histogram", name, collect(leaf))
                    self.log_item(Item("histogram", name, values, event.step, event.epoch))

    def finish(self, ended: str) -> None:
        """Closes the files."""
        release(self.path)
        self._files.close()
