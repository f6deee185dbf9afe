"""The base class of loggers that send to a service."""

from __future__ import annotations

import abc
import dataclasses
import json
import logging
import os
import uuid
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from elegy.callbacks.event import Event
from elegy.callbacks.items import Item
from elegy.callers import stacklevel_of_caller
from elegy.lazy import require
from elegy.loggers.block import Block, blocks_of
from elegy.loggers.json_text import json_lines
from elegy.loggers.logger import OFTEN, Logger
from elegy.loggers.places import local
from elegy.loggers.record import Position, Record
from elegy.loggers.sender import Sender
from elegy.loggers.values import drawn
from elegy.types import Every

logger = logging.getLogger("elegy")

_RECORDS = ("step", "epoch", "evaluation")


class ServiceLogger(Logger):
    """Sends to a service in a thread of its own, so that training goes on if the service is slow or out of reach.

    Every record is first written to a file, `<directory>/<service>-<run>.jsonl`. If the service cannot be reached, a
    warning says so, and the records are sent when it can be reached again, at the latest by a run that resumes. Texts,
    images, figures, histograms and files are not kept in the meantime. A record that the service refuses is left out,
    with a warning, and stays in the file. A resumed run continues its run in the service, and sends nothing twice; what
    an interrupted run sent after its last checkpoint stays.

    Values of steps have the names of the logs; values of epochs begin with `epoch/`, except those of evaluations
    (`val_loss`).

    Args:
        every: the interval; see `Logger`.
        directory: where the file of records is.

    Attributes:
        path: the file of records of the running or last run.
        patience: seconds between attempts to reach the service, and to wait for it at the end of a run.
    """

    library: str
    patience = 60.0

    def __init__(self, every: Every = OFTEN, directory: str | os.PathLike[str] = "logs"):
        super().__init__(every)
        self.directory = local(directory)
        self.path = self.directory
        self._file: IO[bytes] | None = None
        self._sender: Sender | None = None
        self._known: set[tuple[str, str, int, int]] = set()  # what was logged before the run was resumed
        self._sent = 0  # records that the service has, or has refused
        self._queued = 0  # records
        self._refused = 0  # of which a warning has said so
        self._told = False

    # what a subclass implements; these methods are called in the thread

    @abc.abstractmethod
    def connect(self, run: str, config: Mapping[str, Any] | None) -> None:
        """Connects with the service.

        Args:
            run: the name of the run, eight letters and digits.
            config: the configuration of a new run; None to continue one.
        """

    @abc.abstractmethod
    def send(self, values: Mapping[str, float], record: Record) -> None:
        """Sends a record.

        Args:
            values: the values under the names that they have in the service.
            record: the record.
        """

    @abc.abstractmethod
    def send_item(self, item: Item) -> None:
        """Sends an item; figures are drawn."""

    def disconnect(self, ended: str) -> None:
        """Ends the run in the service; see `Logger.finish`."""

    def refuses(self, error: Exception) -> bool:
        """True if the service has refused what it received, and always will; False if it could not be reached.

        A record with another error is tried again, and left out if records after it are accepted.

        Args:
            error: an exception of `send`.
        """
        return isinstance(error, (TypeError, ValueError))

    # what the base class asks for

    def on_train_begin(self, event: Event) -> None:
        """Imports the library of the service."""
        super().on_train_begin(event)
        require(self.library, f"eg.loggers.{type(self).__name__}")

    def open(self, run: str | None) -> str:
        """Opens the file of records, and sends what an earlier run has not."""
        new, run = run is None, uuid.uuid4().hex[:8] if run is None else run
        self.directory.mkdir(parents=True, exist_ok=True)
        self.path = self.directory / f"{type(self).__name__.lower()}-{run}.jsonl"
        entries = self._entries()
        self._known = {_key(entry) for entry in entries}
        counted = self._count_file.read_text(encoding="utf-8") if self._count_file.exists() else "0"
        self._sent = self._queued = int(counted or 0)
        self._told = False
        self._file = self.path.open("ab")
        self._sender, self._refused = Sender(f"elegy-{self.library}", self.patience, self.refuses), 0
        unsent = [entry for entry in entries if entry["type"] in _RECORDS][self._sent :]
        if not new:
            self._begin(run, None, unsent)
        return run

    def _begin(self, run: str, config: Mapping[str, Any] | None, unsent: list[dict[str, Any]]) -> None:
        assert self._sender is not None
        self._sender.put(lambda: self.connect(run, config), first=True)
        for entry in unsent:
            values = {name: float(value) for name, value in entry.pop("values").items()}
            self._put_record(Record(kind=entry.pop("type"), values=values, **entry))

    def rewind(self, position: Position) -> None:
        """Nothing can be removed from the service, so what is there is not sent again."""
        self._known = {_key(entry) for entry in self._entries()}

    def log_config(self, config: Mapping[str, Any]) -> None:
        """Begins the run with its configuration."""
        assert self.run is not None
        self._begin(self.run, config, [])

    def log_scalars(self, record: Record) -> None:
        """Writes a record to the file, and sends it."""
        self.log_block([record])

    def log_block(self, records: Sequence[Record]) -> None:
        """Writes records to the file, and sends them."""
        self._write(map(json_lines, blocks_of(records)))
        for record in records:
            self._put_record(record)
        self._tell()

    def log_text(self, item: Item) -> None:
        """Sends an item."""
        self._tell()
        entry = {"type": item.kind, "name": item.name, "step": item.step, "epoch": item.epoch}
        if item.kind == "checkpoint":
            entry["path"] = item.value
        self._write([json.dumps(entry).encode(), b"\n"])
        if self._sender is not None and self._sender.error is None:
            if item.kind == "figure":  # drawn now, because the user may close it
                item = dataclasses.replace(item, kind="image", value=drawn(item.value))
            self._sender.put(lambda: self._try_item(item))

    log_image = log_figure = log_histogram = log_artifact = log_checkpoint = log_text

    def finish(self, ended: str) -> None:
        """Sends what is left, waits for it, and ends the run in the service."""
        sender, file, self._sender, self._file = self._sender, self._file, None, None
        if sender is None or file is None:
            return
        sender.put(lambda: self.disconnect(ended))
        left = sender.close(self.patience)
        file.close()
        self._tell_if_refused(sender)
        if left:
            unsent = sum(entry["type"] in _RECORDS for entry in self._entries()) - self._sent
            what = f"{unsent} records were not sent" if unsent > 0 else "the run was not ended there"
            warnings.warn(
                f"{type(self).__name__} cannot reach its service ({_line(sender.error)}): {what}. All records are in "
                f"{self.path}; a run that resumes from a checkpoint sends the rest.",
                stacklevel=stacklevel_of_caller(),
            )

    # the file and the thread

    @property
    def _count_file(self) -> Path:
        return self.path.with_suffix(".sent")

    def _entries(self) -> list[dict[str, Any]]:
        """The entries of the file; removes a line that a crash has cut."""
        if not self.path.exists():
            return []
        lines = self.path.read_text(encoding="utf-8").splitlines(keepends=True)
        if lines and not lines[-1].endswith("\n"):
            lines.pop()
            self.path.write_text("".join(lines), encoding="utf-8")
        return [json.loads(line) for line in lines]

    def _write(self, lines: Iterable[bytes]) -> None:
        assert self._file is not None
        self._file.writelines(lines)
        self._file.flush()

    def _put_record(self, record: Record) -> None:
        assert self._sender is not None
        place, self._queued = self._queued, self._queued + 1
        self._sender.put(lambda: self._send_counted(record, place))

    def _send_counted(self, record: Record, place: int) -> None:
        self.send({_name(record, name): value for name, value in record.values.items()}, record)
        self._sent = place + 1  # also those before it that were refused
        temporary = self._count_file.with_suffix(".tmp")  # a kill must not leave an empty file: all would be sent again
        temporary.write_text(str(self._sent), encoding="utf-8")
        temporary.replace(self._count_file)

    def _try_item(self, item: Item) -> None:
        try:
            self.send_item(item)
        except Exception as error:
            logger.warning("%s: %s %r was not sent: %s", type(self).__name__, item.kind, item.name, _line(error))

    def _is_new(self, kind: str, step: int, epoch: int, name: str = "") -> bool:
        return (kind, name, step, epoch) not in self._known

    def _new_in(self, block: Block) -> Block:
        return block.where([self._is_new(block.kind, step, block.epoch) for step in block.steps])

    def _tell(self) -> None:
        if self._sender is None:
            return
        self._tell_if_refused(self._sender)
        error = self._sender.error
        if error is not None and not self._told:
            self._told = True
            warnings.warn(
                f"{type(self).__name__} cannot reach its service ({_line(error)}): training goes on, and the records "
                f"are kept in {self.path} until it can.",
                stacklevel=stacklevel_of_caller(),
            )

    def _tell_if_refused(self, sender: Sender) -> None:
        new, self._refused = len(sender.refused) - self._refused, len(sender.refused)
        if new:
            warnings.warn(
                f"{type(self).__name__}: the service refuses {new} record{'s' * (new > 1)} "
                f"({_line(sender.refused[-1])}), which stay in {self.path}.",
                stacklevel=stacklevel_of_caller(),
            )

    def __getstate__(self) -> dict[str, Any]:
        """Returns the attributes to pickle, without those of a run."""
        return {**super().__getstate__(), "_file": None, "_sender": None}


def _key(entry: Mapping[str, Any]) -> tuple[str, str, int, int]:
    return entry["type"], entry.get("name", ""), entry["step"], entry["epoch"]


def _name(record: Record, name: str) -> str:
    return f"epoch/{name}" if record.kind == "epoch" and not name.startswith("val_") else name


def _line(error: Exception | None) -> str:
    if error is None:
        return "it is slow"
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
