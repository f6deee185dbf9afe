"""Reads the configuration that `elegy fit` saved with a run or in a checkpoint: JSON, which runs nothing."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from elegy.checkpoint.address import Address, path_of
from elegy.checkpoint.directory import find_checkpoints, newest_opened, opened
from elegy.checkpoint.store import read_metadata
from elegy.cli.errors import CliError
from elegy.cli.parser import PROGRAM
from elegy.errors import CheckpointError

CHECKPOINTS = "checkpoints"
CONFIG = "config.json"


def is_run(target: str) -> bool:
    """True if a name is that of a run, a checkpoint or a directory of checkpoints, and not of a program."""
    return "://" in target or os.path.isdir(target)


def checkpoint_of(target: str) -> str:
    """Returns the checkpoint, or the directory of checkpoints, of a run.

    Raises:
        CliError: if there is none.
    """
    where = path_of(target)
    if isinstance(where, Address):
        return target
    if not where.is_dir():
        raise CliError(f"there is no run and no checkpoint at {target}.")
    if (where / "manifest.json").exists() or find_checkpoints(where):
        return target
    if find_checkpoints(where / CHECKPOINTS):
        return str(where / CHECKPOINTS)
    raise CliError(f"{target} has no checkpoint: it is neither a run, nor a directory of checkpoints, nor one of them.")


def read_config(target: str) -> dict[str, Any]:
    """Returns the configuration of a run or a checkpoint.

    Raises:
        CliError: if there is none.
    """
    where = path_of(target)
    try:
        if not isinstance(where, Address) and (where / CONFIG).exists():
            config = _of_file(where / CONFIG)
        else:
            with opened(checkpoint_of(target)) as found:
                config = read_metadata(found).get("config")
    except CheckpointError as error:
        raise CliError(str(error)) from error
    if not isinstance(config, dict):
        raise CliError(f"{target} has no configuration of the command line: pass --program FILE:FUNCTION.")
    return config


def _of_file(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8")).get("config")
    except (ValueError, AttributeError) as error:
        raise CliError(f"{path} is damaged: {error}") from error


def program_of(config: dict[str, Any], target: str) -> dict[str, Any]:
    """Returns what a configuration says of its program.

    Raises:
        CliError: if it says nothing.
    """
    record = config.get(PROGRAM)
    if not isinstance(record, dict) or not all(isinstance(record.get(key), str) for key in ("source", "build")):
        raise CliError(f"the configuration of {target} names no program: pass --program FILE:FUNCTION.")
    return record


def has_checkpoint(directory: str | os.PathLike[str]) -> bool:
    """True if a directory has an intact checkpoint."""
    with newest_opened(directory) as found:
        return found is not None
