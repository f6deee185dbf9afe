"""Records as lines of JSON."""

from __future__ import annotations

import json
from pathlib import Path

from elegy import strict_json
from elegy.loggers.record import Position, Record


def record_line(record: Record) -> str:
    """Returns the line of a record.

    Example:
        >>> print(record_line(Record("step", 50, 0, 3200, 1.2, {"loss": 0.5})), end="")
        {"type": "step", "step": 50, "epoch": 0, "examples": 3200, "seconds": 1.2, "values": {"loss": 0.5}}
    """
    kind, step, epoch, examples, seconds, values = record
    fields = {"examples": examples, "seconds": round(seconds, 3), "values": dict(values)}
    return strict_json.dumps({"type": kind, "step": step, "epoch": epoch, **fields}) + "\n"


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
