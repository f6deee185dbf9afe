"""The configuration and the checkpoints of a run, in a file beside a table of numbers."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from elegy.callbacks.items import Item
from elegy.callers import stacklevel_of_caller
from elegy.loggers.record import Position


class About:
    """A JSON file with `configuration` and `checkpoints`, a list of dicts with `step`, `epoch` and `path`.

    Args:
        path: the file, which is written when something is added.

    Warns:
        UserWarning: if the file is damaged; it counts as empty then.
    """

    def __init__(self, path: Path):
        self._path = path
        self._values: dict[str, Any] = {"configuration": {}, "checkpoints": [], "first": 0}
        if path.exists():
            self._values |= _read(path)

    @property
    def first(self) -> int:
        """The number of rows of earlier runs in the table."""
        return self._values["first"]

    def configure(self, configuration: Mapping[str, Any], first: int) -> None:
        """Begins a new run.

        Args:
            configuration: that of the run.
            first: the number of rows of earlier runs.
        """
        self._values = {"configuration": dict(configuration), "checkpoints": [], "first": first}
        if configuration or first:
            self._write()

    def add(self, item: Item) -> None:
        """Writes the path of a checkpoint."""
        one = {"step": item.step, "epoch": item.epoch, "path": item.value}
        if one not in self._values["checkpoints"]:  # a resumed run may save the same one again
            self._values["checkpoints"].append(one)
            self._write()

    def rewind(self, position: Position) -> None:
        """Removes the checkpoints after the one from which the run resumes."""
        kept = [one for one in self._values["checkpoints"] if one["step"] <= position.step]
        if kept != self._values["checkpoints"]:
            self._values["checkpoints"] = kept
            self._write()

    def _write(self) -> None:
        temporary = self._path.with_name(self._path.name + ".tmp")
        temporary.write_text(json.dumps(self._values, indent=1) + "\n", "utf-8")
        temporary.replace(self._path)


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes())
        if isinstance(found["first"], int) and all(isinstance(one["step"], int) for one in found["checkpoints"]):
            return found
    except (ValueError, TypeError, KeyError):
        pass
    warnings.warn(f"{path} is damaged: the run goes on, and writes it anew.", stacklevel=stacklevel_of_caller())
    return {}
