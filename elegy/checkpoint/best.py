"""Finds the best checkpoint of a directory: that which the `ModelCheckpoint` of the run ranked first."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from elegy.callers import stacklevel_of_caller
from elegy.checkpoint.address import Address
from elegy.checkpoint.directory import Place, find_checkpoints, is_intact, opened, place_of
from elegy.checkpoint.local import LocalCheckpoint
from elegy.checkpoint.naming import CHECKPOINTS, RUN_FILE
from elegy.checkpoint.store import read_metadata
from elegy.errors import CheckpointError


def best(directory: str | os.PathLike[str]) -> Path | Address:
    """Returns the checkpoint with the best value of the log that the run's `ModelCheckpoint(monitor=...)` monitored.

    The values are those that the newest intact checkpoint contains, of the sessions before a resume, too.

    Args:
        directory: the directory of the `ModelCheckpoint`, or the folder of a run; addresses likewise.

    Raises:
        CheckpointError: if there is no intact checkpoint with a value, or no monitor.

    Warns:
        UserWarning: if better checkpoints are damaged.

    Example:
        >>> best("/nowhere")
        Traceback (most recent call last):
        ...
        elegy.errors.CheckpointError: /nowhere: there is no checkpoint in this directory.
    """
    place = place_of(directory)
    if isinstance(place, LocalCheckpoint) and (place.path / RUN_FILE).exists():
        place = place_of(place.path / CHECKPOINTS)
    if not (there := find_checkpoints(place.path)):
        raise CheckpointError(f"{place.path}: there is no checkpoint in this directory.")
    damaged: list[str] = []
    for name in _ranked(place):
        path = place.path / name
        if path not in there:
            continue
        if is_intact(path):
            if damaged:
                warnings.warn(
                    f"skipped better checkpoints, which are damaged: {', '.join(damaged)}.",
                    stacklevel=stacklevel_of_caller(),
                )
            return path
        damaged.append(name)
    more = f" Damaged are {', '.join(damaged)}." if damaged else ""
    raise CheckpointError(f"{place.path}: no intact checkpoint has a value of the monitored log.{more}")


def _ranked(place: Place) -> Iterator[str]:
    """The names of the checkpoints that have a value, the best first."""
    with opened(place.path) as newest:
        run = read_metadata(newest).get("run") or {}
    of_monitors = [state for state in run.get("callbacks", {}).values() if _monitors(state, newest.path.name)]
    # Several monitors save to several directories, and each of their checkpoints lists those of all.
    here = [state for state in of_monitors if state["directory"] == place.path.name]
    if len(of_monitors) > 1 and len(here) != 1:
        logs = " or ".join(repr(state["monitor"]) for state in of_monitors)
        raise CheckpointError(f"{place.path}: it is not known whether {logs} ranks these: give one of them.")
    for state in here or of_monitors:
        measured = [(value, name) for name, _, value in state["saved"] if value is not None]
        measured.sort(key=lambda one: -one[0] if state["mode"] == "max" else one[0])
        yield from (name for _, name in measured)
        return
    raise CheckpointError(
        f"{place.path}: no log ranks these checkpoints, so none of them is the best. Train with "
        "`elegy.callbacks.ModelCheckpoint(..., monitor='val_loss')` among the callbacks."
    )


def _monitors(state: Any, newest: str) -> bool:
    """True for the state of a `ModelCheckpoint` with a monitor that has saved the newest checkpoint."""
    if not isinstance(state, Mapping) or state.get("monitor") is None or "saved" not in state:
        return False
    return any(name == newest for name, _, _ in state["saved"])
