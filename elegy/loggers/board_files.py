"""The event files of one run for TensorBoard."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from elegy.loggers.board import part_of
from elegy.loggers.event_file import EventFile, tags_at
from elegy.loggers.record import Record


class BoardFiles:
    """An event file for each part of a run: `train`, `validation`.

    Args:
        path: the directory of the run.
    """

    def __init__(self, path: Path):
        self._path = path
        self._files: dict[str, EventFile] = {}
        self._tags: dict[tuple[bool, str], tuple[str, str]] = {}
        self._resumed: int | None = None  # the step of the checkpoint from which the run resumes
        self._known: set[tuple[str, str]] = set()  # parts and tags that have a record at that step

    def scalars(self, records: Sequence[Record]) -> None:
        """Writes the values of records: as `batch_loss` those of steps, others as `epoch_loss`."""
        rows: dict[str, list[tuple[int, dict[str, float]]]] = {}
        for record in records:
            parts: dict[str, dict[str, float]] = {}
            for name, value in record.values.items():
                part, tag = self._tags.get((record.kind == "step", name)) or self._tag(record, name)
                if record.step != self._resumed or (part, tag) not in self._known:
                    parts.setdefault(part, {})[tag] = value
            for part, values in parts.items():
                rows.setdefault(part, []).append((record.step, values))
        for part, found in rows.items():
            self.file(part).scalars(found)

    def _tag(self, record: Record, name: str) -> tuple[str, str]:
        part, short = part_of(name)
        found = self._tags[record.kind == "step", name] = (
            part,
            f"{'batch' if record.kind == 'step' else 'epoch'}_{short}",
        )
        return found

    def add(self, part: str, step: int, message: Any) -> None:
        """Writes a message `Summary`.

        Args:
            part: the part of the run.
            step: the step.
            message: the message.
        """
        if step != self._resumed or not {(part, value.tag) for value in message.value} & self._known:
            self.file(part).summaries([(step, message)])

    def rewind(self, step: int) -> None:
        """Hides the records after the step of a checkpoint, and leaves out those of that step that are there.

        TensorBoard hides records by their step alone, but of those of the checkpoint's own step, some are logged before
        it and some after it, by the run that resumes once more.
        """
        parts = [path.name for path in self._path.iterdir() if path.is_dir() and path.name in ("train", "validation")]
        self._resumed = step
        self._known = {(part, tag) for part in parts for tag in tags_at(self._path / part, step)}
        for part in parts:
            self.file(part).purge(step + 1)

    def file(self, part: str) -> EventFile:
        """Returns the open file of a part."""
        if part not in self._files:
            self._files[part] = EventFile(self._path / part)
        return self._files[part]

    def close(self) -> None:
        """Closes the files."""
        while self._files:
            self._files.popitem()[1].close()
