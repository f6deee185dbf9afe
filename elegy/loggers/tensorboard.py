"""Logs for TensorBoard."""

from __future__ import annotations

import itertools
import os
import re
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from elegy.callbacks.callback import Callback
from elegy.callbacks.deferred_logs import DeferredLogReader
from elegy.callbacks.event import Event
from elegy.callbacks.interval import EVERY_EPOCH, PeriodicCallback
from elegy.callbacks.items import Item
from elegy.distributed import collect, is_first
from elegy.lazy import require
from elegy.loggers.logger import drawn, flat
from elegy.loggers.places import release, reserve, take
from elegy.loggers.png import png
from elegy.names import path_name
from elegy.types import Every

# A flush waits for the disk, and reading logs for the device: short epochs share both.
_SECONDS = 1.0

_FILES = itertools.count(1)


class TensorBoard(PeriodicCallback):
    """Writes the logs for TensorBoard, training under `log_dir/train`, validation under `log_dir/validation`.

    A log `loss` becomes `epoch_loss`, and `batch_loss` for the running values within an epoch. Validation names lose
    their `val_`, so that both curves share a chart. The horizontal axis counts completed training steps. The
    configuration of a run is shown as hyperparameters. Texts, images, figures and histograms that callbacks log have
    their names.

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
        ImportError: At the beginning of the run, if tensorboardX is not installed.

    Example:
        >>> TensorBoard("logs", every=Every(steps=100)).every
        Every(steps=100)
    """

    reads_logs = True
    writes_files = True
    batch_hooks_read = "logs"
    only_logs = True
    first_process_only = True

    def __init__(self, log_dir: str | os.PathLike[str] = "logs", every: Every = EVERY_EPOCH, histograms: bool = False):
        super().__init__(every)
        self.log_dir = self.path = Path(log_dir)
        self.histograms = histograms
        # Reading parameters that are divided over processes is a collective operation.
        self.first_process_only = not histograms
        self._library: Any = None
        self._record: Any = None
        self._session: Any = None
        self._has_place = False  # True if `path` is the directory of this run
        self._step = 0  # the step of the last record
        self._epoch = 0  # the index of the running epoch
        self._trainer: Any = None
        self._purge_step: int | None = None  # TensorBoard hides earlier records from this step on
        self._writers: dict[str, Any] = {}
        self._flushed = time.monotonic()
        self._reader = DeferredLogReader(_SECONDS)
        self._running = False  # within fit
        self._begun = False  # within fit, and it is known whether the run resumes
        self._early: list[Item] = []  # received before that
        self._said: set[str] = set()

    def meet(self, callbacks: Sequence[Callback]) -> None:
        """Receives items from here on."""
        self._running, self._begun, self._early = True, False, []

    def receive(self, item: Item) -> None:
        """Writes a text, an image, a figure or a histogram."""
        if not self._running or item.kind == "artifact":
            what = "files" if self._running else "items outside of fit"
            if what not in self._said:
                self._said.add(what)
                warnings.warn(f"the logger TensorBoard does not log {what}: they are left out.", stacklevel=2)
        elif not self._begun:
            self._early.append(item)
        elif is_first() and item.kind != "checkpoint":
            self._write_item(item)

    def on_train_begin(self, event: Event) -> None:
        """Continues the directory of the last run if the trainer is the same."""
        super().on_train_begin(event)
        self._has_place = self._has_place and 0 < self._step <= event.step
        if self._has_place:
            reserve(self.path)
        self._step, self._epoch, self._purge_step = event.step, event.epoch, None
        self._trainer = event.trainer
        self._reader.clear()
        if not is_first():
            return
        self._library = require("tensorboardX", "the TensorBoard callback")
        self._record = require("tensorboardX.proto.summary_pb2", "the TensorBoard callback").Summary
        self._session = require("tensorboardX.proto.event_pb2", "the TensorBoard callback")

    def on_epoch_begin(self, event: Event) -> None:
        """Opens the training file before the first step."""
        super().on_epoch_begin(event)
        self._epoch = event.epoch
        self._begun = True
        if is_first():
            self._writer("train")
            early, self._early = self._early, []
            for item in early:
                self._write_item(item)

    def on_train_batch_end(self, event: Event) -> None:
        """Writes the running values if the interval has ended."""
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

    def on_evaluation_end(self, event: Event) -> None:
        """Writes the values of evaluations inside of an epoch."""
        self._reader.defer(lambda: self._write("epoch", event), event.logs)

    def on_train_end(self, event: Event) -> None:
        """Completes and closes the files."""
        self._trainer, self._running = None, False
        if self._has_place:
            release(self.path)
        self._reader.finish(event, self._close)

    def state_dict(self) -> dict[str, Any]:
        """Writes deferred records; returns the run's directory and the step of its last record."""
        self._reader.flush()
        # An earlier callback may save at the end of an epoch, before this callback has written its record.
        trainer = self._trainer
        step = trainer.step if trainer is not None and trainer.epoch > self._epoch else self._step
        run = "" if self.path == self.log_dir else self.path.name
        return {"log_dir": self.log_dir.name, "run": run, "step": step}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues the directory, and hides the records after the checkpoint."""
        self._reader.flush()
        if not self._has_place:
            run = state.get("run", "")
            if state.get("log_dir", self.log_dir.name) != self.log_dir.name or not re.fullmatch(r"(run_\d+)?", run):
                return  # the directory belongs to another run
            self._use(self.log_dir / run)
        self._step = state["step"]
        self._purge_step = self._step + 1
        for writer in self._writers.values():
            self._purge(writer)

    def _use(self, path: Path) -> None:
        self.path, self._has_place = path, True
        reserve(path)

    def _close(self) -> None:
        while self._writers:
            self._writers.popitem()[1].close()

    def _writer(self, name: str) -> Any:
        new = not self._has_place
        if new:
            self._use(take(_numbered(self.log_dir), _is_free))
        if name not in self._writers:
            # tensorboardX names files by the second, so a run resumed within a second would replace the last file.
            suffix = f".{os.getpid()}.{next(_FILES):04d}"
            writer = self._library.SummaryWriter(logdir=str(self.path / name), filename_suffix=suffix)
            self._writers[name] = writer
            if self._purge_step is not None:
                self._purge(writer)
            if new:
                self._write_config(writer)
        return self._writers[name]

    def _write_config(self, writer: Any) -> None:
        """Writes the configuration as hyperparameters, which TensorBoard shows beside the last `epoch_loss`."""
        configuration = getattr(self._trainer, "configuration", None)
        if configuration is None:
            return
        values = {name: value for name, value in flat(configuration()).items() if value is not None}
        values = {name: v if isinstance(v, (bool, int, float, str)) else str(v) for name, v in values.items()}
        for summary in require("tensorboardX.summary", "the TensorBoard callback").hparams(values, {"epoch_loss": 0.0}):
            writer.file_writer.add_summary(summary, 0)

    def _write_item(self, item: Item) -> None:
        part, name = ("validation", item.name[4:]) if item.name.startswith("val_") else ("train", item.name)
        writer, value = self._writer(part), item.value
        self._step = max(self._step, item.step)
        if item.kind == "histogram":
            finite = value[np.isfinite(value)]  # a histogram has no bin for NaN
            if finite.size:
                writer.add_histogram(name, finite, item.step)
        elif item.kind in ("image", "figure"):
            image = drawn(value) if item.kind == "figure" else value
            height, width, channels = image.shape
            encoded = {"height": height, "width": width, "colorspace": channels, "encoded_image_string": png(image)}
            record = self._record()
            record.value.add(tag=name, image=self._record.Image(**encoded))
            writer.file_writer.add_summary(record, item.step)
        else:
            writer.add_text(name, value, item.step)

    def _purge(self, writer: Any) -> None:
        # As `SummaryWriter(purge_step=...)` does, for a writer that is already open.
        start = self._session.SessionLog(status=self._session.SessionLog.START)
        writer.file_writer.add_event(self._session.Event(session_log=start), self._purge_step)

    def _write(self, kind: str, event: Event) -> None:
        if not is_first():
            return
        # One record for all values of a step: the checksum and the write cost more than the values.
        records: dict[str, Any] = {}
        inside = kind == "epoch" and event.batch is not None  # the running values of the epoch are left out
        for name, value in (event.evaluation_logs if inside else event.logs).items():
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


def _is_free(path: Path) -> bool:
    """True if the directory has no records of a run."""
    return not any(path.glob("train/events.out.tfevents.*")) and not any(path.glob("validation/events.out.tfevents.*"))


def _numbered(path: Path) -> Iterator[Path]:
    """`logs`, `logs/run_1`, `logs/run_2`, ..."""
    yield path
    for number in itertools.count(1):
        yield path / f"run_{number}"
