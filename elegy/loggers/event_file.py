"""The files of TensorBoard, by tensorboardX."""

from __future__ import annotations

import itertools
import math
import os
import struct
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from elegy.lazy import require

_FILES = itertools.count(1)
_FOR = "the TensorBoard callback"


class EventFile:
    """An event file of TensorBoard that is written at once; tensorboardX's own writer has a thread and a queue.

    Args:
        directory: where the file is made.

    Raises:
        ImportError: if tensorboardX is not installed.
    """

    def __init__(self, directory: Path):
        directory.mkdir(parents=True, exist_ok=True)
        self._proto = require("tensorboardX.proto.event_pb2", _FOR)
        self._summary = require("tensorboardX.proto.summary_pb2", _FOR).Summary
        # Names of files that begin in the same second, as of a run that resumes at once, must differ.
        suffix = f".{os.getpid()}.{next(_FILES):04d}"
        self._writer = require("tensorboardX.event_file_writer", _FOR).EventsWriter(str(directory / "events"), suffix)

    def scalars(self, rows: Sequence[tuple[int, dict[str, float]]]) -> None:
        """Writes numbers, one event for the values of a step.

        Args:
            rows: steps and their values by tag.
        """
        value = self._summary.Value
        self.summaries(
            [
                (step, self._summary(value=[value(tag=tag, simple_value=_float32(v)) for tag, v in values.items()]))
                for step, values in rows
            ]
        )

    def summaries(self, rows: Sequence[tuple[int, Any]]) -> None:
        """Writes messages `Summary` of steps."""
        now = time.time()
        for step, summary in rows:
            self._writer.write_event(self._proto.Event(wall_time=now, step=step, summary=summary))
        self._writer.flush()

    def purge(self, step: int) -> None:
        """Makes TensorBoard hide earlier records of the directory from a step on."""
        start = self._proto.SessionLog(status=self._proto.SessionLog.START)
        self._writer.write_event(self._proto.Event(wall_time=time.time(), step=step, session_log=start))
        self._writer.flush()

    def close(self) -> None:
        """Closes the file."""
        self._writer.close()


def _float32(value: float) -> float:
    """The number, or an infinity where it is too large for a float32."""
    return value if abs(value) < 3.4e38 or value != value else math.copysign(math.inf, value)


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
