"""The files of TensorBoard: records of events with checksums."""

from __future__ import annotations

import itertools
import math
import os
import socket
import struct
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from elegy.loggers.crc32c import masked_checksums

_FILES = itertools.count(1)
_HEADERS: dict[int, bytes] = {}

_SUMMARY, _SESSION = 0x2A, 0x3A  # the fields of an event, with their type
_START = b"\x08\x01"  # a session log with the status START

Value = tuple[bytes, float]
"""The beginning of an encoded value, from `scalar_tag`, and its number."""


class EventFile:
    """An event file of TensorBoard that is written at once, without a thread.

    Args:
        directory: where the file is made.
    """

    def __init__(self, directory: Path):
        directory.mkdir(parents=True, exist_ok=True)
        # Names of files that begin in the same second, as of a run that resumes at once, must differ.
        name = f"{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}.{next(_FILES):04d}"
        self._file = (directory / f"events.out.tfevents.{name}").open("xb")
        self._write([b"\x09" + struct.pack("<d", time.time()) + b"\x1a\x0dbrain.Event:2"])

    def scalars(self, rows: Sequence[tuple[int, Sequence[Value]]]) -> None:
        """Writes numbers, one event for the values of a step.

        Args:
            rows: steps and their values.
        """
        pack = struct.Struct("<f").pack
        self.summaries(
            [(step, b"".join([tag + pack(_float32(value)) for tag, value in values])) for step, values in rows]
        )

    def summaries(self, rows: Sequence[tuple[int, bytes]]) -> None:
        """Writes encoded messages `Summary` of steps."""
        begin = b"\x09" + struct.pack("<d", time.time())
        self._write([b"%b\x10%b\x2a%b%b" % (begin, varint(step), varint(len(data)), data) for step, data in rows])

    def purge(self, step: int) -> None:
        """Makes TensorBoard hide earlier records of the directory from a step on."""
        begin = b"\x09" + struct.pack("<d", time.time())
        self._write([b"%b\x10%b\x3a\x02%b" % (begin, varint(step), _START)])

    def close(self) -> None:
        """Closes the file."""
        self._file.close()

    def _write(self, events: Sequence[bytes]) -> None:
        parts: list[bytes] = []
        for event, checksum in zip(events, masked_checksums(events), strict=True):
            parts += [_header(len(event)), event, checksum]
        self._file.write(b"".join(parts))
        self._file.flush()


def _float32(value: float) -> float:
    """The number, or an infinity where it is too large for a float32."""
    return value if abs(value) < 3.4e38 or value != value else math.copysign(math.inf, value)


def scalar_tag(name: str) -> bytes:
    """Returns the beginning of an encoded number, without the number.

    Args:
        name: its tag.
    """
    tag = name.encode()
    inner = b"\x0a" + varint(len(tag)) + tag + b"\x15"
    return b"\x0a" + varint(len(inner) + 4) + inner


def varint(number: int) -> bytes:
    """Returns a number as protocol buffers encode it.

    Args:
        number: at least 0.

    Example:
        >>> varint(300)
        b'\\xac\\x02'
    """
    parts = []
    while number > 127:
        parts.append(number & 127 | 128)
        number >>= 7
    return bytes([*parts, number])


def shown_at(directory: Path, step: int) -> Iterator[bytes]:
    """Returns the messages `Summary` of a step that TensorBoard shows.

    Args:
        directory: that of the event files.
        step: the step.
    """
    found: list[bytes] = []
    for path in sorted(directory.glob("events.out.tfevents.*")):
        for event in _events(path.read_bytes()):
            at, kind, body = _parts(event)
            if kind == _SESSION and at <= step:
                found = []
            elif kind == _SUMMARY and at == step:
                found.append(body)
    yield from found


def _events(data: bytes) -> Iterator[bytes]:
    """The events of a file, without one that a crash has cut."""
    at = 0
    while at + 12 <= len(data):
        (length,) = struct.unpack_from("<Q", data, at)
        if at + 16 + length > len(data):
            return
        yield data[at + 12 : at + 12 + length]
        at += 16 + length


def _parts(event: bytes) -> tuple[int, int, bytes]:
    """The step, the kind and the body of an event that an `EventFile` has written; kind 0 for others."""
    if len(event) < 11 or event[9] != 0x10:
        return 0, 0, b""
    step, at = _read_varint(event, 10)
    kind = event[at]
    _, at = _read_varint(event, at + 1)
    return step, kind, event[at:]


def _read_varint(data: bytes, at: int) -> tuple[int, int]:
    number = shift = 0
    while True:
        number |= (data[at] & 127) << shift
        shift += 7
        at += 1
        if data[at - 1] < 128:
            return number, at


def _header(length: int) -> bytes:
    """The length of an event and its checksum."""
    if length not in _HEADERS:
        data = struct.pack("<Q", length)
        _HEADERS[length] = data + masked_checksums([data])[0]
    return _HEADERS[length]
