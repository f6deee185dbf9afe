"""The event files of one run for TensorBoard."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from elegy.loggers.block import Block
from elegy.loggers.board import part_of
from elegy.loggers.event_file import EventFile, scalars, tags_at

_NOTHING: frozenset[tuple[str, str]] = frozenset()


class BoardFiles:
    """An event file for each part of a run: `train`, `validation`.

    Args:
        path: the directory of the run.
    """

    def __init__(self, path: Path):
        self._path = path
        self._files: dict[str, EventFile] = {}
        self._last: set[tuple[str, int, bytes]] = set()  # the messages of the last call of `add`
        self._resumed: int | None = None  # the step of the checkpoint from which the run resumes
        self._known = _NOTHING  # parts and tags that have a record at that step

    def scalars(self, blocks: Sequence[Block]) -> None:
        """Writes the values of records: as `batch_loss` those of steps, others as `epoch_loss`."""
        found: dict[str, list[bytes]] = {}
        for block in blocks:
            at = [step == self._resumed for step in block.steps]
            pieces = [(block, _NOTHING)]
            if any(at):
                pieces = [(block.where(at), self._known), (block.where([not resumed for resumed in at]), _NOTHING)]
            for piece, known in pieces:
                for part, encoded in piece.shared(("events", known), functools.partial(_encoded, piece, known)):
                    found.setdefault(part, []).append(encoded)
        for part, events in found.items():
            self.file(part).write(events)

    def add(self, part: str, step: int, messages: Sequence[Any]) -> None:
        """Writes messages `Summary`, but none twice for a step: the place of a checkpoint that is saved again is known.

        Args:
            part: the part of the run.
            step: the step.
            messages: the messages.
        """
        if step == self._resumed:
            messages = [m for m in messages if not {(part, value.tag) for value in m.value} & self._known]
        new = [m for m in messages if (part, step, m.SerializeToString()) not in self._last]
        if new:
            self._last = {(part, step, m.SerializeToString()) for m in new}
            self.file(part).summaries(step, new)

    def rewind(self, step: int) -> None:
        """Hides the records after the step of a checkpoint, and leaves out those of that step that are there.

        TensorBoard hides records by their step alone, but of those of the checkpoint's own step, some are logged before
        it and some after it, by the run that resumes once more.
        """
        parts = [path.name for path in self._path.iterdir() if path.is_dir() and path.name in ("train", "validation")]
        self._resumed = step
        self._known = frozenset((part, tag) for part in parts for tag in tags_at(self._path / part, step))
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


def _encoded(block: Block, known: frozenset[tuple[str, str]]) -> list[tuple[str, bytes]]:
    """Returns the parts of a run that a block has values of, with their encoded events.

    Args:
        block: the block.
        known: parts and tags that are left out.
    """
    begin = "batch" if block.kind == "step" else "epoch"
    columns: dict[str, list[tuple[str, int]]] = {}
    for k, name in enumerate(block.names):
        part, short = part_of(name)
        if (part, tag := f"{begin}_{short}") not in known:
            columns.setdefault(part, []).append((tag, k))
    return [
        (part, scalars([tag for tag, _ in chosen], block.steps, [block.columns[k] for _, k in chosen]))
        for part, chosen in columns.items()
    ]
