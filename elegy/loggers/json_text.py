"""Records as lines of JSON."""

from __future__ import annotations

import itertools
import json
import warnings
from collections.abc import Iterable
from pathlib import Path

import orjson

from elegy import strict_json
from elegy.callers import stacklevel_of_caller
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
    plain = all(name.isascii() for name in block.names) and not any(b"null" in column for column in block.texts)
    return _joined(block) if plain else _one_by_one(block)


def _joined(block: Block) -> bytes:
    """The lines, of texts of whole columns: orjson takes a third of the time that it takes for a dict of each line."""
    names = [orjson.dumps(name) for name in block.names]
    begin = b'{"type":%b,"step":' % orjson.dumps(block.kind)
    seconds = {given: orjson.dumps(round(given, 3)) for given in set(block.seconds)}
    between = [b',"epoch":%d,"examples":' % block.epoch, b',"seconds":', b',"values":{']
    if names:
        between[2] += names[0] + b":"
    between += [b",%b:" % name for name in names[1:]]
    counts = [orjson.dumps(list(given))[1:-1].split(b",") for given in (block.steps, block.examples)]
    parts: list[Iterable[bytes]] = [itertools.repeat(begin), counts[0]]
    columns = [counts[1], map(seconds.__getitem__, block.seconds), *block.texts]
    for separator, column in zip(between, columns, strict=bool(names)):
        parts += [itertools.repeat(separator), column]
    if not names:
        parts.append(itertools.repeat(between[2]))
    return b"".join(itertools.chain.from_iterable(zip(*parts, itertools.repeat(b"}}\n"), strict=False)))


def _one_by_one(block: Block) -> bytes:
    return b"".join(
        strict_json.dumps(
            {
                "type": record.kind,
                "step": record.step,
                "epoch": record.epoch,
                "examples": record.examples,
                "seconds": round(record.seconds, 3),
                "values": {name: float(value) for name, value in record.values.items()},
            }
        ).encode()
        + b"\n"
        for record in block.records
    )


def kept_lines(path: Path, position: Position, size: int | None = None) -> bytes:
    """Returns the lines of a file up to a checkpoint, without one that a crash has cut.

    Args:
        path: the file.
        position: that of the checkpoint.
        size: the size of the file when the checkpoint was saved; None if it is not known. What other callbacks have
            logged after that at the end of the same epoch, or after the same evaluations, is logged again.

    Warns:
        UserWarning: if there are damaged lines, which are kept.
    """
    lines = path.read_bytes().split(b"\n")[:-1]
    ends = itertools.accumulate(len(line) + 1 for line in lines)
    kept = [_kept(line, position, size is None or end <= size) for line, end in zip(lines, ends, strict=True)]
    if damaged := kept.count(None):
        warnings.warn(
            f"{path}: {damaged} of {len(lines)} lines are damaged. They are kept, and the run goes on.",
            stacklevel=stacklevel_of_caller(),
        )
    return b"".join(line + b"\n" for line, keep in zip(lines, kept, strict=True) if keep is not False)


def _kept(line: bytes, position: Position, was_there: bool) -> bool | None:
    """True if a line belongs to the run up to the checkpoint; None if it is damaged."""
    try:
        entry = json.loads(line)
        kind, in_epoch = entry["type"], entry.get("in_epoch")
        again = kind in ("text", "histogram") and (not in_epoch or entry.get("evaluated"))
        if again and entry["step"] == position.step:
            if not was_there:
                return False
            kind = "evaluation" if entry["step"] <= position.evaluated else kind  # also what the evaluation logged
        kind = "step" if in_epoch else kind
        return "step" not in entry or position.has(kind, entry["step"], entry["epoch"])
    except (ValueError, AttributeError, TypeError, KeyError):
        return None
