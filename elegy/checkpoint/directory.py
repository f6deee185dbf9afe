"""Checkpoints and directories of them, wherever they are: how they are found, read, checked and deleted."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

from elegy.checkpoint.address import Address, path_of
from elegy.checkpoint.local import LocalCheckpoint
from elegy.checkpoint.manifest import read_manifest, verify_files
from elegy.checkpoint.remote import Remote
from elegy.errors import CheckpointError, CheckpointFormatError

Place = LocalCheckpoint | Remote
"""Where one checkpoint stands, or a directory of them: two classes with the same methods."""


@dataclasses.dataclass(frozen=True)
class Opened:
    """A checkpoint that can be read on this machine.

    Args:
        path: where it is.
        directory: where it is read: the same, or a copy.
    """

    path: Path | Address
    directory: Path

    def verify(self) -> None:
        """As the function `verify`."""
        verify_files(self.directory, read_manifest(self.directory, self.path), self.path)


def place_of(path: str | os.PathLike[str]) -> Place:
    """The place that a path or an address means.

    Raises:
        CheckpointError: for an address that nothing serves, or in a program of several processes.
        ImportError: if a library that it takes is not installed.

    Example:
        >>> place_of("/runs/best").path, place_of("memory://runs/best").path
        (PosixPath('/runs/best'), Address(text='memory://runs/best'))
    """
    where = path_of(path)
    return Remote(where) if isinstance(where, Address) else LocalCheckpoint(where)


def find_checkpoints(directory: str | os.PathLike[str]) -> Sequence[Path | Address]:
    """All checkpoints in a directory, oldest step first, whether intact or not.

    Args:
        directory: holds checkpoints named `step_00000123`; it may not exist yet. At an address those count whose
            upload was finished.

    Raises:
        CheckpointError: if an address cannot be listed.

    Example:
        >>> find_checkpoints("/nowhere")
        []
    """
    return place_of(directory).checkpoints()


def newest_intact(directory: str | os.PathLike[str]) -> Path | Address | None:
    """The checkpoint with the highest step that is not damaged, or None.

    Raises:
        CheckpointFormatError: if another release wrote a newer one: it is not damaged, so it is not passed over.
        CheckpointError: if an address cannot be listed, or one of its checkpoints not be downloaded.

    Warns:
        UserWarning: naming every newer checkpoint that was skipped, and what is wrong with it.

    Example:
        >>> newest_intact("/nowhere") is None
        True
    """
    with newest_opened(directory) as found:
        return None if found is None else found.path


@contextlib.contextmanager
def newest_opened(directory: str | os.PathLike[str]) -> Iterator[Opened | None]:
    """Opens what `newest_intact` finds; a copy of one at an address is deleted when the block ends."""
    broken: list[str] = []
    with contextlib.ExitStack() as stack:
        chosen = None
        for path in reversed(find_checkpoints(directory)):
            with contextlib.ExitStack() as attempt:
                # What cannot be downloaded may well be intact, so that is an error, and not passed over.
                one = Opened(path, attempt.enter_context(place_of(path).copied()))
                try:
                    one.verify()
                except CheckpointFormatError:
                    raise
                except CheckpointError as error:
                    broken.append(str(error))
                else:
                    chosen = one
                    stack.push(attempt.pop_all())
                    break
        if broken:
            using = f"using {chosen.path} instead" if chosen else "no intact checkpoint is left"
            warnings.warn(f"skipped damaged checkpoints, {using}:\n" + "\n".join(broken), stacklevel=4)
        yield chosen


@contextlib.contextmanager
def opened(path: str | os.PathLike[str] | Opened) -> Iterator[Opened]:
    """Opens the checkpoint of this name; a copy of one at an address is deleted when the block ends.

    It is at the path; beside it if a crash interrupted its replacement; or in it, the newest intact one, if the path is
    a directory of checkpoints. One that is open already is taken as it is.

    Raises:
        CheckpointError: if no checkpoint in the directory is intact, or one at an address cannot be downloaded.

    Warns:
        UserWarning: as `newest_intact` does.
    """
    if isinstance(path, Opened):
        yield path
        return
    place = place_of(path)
    if not place.finished() and place.checkpoints():
        with newest_opened(path) as newest:
            if newest is None:
                raise CheckpointError(f"{place.path}: none of the checkpoints in this directory is intact.")
            yield newest
        return
    if aside := place.aside():
        place = place_of(aside)
    with place.copied() as directory:
        yield Opened(place.path, directory)


def verify(path: str | os.PathLike[str]) -> None:
    """Checks that every file of a checkpoint is there and holds the bytes that were written.

    Args:
        path: the checkpoint's directory or address.

    Raises:
        CheckpointError: naming every file that is damaged, truncated, missing or extra.

    Example:
        >>> verify("/nowhere")
        Traceback (most recent call last):
        ...
        elegy.errors.CheckpointError: /nowhere: there is no such checkpoint.
    """
    place = place_of(path)
    with place.copied() as directory:
        Opened(place.path, directory).verify()


def is_intact(path: str | os.PathLike[str]) -> bool:
    """True if `verify` finds nothing wrong.

    Raises:
        CheckpointError: if a checkpoint at an address cannot be downloaded, so that nobody knows.

    Example:
        >>> is_intact("/nowhere")
        False
    """
    place = place_of(path)
    with place.copied() as directory:
        try:
            Opened(place.path, directory).verify()
        except CheckpointError:
            return False
        return True


def remove(path: str | os.PathLike[str]) -> None:
    """Deletes a checkpoint. A crash in between leaves no half-deleted one behind.

    Raises:
        CheckpointError: if it cannot be deleted, or is not a checkpoint.
    """
    place = place_of(path)
    try:
        place.remove()
    except CheckpointError:
        raise
    except Exception as error:
        raise CheckpointError(f"{place.path}: the checkpoint cannot be deleted: {error}.") from error


def remove_leftovers(directory: str | os.PathLike[str]) -> Sequence[Path | Address]:
    """Deletes what interrupted saves left in a directory of checkpoints; nobody may be saving into it.

    Returns:
        The directories that were deleted.

    Example:
        >>> remove_leftovers("/nowhere")
        []
    """
    gone = place_of(directory).leftovers()
    for path in gone:
        place_of(path).clear()
    return gone
