"""Finds, numbers and locks the folders of runs."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from elegy.checkpoint import find_checkpoints
from elegy.checkpoint.locks import lock, open_locked
from elegy.checkpoint.naming import CHECKPOINTS, RUN_FILE
from elegy.runs.files import read_json

LOCK_FILE = "run.lock"


def run_dir_path(run_dir: str | os.PathLike[str] | None, module_name: str) -> Path | None:
    """Returns the folder that `Trainer(run_dir=...)` asks for; None without one.

    Args:
        run_dir: a path, `"auto"` for one in `runs/` named after the module, or None.
        module_name: the name of the module's class.

    Raises:
        TypeError: if it is not a path.
        ValueError: if it is empty, or an address such as `gs://bucket/run`.

    Example:
        >>> run_dir_path("auto", "Linen(MLP)").as_posix()
        'runs/MLP'
    """
    if run_dir is None:
        return None
    text = os.fspath(run_dir) if isinstance(run_dir, (str, os.PathLike)) else None
    if not isinstance(text, str):
        raise TypeError(f"run_dir must be 'auto' or the path of a folder, not {run_dir!r}.")
    if text == "auto":
        inner = module_name.partition("(")[2].removesuffix(")") or module_name
        return Path("runs") / re.sub(r"[^\w.-]+", "_", inner)
    if re.match(r"\w+://", text):
        raise ValueError(
            f"run_dir={text!r} is an address: a run folder is on a local disk. For checkpoints at an address, add "
            "`elegy.callbacks.ModelCheckpoint(address)`."
        )
    if not Path(text).name:
        raise ValueError(f"run_dir={text!r} has no name: pass the path of a folder, such as 'runs/first'.")
    return Path(text)


def candidates(wanted: Path) -> Iterator[Path]:
    """Returns `runs/name`, `runs/name_1`, `runs/name_2`, ...

    Example:
        >>> [path.name for path in itertools.islice(candidates(Path("runs/lr=0.1")), 3)]
        ['lr=0.1', 'lr=0.1_1', 'lr=0.1_2']
    """
    yield wanted
    for number in itertools.count(1):
        yield wanted.with_name(f"{wanted.name}_{number}")


def check_writable(wanted: Path) -> None:
    """Checks that a run folder can be made, before anything is computed.

    Raises:
        NotADirectoryError: if a part of its path is a file.
        PermissionError: if this process may not write there.

    Example:
        >>> check_writable(Path("/dev/null/first"))
        Traceback (most recent call last):
        ...
        NotADirectoryError: run_dir='/dev/null/first': /dev/null is a file, so no folder can be made in it.
    """
    there = wanted if wanted.is_dir() else next(path for path in wanted.absolute().parents if path.exists())
    if not there.is_dir():
        raise NotADirectoryError(f"run_dir={str(wanted)!r}: {there} is a file, so no folder can be made in it.")
    if not os.access(there, os.W_OK | os.X_OK):
        raise PermissionError(f"run_dir={str(wanted)!r}: this process may not write in {there}.")


def claim(wanted: Path) -> Path:
    """Makes the first folder of the candidates that nothing is in, and claims it by creating its `run.json`.

    Of processes that do this at the same time, each gets a folder of its own: only one of them creates the file.

    Args:
        wanted: the path of the first candidate.

    Raises:
        OSError: if a folder cannot be made.
    """
    for path in candidates(wanted):
        try:
            path.mkdir(parents=True)
        except FileExistsError:
            if not path.is_dir() or any(path.iterdir()):
                continue
        try:
            os.close(os.open(path / RUN_FILE, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        except FileExistsError:
            continue
        return path
    raise AssertionError("unreachable")


def is_of(path: Path, wanted: Path) -> bool:
    """True if a folder was claimed for a wanted path: it is beside it, and its `run.json` has its name.

    If its `run.json` is damaged, the name of the folder decides.
    """
    if path.resolve().parent != wanted.resolve().parent:
        return False
    if has_lost_its_record(path):
        return _number(path, wanted) is not None
    return read_json(path / RUN_FILE).get("name") == wanted.name


def has_lost_its_record(path: Path) -> bool:
    """True if a trainer trained in a folder and saved there, but its `run.json` is missing or damaged."""
    if "name" in read_json(path / RUN_FILE):
        return False
    return (path / LOCK_FILE).exists() and newest_step(path) is not None


def runs_of(wanted: Path) -> list[Path]:
    """Returns the folders that were claimed for a wanted path, the newest first."""
    found: list[tuple[int, Path]] = []
    for path in wanted.parent.glob("*") if wanted.parent.is_dir() else ():
        number = _number(path, wanted)
        if number is not None and is_of(path, wanted):
            found.append((number, path))
    return [path for _, path in sorted(found, reverse=True)]


def _number(path: Path, wanted: Path) -> int | None:
    """The number of a folder among the candidates, of which the first is 0; None if it is not one of them."""
    match = re.fullmatch(re.escape(wanted.name) + r"(?:_(\d+))?", path.name)
    return int(match[1] or 0) if match else None


def newest_step(folder: Path) -> int | None:
    """The highest step of the checkpoints of a run folder; None without any."""
    from elegy.checkpoint import checkpoint_step

    found = find_checkpoints(folder / CHECKPOINTS)
    return checkpoint_step(found[-1]) if found else None


class Lock:
    """The lock of a run folder; see `open_locked`."""

    def __init__(self) -> None:
        self._file: Any = None

    def acquire(self, folder: Path) -> bool:
        """Locks a folder instead of the one before; returns False if another trainer has locked it."""
        self.release()
        self._file = open_locked(folder / LOCK_FILE)
        return self._file is not None

    def release(self) -> None:
        """Releases the lock."""
        file, self._file = self._file, None
        if file is not None:
            file.close()


def is_locked(folder: Path) -> bool:
    """True if a trainer, of any process, is training in a folder."""
    with contextlib.suppress(OSError), (folder / LOCK_FILE).open("r") as file:
        return not lock(file)
    return False
