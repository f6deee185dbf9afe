"""Logs for TensorBoard."""

from __future__ import annotations

import itertools
import os
import time
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np

from elegy.callbacks.deferred_logs import DeferredLogReader
from elegy.callbacks.event import Event
from elegy.callbacks.interval import EVERY_EPOCH, PeriodicCallback
from elegy.distributed import collect, is_first
from elegy.lazy import require
from elegy.names import path_name
from elegy.types import Every

# A flush waits for the disk and reading for the device: short epochs share a flush, and wait for the device's values.
_SECONDS = 1.0

_FILES = itertools.count(1)


class TensorBoard(PeriodicCallback):
    """Writes the logs for TensorBoard, training under `log_dir/train`, validation under `log_dir/validation`.

    A log `loss` becomes `epoch_loss`, and `batch_loss` for the running values within an epoch; validation names
    lose their `val_`, so that both curves share a chart. The horizontal axis counts completed training steps. After a
    run was resumed, or went back to a checkpoint, TensorBoard no longer shows what the files hold past that checkpoint.

    Args:
        log_dir: the directory.
        every: when to write. Otherwise than with epochs, the epoch's running values are written when due, and the
            epoch's values at its end.
        histograms: whether to write a histogram of every parameter array with the epoch's values.

    Raises:
        TypeError: when `every` is no `Every`.
        ImportError: at the run's beginning, when tensorboardX is not installed.

    Example:
        >>> TensorBoard("logs", every=Every(steps=100)).every
        Every(steps=100)
    """

    batch_hooks_read: Literal["logs"] = "logs"
    first_process_only = True

    def __init__(self, log_dir: str | os.PathLike[str] = "logs", every: Every = EVERY_EPOCH, histograms: bool = False):
        super().__init__(every)
        self.log_dir = Path(log_dir)
        self.histograms = histograms
        # Parameters that are divided over processes are read by all of them together.
        self.first_process_only = not histograms
        self._library: Any = None
        self._record: Any = None
        self._session: Any = None
        self._step = 0  # of the last record
        self._epoch = 0  # that runs
        self._trainer: Any = None
        self._purge_step: int | None = None  # what the files hold from this step on counts no more
        self._writers: dict[str, Any] = {}
        self._flushed = time.monotonic()
        self._reader = DeferredLogReader(_SECONDS)

    def on_train_begin(self, event: Event) -> None:
        """Opens the writer."""
        super().on_train_begin(event)
        self._step, self._epoch, self._purge_step = event.step, event.epoch, None
        self._trainer = event.trainer
        self._reader.clear()
        if not is_first():
            return
        self._library = require("tensorboardX", "the TensorBoard callback")
        self._record = require("tensorboardX.proto.summary_pb2", "the TensorBoard callback").Summary
        self._session = require("tensorboardX.proto.event_pb2", "the TensorBoard callback")
        self._writer("train")

    def on_epoch_begin(self, event: Event) -> None:
        """Knows which epoch runs."""
        super().on_epoch_begin(event)
        self._epoch = event.epoch

    def on_train_batch_end(self, event: Event) -> None:
        """Writes the running values when due."""
        if self.due(event):
            self._reader.defer(lambda: self._write("batch", event), event.logs)

    def on_epoch_end(self, event: Event) -> None:
        """Writes the epoch's values."""
        if self.every.unit == "epochs" and not self.due(event):
            return
        self._reader.defer(lambda: self._write("epoch", event), event.logs)
        if self.histograms:
            self._write_histograms(event)
        if time.monotonic() - self._flushed >= _SECONDS:
            self._flushed = time.monotonic()
            for writer in self._writers.values():
                writer.flush()

    def on_train_end(self, event: Event) -> None:
        """Completes and closes the files."""
        self._trainer = None
        self._reader.finish(event, self._close)

    def state_dict(self) -> dict[str, Any]:
        """Writes what was put off; returns up to which step a run that resumes does not write again."""
        self._reader.flush()
        # Of an epoch that has ended the record may still be to come: callbacks before this one save, too.
        ended = self._trainer is not None and self._trainer.epoch > self._epoch
        return {"step": self._trainer.step if ended else self._step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Hides what was written after the checkpoint: the run comes there again."""
        self._reader.flush()
        self._step = state["step"]
        self._purge_step = self._step + 1
        for writer in self._writers.values():
            self._purge(writer)

    def _close(self) -> None:
        while self._writers:
            self._writers.popitem()[1].close()

    def _writer(self, name: str) -> Any:
        if name not in self._writers:
            # The library names files by the second: one of a run that is resumed at once would replace the last.
            suffix = f".{os.getpid()}.{next(_FILES):04d}"
            writer = self._library.SummaryWriter(logdir=str(self.log_dir / name), filename_suffix=suffix)
            self._writers[name] = writer
            if self._purge_step is not None:
                self._purge(writer)
        return self._writers[name]

    def _purge(self, writer: Any) -> None:
        # As `SummaryWriter(purge_step=...)` does, which a writer that is open already cannot be told.
        start = self._session.SessionLog(status=self._session.SessionLog.START)
        writer.file_writer.add_event(self._session.Event(session_log=start), self._purge_step)

    def _write(self, kind: str, event: Event) -> None:
        if not is_first():
            return
        # All values of a moment make one record: its checksum and its way to the disk cost more than the values.
        records: dict[str, Any] = {}
        for name, value in event.logs.items():
            part, name = ("validation", name[4:]) if name.startswith("val_") else ("train", name)
            records.setdefault(part, self._record()).value.add(tag=f"{kind}_{name}", simple_value=value)
        for part, record in records.items():
            self._writer(part).file_writer.add_summary(record, event.step)
        self._step = event.step

    def _write_histograms(self, event: Event) -> None:
        for path, leaf in jax.tree_util.tree_leaves_with_path(event.trainer.state.get_params()):
            if not jnp.issubdtype(leaf.dtype, jnp.floating):
                continue
            leaf = collect(leaf)
            if not is_first():
                continue
            values = np.asarray(leaf, np.float32).ravel()
            finite = values[np.isfinite(values)]  # a histogram has no bin for NaN
            if finite.size:
                self._writer("train").add_histogram(f"params/{path_name(path)}", finite, event.step)
