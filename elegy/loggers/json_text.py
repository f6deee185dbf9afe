"""Records as lines of JSON."""

from __future__ import annotations

import json
import math
from pathlib import Path

import orjson

from elegy import strict_json
from elegy.loggers.block import Block
from elegy.loggers.record import Position


def json_lines(block: Block) -> bytes:
    """Returns the lines of records; the loggers of a run share them.

    Example:
        >>> from elegy.loggers import Record
        >>> print(json_lines(Block.of(Record("step", 50, 0, 3200, 1.2, {"loss": 0.5}))).decode(), end="")
        {"type":"step","step":50,"epoch":0,"examples":3200,"seconds":1.2,"values":{"loss":0.5}}
    """
    return block.shared("json", lambda: _lines(block))


def _lines(block: Block) -> bytes:
    # orjson writes null for numbers that are not finite, and line separators within names as they are.
    finite = all(all(map(math.isfinite, row)) for row in block.rows)
    plain = finite and all(name.isascii() for name in block.names)
    dumps = orjson.dumps if plain else _dumps
    kind, epoch, seconds, names = block.kind, block.epoch, round(block.seconds, 3), block.names
    lines = [
        dumps(
            {
                "type": kind,
                "step": step,
                "epoch": epoch,
                "examples": examples,
                "seconds": seconds,
                "values": dict(zip(names, row, strict=True)),
            }
        )
        for step, examples, row in zip(block.steps, block.examples, block.rows, strict=True)
    ]
    return b"\n".join([*lines, b""])


def _dumps(value: object) -> bytes:
    return strict_json.dumps(value).encode()


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
