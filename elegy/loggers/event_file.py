"""The files of TensorBoard, by tensorboardX."""

from __future__ import annotations

import functools
import io
import itertools
import os
import socket
import struct
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from elegy.lazy import require

_FILES = itertools.count(1)
_FOR = "the TensorBoard callback"
_PREFIX = "elegy-memory"


class EventFile:
    """An event file of TensorBoard that is written at once; tensorboardX's own writer has a thread and a queue.

    Args:
        directory: where the file is made.

    Raises:
        ImportError: if tensorboardX is not installed.
    """

    def __init__(self, directory: Path):
        directory.mkdir(parents=True, exist_ok=True)
        now = time.time()
        # Names of files that begin in the same second, as of a run that resumes at once, must differ.
        end = f"{int(now)}.{socket.gethostname()}.{os.getpid()}.{next(_FILES):04d}"
        begin = _event()(wall_time=now, file_version="brain.Event:2")
        self._file = (directory / f"events.out.tfevents.{end}").open("wb")
        self.write([encoded([begin])])

    def write(self, records: Iterable[bytes]) -> None:
        """Writes encoded events. They survive a kill of the process; the disk is not waited for."""
        self._file.writelines(records)
        self._file.flush()

    def summaries(self, step: int, messages: Iterable[Any]) -> None:
        """Writes messages `Summary` of a step."""
        now = time.time()
        self.write([encoded([_event()(wall_time=now, step=step, summary=message) for message in messages])])

    def purge(self, step: int) -> None:
        """Makes TensorBoard hide earlier records of the directory from a step on."""
        event = _event()
        start = require("tensorboardX.proto.event_pb2", _FOR).SessionLog(status="START")
        self.write([encoded([event(wall_time=time.time(), step=step, session_log=start)])])

    def close(self) -> None:
        """Closes the file."""
        self._file.close()


@functools.cache
def _event() -> Any:
    return require("tensorboardX.proto.event_pb2", _FOR).Event


class _Buffers:
    """Buffers to which tensorboardX writes as to files; on real files, each of its flushes waits for the disk."""

    def __init__(self) -> None:
        self.made: dict[str, io.BytesIO] = {}

    def open(self, path: str) -> io.BytesIO:
        """Called by `RecordWriter`."""
        return self.made.pop(path)


@functools.cache
def _buffers() -> _Buffers:
    found = _Buffers()
    require("tensorboardX.record_writer", _FOR).register_writer_factory(_PREFIX, found)
    return found


def _buffer() -> tuple[io.BytesIO, Callable[[bytes], None]]:
    """A buffer, and a function that writes a serialized event to it as the record of a file."""
    buffer, path = io.BytesIO(), f"{_PREFIX}:{next(_FILES)}"
    _buffers().made[path] = buffer
    return buffer, require("tensorboardX.record_writer", _FOR).RecordWriter(path).write


def encoded(events: Iterable[Any]) -> bytes:
    """Returns messages `Event` as the records of a file."""
    buffer, write = _buffer()
    for event in events:
        write(event.SerializeToString())
    return buffer.getvalue()


def scalars(tags: Sequence[str], steps: Sequence[int], rows: Iterable[Sequence[float]]) -> bytes:
    """Returns encoded events, one for the values of a step.

    Args:
        tags: the names.
        steps: the steps.
        rows: for each step, the values of the tags; those that are too large for a float32 become infinite.
    """
    event = _event()(wall_time=time.time())
    entries = [event.summary.value.add(tag=tag) for tag in tags]
    buffer, write = _buffer()
    for step, row in zip(steps, rows, strict=True):
        event.step = step
        for entry, value in zip(entries, row, strict=True):
            entry.simple_value = value
        write(event.SerializeToString())
    return buffer.getvalue()


def tags_at(directory: Path, step: int) -> set[str]:
    """Returns the tags of a step that TensorBoard shows.

    Args:
        directory: that of the event files.
        step: the step.
    """
    parse = require("tensorboardX.proto.event_pb2", _FOR).Event.FromString
    found: set[str] = set()
    for path in sorted(directory.glob("events.out.tfevents.*")):
        for event in map(parse, _records(path.read_bytes())):
            if event.HasField("session_log") and event.step <= step:
                found = set()
            elif event.step == step:
                found |= {value.tag for value in event.summary.value}
    return found


def _records(data: bytes) -> Iterator[bytes]:
    """The records of a file (a length, its checksum, the record, its checksum), without one that a crash has cut."""
    at = 0
    while at + 12 <= len(data):
        (length,) = struct.unpack_from("<Q", data, at)
        if at + 16 + length > len(data):
            return
        yield data[at + 12 : at + 12 + length]
        at += 16 + length
