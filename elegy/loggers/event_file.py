"""The files of TensorBoard, by tensorboardX."""

from __future__ import annotations

import contextlib
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

import numpy as np
from crc32c import crc32c

from elegy.lazy import require

_FILES = itertools.count(1)
_FOR = "the TensorBoard callback"
_PREFIX = "elegy-memory"

_MANY = 8
"""Events of so many steps are encoded together."""


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
        with self._named():
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
        with self._named():
            self._file.close()

    @contextlib.contextmanager
    def _named(self) -> Iterator[None]:
        """Names the file in errors of writing, which Python does not: the logger knows only the directory."""
        try:
            yield
        except OSError as error:
            error.filename = error.filename or self._file.name
            raise


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


def scalars(tags: Sequence[str], steps: Sequence[int], columns: Sequence[Sequence[float]]) -> bytes:
    """Returns encoded events, one for the values of a step.

    Args:
        tags: the names.
        steps: the steps, ascending.
        columns: for each name, its values; those that are too large for a float32 become infinite.
    """
    now, at, pieces = time.time(), 0, []
    sizes = [_size(steps[0])] * len(steps) if _size(steps[0]) == _size(steps[-1]) else map(_size, steps)
    for size, group in itertools.groupby(sizes):
        count = len(list(group))
        encode = _alike if size and count >= _MANY else _events
        part = slice(at, at + count)
        pieces.append(encode(now, tags, steps[part], [column[part] for column in columns]))
        at += count
    return b"".join(pieces)


def _events(now: float, tags: Sequence[str], steps: Sequence[int], columns: Sequence[Sequence[float]]) -> bytes:
    event = _event()(wall_time=now)
    entries = [event.summary.value.add(tag=tag) for tag in tags]
    buffer, write = _buffer()
    for k, step in enumerate(steps):
        event.step = step
        for entry, column in zip(entries, columns, strict=True):
            entry.simple_value = column[k]
        write(event.SerializeToString())
    return buffer.getvalue()


def _alike(now: float, tags: Sequence[str], steps: Sequence[int], columns: Sequence[Sequence[float]]) -> bytes:
    """As `_events`, of steps that are encoded in the same number of bytes, in a fifth of the time.

    Their records differ in the bytes of the step, of the values and of the checksum, so tensorboardX makes one record,
    and these bytes are set in its copies.
    """
    count, size = len(steps), _size(steps[0])
    places, length = _places(tuple(tags), size)
    one = [[0.0]] * len(tags)
    records = np.tile(np.frombuffer(_events(now, tags, steps[:1], one), np.uint8), (count, 1))
    assert records.shape[1] == length
    shifts = 7 * np.arange(size)
    digits = (np.asarray(steps, np.int64)[:, None] >> shifts) & 0x7F
    digits[:, :-1] |= 0x80  # more digits follow
    with np.errstate(over="ignore"):
        values = np.array(columns, np.float64).reshape(len(tags), count).T.astype("<f4", order="C")
    records[:, places] = np.concatenate([digits.astype(np.uint8), values.view(np.uint8)], axis=1)
    messages, width = records[:, 12:-4].tobytes(), length - 16
    sums = [crc32c(messages[k : k + width]) for k in range(0, count * width, width)]
    found = np.array(sums, np.uint32)
    masked = ((found >> np.uint32(15)) | (found << np.uint32(17))) + np.uint32(0xA282EAD8)
    records[:, -4:] = masked.astype("<u4")[:, None].view(np.uint8)
    return records.tobytes()


def _size(step: int) -> int:
    """The bytes of a step in an event, a digit of seven bits in each; a step 0 is left out."""
    return (step.bit_length() + 6) // 7


@functools.lru_cache(256)
def _places(tags: tuple[str, ...], size: int) -> tuple[np.ndarray, int]:
    """Returns the places in a record of the bytes of the step and of the values, and the length of a record.

    Args:
        tags: the names.
        size: the bytes of the step.
    """
    step = sum(1 << 7 * k for k in range(size))
    # In the second record, each of these bytes is another one.
    one, other = (
        np.frombuffer(_events(1.0, tags, [step * k], [[struct.unpack("<f", bytes([k] * 4))[0]]] * len(tags)), np.uint8)
        for k in (1, 2)
    )
    return np.flatnonzero(one[12:-4] != other[12:-4]) + 12, len(one)


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
