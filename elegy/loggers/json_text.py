"""Records as lines of JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from elegy import strict_json
from elegy.loggers.record import Position, Record


def record_lines(records: Sequence[Record]) -> Iterator[str]:
    """Returns a line for each record, as `strict_json.dumps` writes it, in a fraction of the time.

    Args:
        records: the records.

    Example:
        >>> print(*record_lines([Record("step", 50, 0, 3200, 1.2, {"loss": 0.5})]), end="")
        {"type": "step", "step": 50, "epoch": 0, "examples": 3200, "seconds": 1.2, "values": {"loss": 0.5}}
    """
    names: tuple[str, ...] | None = None
    form = ""
    for record in records:
        if names is None or names != tuple(record.values):
            names = tuple(record.values)
            form = _form(names)
        kind, step, epoch, examples, seconds, values = record
        line = form % (kind, step, epoch, examples, round(seconds, 3), *map(float.__repr__, values.values()))
        yield _with_words(line, record) if "n" in line[line.index("values") :] else line


def _form(names: Iterable[str]) -> str:
    values = ", ".join(f"{json.dumps(name)}: ".replace("%", "%%") + "%s" for name in names)
    start = '{"type": "%s", "step": %d, "epoch": %d, "examples": %d, "seconds": %r, "values": {'
    return start + values + "}}\n"


def _with_words(line: str, record: Record) -> str:
    """The line of a record that may have numbers that JSON does not have."""
    if all(value - value == 0 for value in record.values.values()):
        return line
    fields = {"examples": record.examples, "seconds": round(record.seconds, 3), "values": dict(record.values)}
    return strict_json.dumps({"type": record.kind, "step": record.step, "epoch": record.epoch, **fields}) + "\n"


def kept_lines(path: Path, position: Position) -> list[str]:
    """Returns the lines of a file up to a checkpoint, without one that a crash has cut.

    Args:
        path: the file.
        position: that of the checkpoint.
    """
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    return [line for line in lines if line.endswith("\n") and _kept(line, position)]


def _kept(line: str, position: Position) -> bool:
    entry = json.loads(line)
    kind = "step" if entry.get("in_epoch") else entry["type"]
    return "step" not in entry or position.has(kind, entry["step"], entry["epoch"])
