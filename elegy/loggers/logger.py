"""The base class of loggers."""

from __future__ import annotations

import abc
import contextlib
import dataclasses
import warnings
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from elegy.callbacks.callback import Callback
from elegy.callbacks.deferred_logs import finish
from elegy.callbacks.event import Event
from elegy.callbacks.interval import PeriodicCallback, by_interval
from elegy.callbacks.items import Item
from elegy.callers import stacklevel_of_caller
from elegy.distributed import is_first
from elegy.loggers.block import Block, Records
from elegy.loggers.disk_errors import name_file
from elegy.loggers.gatherer import Entry, Gatherer
from elegy.loggers.log_writer import Channel
from elegy.loggers.record import Position, Record
from elegy.loggers.step_records import StepRecords, block_of
from elegy.loggers.values import drawn
from elegy.types import Every

OFTEN = Every(steps=50)
"""The default interval of loggers."""


class Logger(PeriodicCallback, abc.ABC):
    """Base class of loggers: it decides what is logged and when, and calls the methods that write it.

    At each interval it logs the values of the step itself (not the running values of the epoch), with what callbacks
    have added to them, and at the end of each epoch the values of the epoch and of its validation. With an interval in
    epochs, it logs epochs alone. Evaluations inside of an epoch have records of their own. Values are read from the
    device in the order of the steps, if they come less than a second apart up to 0.25 s or 32 executions late, so
    that the loop does not wait. All are written when a checkpoint is saved, before an item (a text, an image, ...), at
    the end of a run, also of one that fails, and at the exit of the interpreter. In a program of several processes, the
    first one logs.

    A subclass implements `log_scalars`, and of the other methods those that its target has. Items of a kind for which
    there is no method are left out, and a warning says so once. `log_config`, `log_scalars` and `log_block` are called
    in a thread, the other methods in that of the loop while the thread has nothing to do for this logger, so no method
    needs a lock. If 256 calls wait for the thread, the loop waits for it. An exception of these methods
    is raised in the loop.

    Args:
        every: the interval.

    Attributes:
        run: the name of the running or last run in the target; None before the first one.

    Raises:
        TypeError: if `every` is not an `Every`.

    Example:
        >>> class Print(Logger):
        ...     def log_scalars(self, record):
        ...         print(record.kind, record.step, dict(record.values))
        >>> logger = Print()
        >>> logger.meet([logger])
        >>> logger.on_train_begin(Event(None, "train", step=0, epoch=0))
        >>> logger.on_epoch_begin(Event(None, "train", step=0, epoch=0))
        >>> logger.on_epoch_end(Event(None, "train", step=10, epoch=0, logs={"loss": 0.5}))
        >>> logger.on_train_end(Event(None, "train", step=10, epoch=0))
        epoch 10 {'loss': 0.5}
    """

    reads_logs = True
    writes_files = True
    batch_hooks_read = "logs"
    only_logs = True
    first_process_only = True

    def __init__(self, every: Every = OFTEN):
        super().__init__(every)
        self.step_values = () if every.unit == "epochs" else ("logs",)
        self.run: str | None = None
        self._at = Position(0, 0)  # where the last run ended
        self._evaluated = -1
        self._ended: int | None = 0
        self._resumes: Position | None = None
        self._event: Event | None = None  # of the beginning of the running fit
        self._running = False  # within fit
        self._begun = False  # within fit, and it is known whether the run resumes
        self._is_open = False
        self._early: list[Item] = []  # received before that
        self._lacking: set[str] = set()
        self._checkpoints: set[tuple[int, str, Any]] = set()  # those of the last step that has some
        self._gatherer = Gatherer()
        self._steps: StepRecords | None = None  # of the running fit
        self._channel = Channel()
        self._disk_error: OSError | None = None  # of this run

    # what a subclass implements

    def open(self, run: str | None) -> str:
        """Opens the target before the first step, or before the first item; returns the name of the run.

        Args:
            run: the run to continue: the last one of this logger, if the trainer trains on, or that of the checkpoint
                from which the trainer resumes; None to begin a new one.
        """
        return "" if run is None else run

    def rewind(self, position: Position) -> None:
        """Removes what was logged after a checkpoint, or remembers not to log it again; called after `open`.

        Args:
            position: that of the checkpoint.
        """

    @abc.abstractmethod
    def log_scalars(self, record: Record) -> None:
        """Writes the values of a step or an epoch."""

    def log_block(self, records: Sequence[Record]) -> None:
        """Writes the values of several steps; by default one after another."""
        for record in records:
            self.log_scalars(record)

    def log_config(self, config: Mapping[str, Any]) -> None:
        """Writes the configuration of a new run: nested dicts with strings, numbers, booleans, None and lists.

        Args:
            config: the configuration. Loggers of a run share it, so do not change it.
        """

    def log_text(self, item: Item) -> None:
        """Writes a text; for all items, see `Item` for the value."""
        self._lacks("texts")

    def log_image(self, item: Item) -> None:
        """Writes an image."""
        self._lacks("images")

    def log_figure(self, item: Item) -> None:
        """Writes a Matplotlib figure; by default as an image."""
        if type(self).log_image is Logger.log_image:
            self._lacks("figures")
        else:
            self.log_image(dataclasses.replace(item, kind="image", value=drawn(item.value)))

    def log_histogram(self, item: Item) -> None:
        """Writes the histogram of values."""
        self._lacks("histograms")

    def log_artifact(self, item: Item) -> None:
        """Copies or uploads a file or a directory."""
        self._lacks("files")

    def log_checkpoint(self, item: Item) -> None:
        """Writes the place of a checkpoint; by default, it does nothing."""

    def flush(self) -> None:
        """Writes what is buffered, before a checkpoint is saved."""

    def finish(self, ended: str) -> None:
        """Closes the target.

        Args:
            ended: how the run ended: `"finished"`, `"interrupted"` or `"failed"`.
        """

    # hooks

    def meet(self, callbacks: Sequence[Callback]) -> None:
        """Receives items from here on. The loggers of a run share a gatherer."""
        self._running, self._begun, self._early = True, False, []
        first = next((callback for callback in callbacks if isinstance(callback, Logger)), self)
        self._gatherer = first._gatherer if first is not self and self in callbacks else Gatherer()
        self._steps = None

    def on_train_begin(self, event: Event) -> None:
        """Finds out if the trainer trains on, and then continues its run."""
        super().on_train_begin(event)
        self._gatherer.clear()
        self._disk_error = None
        if self._is_open:  # the last run never ended
            self._close("failed")
        if not 0 < self._at.step <= event.step:
            self.run = None
        self._event, self._is_open, self._resumes, self._checkpoints = event, False, None, set()

    def on_epoch_begin(self, event: Event) -> None:
        """Opens the target, so that an error is raised before the first step."""
        super().on_epoch_begin(event)
        self._receive_early()

    @by_interval
    def selected_batches(self, step: int, examples: int, sizes: Sequence[int]) -> Iterable[int]:
        """The last batch of an execution in which the interval ends: its event has the steps before it, too."""
        return range(len(sizes) - 1, len(sizes)) if super().selected_batches(step, examples, sizes) else ()

    def on_train_batch_end(self, event: Event) -> None:
        """Logs the values of the steps since the last event at which the interval has ended."""
        steps = self._steps
        if steps is None or steps.every is not self.every:
            steps = self._steps = self._gatherer.steps(self.every, bool(self.step_values), type(self).offsets)
        make = steps.of(event, self)
        if make is not None:
            self._gather(event, steps, make)

    def on_epoch_end(self, event: Event) -> None:
        """Logs the values of the epoch."""
        self._receive_early()  # a resumed run first ends the hook in which its checkpoint was saved
        self._ended = event.epoch + 1
        if self.every.unit != "epochs" or self.due(event):
            self.record_epoch(event)

    def record_epoch(self, event: Event) -> None:
        """Logs the values of an epoch at whose end the interval ends, or with an interval of another unit."""
        self._gather(event, "epoch", lambda: [block_of(event, "epoch", event.logs)])

    def on_evaluation_end(self, event: Event) -> None:
        """Logs the values of evaluations inside of an epoch."""
        self._receive_early()
        self._evaluated = event.step
        key = ("evaluation", type(self).evaluation_values)
        self._gather(event, key, lambda: [block_of(event, "evaluation", self.evaluation_values(event))])

    def evaluation_values(self, event: Event) -> Mapping[str, float]:
        """Returns the values of the record of evaluations inside of an epoch."""
        return event.evaluation_logs

    def receive(self, item: Item) -> None:
        """Logs an item; outside of `fit`, it is left out."""
        if not self._running:
            self._lacks("items outside of fit")
            return
        if not self._begun:
            self._early.append(item)
            return
        self.log_item(item)

    def log_item(self, item: Item) -> None:
        """Writes an item after all records before it.

        Args:
            item: the item.
        """
        self._open()
        # W&B drops records of steps before its last one. The item has its value, so the device is hardly behind.
        self._write_all()
        if item.kind == "checkpoint":
            one = (item.step, item.name, item.value)
            if one in self._checkpoints:  # the end of a run saves the end of its last epoch anew
                return
            self._checkpoints = {one} | {other for other in self._checkpoints if other[0] == item.step}
        if self._is_open and self._is_new(item.kind, item.step, item.epoch, item.name):
            with self._naming_file():
                getattr(self, f"log_{item.kind}")(item)

    def before_end(self, event: Event) -> None:
        """Hands over what is deferred, before others wait for the device."""
        if event.ended != "failed":
            self._gatherer.read_all()

    def on_train_end(self, event: Event) -> None:
        """Writes all that is deferred, and closes the target."""
        self._event, self._steps, self._running = None, None, False
        self._at = self._position(event)
        raised = self._disk_error is not None and self._channel.error is None
        # The error that ends the run says it; the rest of the log meets the same disk.
        with contextlib.suppress(OSError) if raised else contextlib.nullcontext():
            finish(event, self._gatherer.flush, lambda: self._close(event.ended or "finished"), warn=not raised)

    def state_dict(self) -> dict[str, Any]:
        """Writes all that is deferred; returns the name and the position of the run."""
        if self._event is not None:
            if self._begun:
                self._open()
            self._write_all()
            self._at = self._position(self._event)
        if self._is_open:
            self.flush()
        return {"run": self.run, **dataclasses.asdict(self._at)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continues the run of a checkpoint; called when `fit` resumes, and when it goes back to a checkpoint."""
        self._write_all()
        # Before 0.9.0, the states of CSV and TensorBoard were others: such a run begins a log of its own.
        counts = state.get("evaluated", -1), state.get("ended")
        self._resumes = Position(state["step"], state.get("epoch", 0), *counts)
        self._evaluated, self._ended = counts
        self._checkpoints = set()
        if self._is_open:
            self.rewind(self._resumes)
        else:
            self.run = state.get("run")

    def _write_all(self) -> None:
        self._gatherer.flush()
        self._channel.drain()

    def _receive_early(self) -> None:
        if self._begun:
            return
        self._begun = True
        self._open()
        early, self._early = self._early, []
        for item in early:
            self.receive(item)

    def _open(self) -> None:
        if self._is_open or self._event is None or not is_first():
            return
        before = self.run
        self.run = self.open(before)
        self._is_open = True
        if before is None or self.run != before:
            configuration = getattr(self._event.trainer, "configuration", dict)
            self._channel.put(self._log_configs, self._event.shared("configuration", configuration))
        elif self._resumes is not None:
            self.rewind(self._resumes)

    def _close(self, ended: str) -> None:
        try:
            self._channel.drain()
        finally:
            if self._is_open:
                self._is_open = False
                self.finish(ended)

    def _gather(self, event: Event, key: Hashable, make: Callable[[], Sequence[Block]]) -> None:
        if self._channel.error is not None:
            self._channel.drain()
        if self.first_process_only or is_first():
            self._gatherer.add(event, self._entry, key, make)

    def _entry(self, blocks: Sequence[Block]) -> Entry | None:
        self._open()
        new = [block for block in map(self._new_in, blocks) if block.steps] if self._is_open else []
        return (self._channel, self._log_blocks, new) if new else None

    def _log_configs(self, configs: list[Mapping[str, Any]]) -> None:
        with self._naming_file():
            for config in configs:
                self.log_config(config)

    def _log_blocks(self, gathered: list[Sequence[Block]]) -> None:
        with self._naming_file():
            for blocks in gathered:
                self.log_block(Records(blocks))

    @contextlib.contextmanager
    def _naming_file(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if name_file(error, getattr(self, "path", None), type(self).__name__):
                self._disk_error = error
            raise

    def _new_in(self, block: Block) -> Block:
        """Leaves out the records that are not `_is_new`; for subclasses."""
        return block

    def _is_new(self, kind: str, step: int, epoch: int, name: str = "") -> bool:
        """False for what was logged before the run was resumed, and is not removed; for subclasses."""
        return True

    def _position(self, event: Event) -> Position:
        trainer = event.trainer
        step, epoch = (event.step, event.epoch + 1) if trainer is None else (trainer.step, trainer.epoch)
        return Position(step, epoch, self._evaluated, self._ended)

    def _lacks(self, what: str) -> None:
        if what not in self._lacking:
            self._lacking.add(what)
            warnings.warn(
                f"the logger {type(self).__name__} does not log {what}: they are left out.",
                stacklevel=stacklevel_of_caller(),
            )

    def __getstate__(self) -> dict[str, Any]:
        """Returns the attributes to pickle, without those of a run."""
        return {**self.__dict__, "_event": None, "_steps": None, "_is_open": False, "_gatherer": Gatherer()}
