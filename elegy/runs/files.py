"""Reads and writes the JSON files of a run folder."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
from pathlib import Path
from typing import Any


def read_json(path: Path) -> dict[str, Any]:
    """Reads a file that contains an object; a file that is missing, empty or damaged has nothing in it.

    Example:
        >>> read_json(Path("/nowhere/run.json"))
        {}
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Replaces a file at once, so that readers see the old object or the new one.

    Raises:
        OSError: if it cannot be written; the error names it, and the old object stays.
    """
    temporary = path.with_name(f"{path.name}.tmp-{os.getpid()}")
    try:
        temporary.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
        temporary.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        error.filename, error.filename2 = os.fspath(path), None  # Python does not name the file of a failed write
        raise


def kept(path: Path) -> list[Path]:
    """Returns the files in which `write_kept` has kept the objects that a file had before, the oldest first."""
    numbered = (path.with_name(f"{path.stem}_{number}{path.suffix}") for number in itertools.count(1))
    return [*itertools.takewhile(Path.exists, numbered)]


def write_kept(path: Path, value: dict[str, Any]) -> None:
    """Writes an object; a different one that the file has is kept as `config_1.json`, `config_2.json`, ..."""
    if path.exists() and read_json(path) != json.loads(json.dumps(value)):
        older = (path.with_name(f"{path.stem}_{number}{path.suffix}") for number in itertools.count(1))
        path.rename(next(one for one in older if not one.exists()))
    write_json(path, value)
