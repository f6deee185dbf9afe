"""The directories to which the callbacks of a run save checkpoints."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from elegy.callbacks import Callback, ModelCheckpoint
from elegy.checkpoint import Address
from elegy.checkpoint.locks import reserved
from elegy.distributed import is_first, together


@contextlib.contextmanager
def reserved_directories(callbacks: Iterable[Callback]) -> Iterator[None]:
    """While the block runs, no other trainer saves to the directories of the callbacks.

    Addresses have no locks. The folder of a run has a lock of its own.

    Args:
        callbacks: the callbacks of the run.

    Raises:
        ValueError: if two callbacks have the same directory.
        CheckpointError: if another trainer saves to a directory, or nothing can be written there.
    """
    savers = [callback for callback in callbacks if isinstance(callback, ModelCheckpoint)]
    _check_apart(savers)
    with contextlib.ExitStack() as stack:

        def enter() -> None:
            for one in savers:
                if not one.in_run_folder and isinstance(one.directory, Path):
                    stack.enter_context(reserved(one.directory))

        together(lambda: enter() if is_first() else None, "reserving the directories for checkpoints")
        yield


def _check_apart(savers: list[ModelCheckpoint]) -> None:
    seen: list[Any] = []
    for one in savers:
        where = one.placed, _resolved(one.directory)
        if where in seen:
            raise ValueError(
                f"two ModelCheckpoints save to {one.directory} and would delete each other's checkpoints: give each "
                "its own directory."
            )
        seen.append(where)


def _resolved(directory: Path | Address) -> Path | tuple[Any, str]:
    """Returns a value that is equal for different spellings of the same directory."""
    if isinstance(directory, Path):
        return directory.resolve()
    files, root = directory.connect()
    return Path(root).resolve() if "file" in files.protocol else (files, root)
