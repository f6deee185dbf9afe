"""Reads the configuration that `elegy fit` saved with a run or in a checkpoint: JSON, which runs nothing."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from elegy import strict_json
from elegy.checkpoint.address import Address, path_of
from elegy.checkpoint.directory import find_checkpoints, opened
from elegy.checkpoint.naming import CHECKPOINTS, RUN_FILE
from elegy.checkpoint.store import read_metadata
from elegy.cli.errors import CliError
from elegy.cli.parser import PROGRAM, Values
from elegy.errors import CheckpointError
from elegy.runs.files import read_json
from elegy.runs.place import newest_step, run_dir_path, runs_of
from elegy.trainer import Trainer

CONFIG = "config.json"


def is_run(target: str) -> bool:
    """True if a name is that of a run, a checkpoint or a directory of checkpoints, and not of a program."""
    is_package = os.path.exists(os.path.join(target, "__init__.py"))
    return "://" in target or (os.path.isdir(target) and not is_package)


def checkpoint_of(target: str) -> str:
    """Returns the checkpoint, the directory of checkpoints or the run, for `Trainer.restore`.

    Raises:
        CliError: if there is no checkpoint.
    """
    where = path_of(target)
    if isinstance(where, Address) or (where / "manifest.json").exists() or find_checkpoints(where):
        return target
    if not where.is_dir():
        raise CliError(f"there is no run and no checkpoint at {target}.")
    if not find_checkpoints(where / CHECKPOINTS):
        raise CliError(
            f"{target} has no checkpoint: it is neither a run, nor a directory of checkpoints, nor one of them."
        )
    return str(where / CHECKPOINTS)


def read_config(target: str, *, needed: bool = True) -> dict[str, Any]:
    """Returns the configuration of a run or a checkpoint.

    Args:
        target: the run, the checkpoint, or a directory of checkpoints.
        needed: whether there must be one.

    Raises:
        CliError: if there is none, or the checkpoint is damaged.
    """
    where = path_of(target)
    try:
        if not isinstance(where, Address) and (where / CONFIG).exists():
            config = read_json(where / CONFIG).get("config")
        else:
            config = checkpoint_config(target)
    except CheckpointError as error:
        raise CliError(str(error)) from error
    if isinstance(config, dict) and PROGRAM in config:  # otherwise the user's own `Trainer(config=...)`
        return config
    if needed:
        raise CliError(f"{target} has no configuration of the command line: pass --program FILE:FUNCTION.")
    return {}


def checkpoint_config(target: str) -> Any:
    """Returns the `config` of the trainer that saved a checkpoint, the newest one of a run or a directory.

    Raises:
        CliError, CheckpointError: if there is no checkpoint, or none that is intact.
    """
    with opened(checkpoint_of(target)) as found:
        return read_metadata(found).get("config")


def folder_asked_for(run: str) -> Path | None:
    """Returns the `run_dir` of the trainer whose run has a folder; None if it is not the folder of a run.

    The folder itself may have a number: `runs/first_2`, where `runs/first` was asked for.
    """
    where = path_of(run)
    if isinstance(where, Address) or not (where / RUN_FILE).exists():
        return None
    return where.absolute().with_name(read_json(where / RUN_FILE).get("name", where.name))


def latest_run(trainer: Trainer, values: Values) -> str | None:
    """Returns the folder of the run that `--resume auto` goes on with; None if there is none yet."""
    wanted = run_dir_path(values.group("trainer")["run_dir"], trainer.configuration()["trainer"]["module"])
    runs = () if wanted is None else runs_of(wanted)
    return next((os.fspath(path) for path in runs if newest_step(path) is not None), None)


def program_of(config: dict[str, Any], target: str) -> dict[str, Any]:
    """Returns what a configuration says of its program.

    Raises:
        CliError: if it says nothing.
    """
    record = config.get(PROGRAM)
    if not isinstance(record, dict) or not all(isinstance(record.get(key), str) for key in ("source", "build")):
        raise CliError(f"the configuration of {target} names no program: pass --program FILE:FUNCTION.")
    return record


def other_options(before: Any, now: Mapping[str, Any]) -> str:
    """Returns a sentence about the options that are not those of a saved configuration; empty if all of them are.

    Args:
        before: the saved configuration, by group and name; one that is not of the command line does not differ.
        now: the configuration of this command.

    Example:
        >>> other_options({"build": {"width": 32}}, {"build": {"width": 16, "depth": 2}, "fit": {"epochs": 3}})
        'These options are not those of the run: --build.width is 16 (in the run 32).'
    """
    groups = [name for name in now if name in ("build", "optimizer", "data") and isinstance(before, Mapping)]
    saved = dict(_by_option({name: before[name] for name in groups if name in before}))
    texts = [
        f"--{path} is {strict_json.dumps(value)} (in the run {strict_json.dumps(saved[path])})"
        for path, value in _by_option({name: now[name] for name in groups})
        if path in saved and strict_json.dumps(value) != strict_json.dumps(saved[path])  # NaN is equal there
    ]
    return f"These options are not those of the run: {'; '.join(texts)}." if texts else ""


def _by_option(config: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in config.items():
        if isinstance(value, Mapping):
            yield from _by_option(value, f"{path}{name}.")
        else:
            yield f"{path}{name}", value
