"""Finds, opens, verifies and deletes checkpoints, at local paths and at addresses."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path

from elegy.callers import stacklevel_of_caller
from elegy.checkpoint.address import Address, path_of
from elegy.checkpoint.local import LocalCheckpoint
from elegy.checkpoint.manifest import read_manifest, verify_files
from elegy.checkpoint.naming import CHECKPOINTS, RUN_FILE
from elegy.checkpoint.remote import Remote
from elegy.checkpoint.turns import in_turn
from elegy.errors import CheckpointError, CheckpointFormatError

Place = LocalCheckpoint | Remote
"""The path of a checkpoint or of a directory of checkpoints: two classes with the same methods."""


@dataclasses.dataclass(frozen=True)
class Opened:
    """A checkpoint that can be read from a local directory.

    Args:
        path: the path or address of the checkpoint.
        directory: the local directory to read: the same, or a downloaded copy.
    """

    path: Path | Address
    directory: Path

    def verify(self) -> None:
        """As the function `verify`."""
        verify_files(self.directory, read_manifest(self.directory, self.path), self.path)


def place_of(path: str | os.PathLike[str]) -> Place:
    """Returns the `LocalCheckpoint` or `Remote` for a path or an address.

    Raises:
        CheckpointError: if the protocol of an address is unknown, or the program has several processes.
        ImportError: if the library for an address is not installed.

    Example:
        >>> place_of("/runs/best").path, place_of("memory://runs/best").path
        (PosixPath('/runs/best'), Address(text='memory://runs/best'))
    """
    where = path_of(path)
    return Remote(where) if isinstance(where, Address) else LocalCheckpoint(where)


def find_checkpoints(directory: str | os.PathLike[str]) -> Sequence[Path | Address]:
    """Lists all checkpoints in a directory, intact or damaged, oldest step first.

    Args:
        directory: a directory of checkpoints named `step_00000123`; it may not exist yet. At an address, only complete
            uploads are listed.

    Raises:
        CheckpointError: if an address cannot be listed.

    Example:
        >>> find_checkpoints("/nowhere")
        []
    """
    return place_of(directory).checkpoints()


def newest_intact(directory: str | os.PathLike[str]) -> Path | Address | None:
    """Returns the checkpoint with the highest step that is not damaged, or None.

    Raises:
        CheckpointFormatError: if a newer checkpoint has the format of another release.
        CheckpointError: if an address cannot be listed, or a checkpoint cannot be downloaded.

    Warns:
        UserWarning: if newer checkpoints are damaged; the message lists them and the reasons.

    Example:
        >>> newest_intact("/nowhere") is None
        True
    """
    with newest_opened(directory) as found:
        return None if found is None else found.path


@contextlib.contextmanager
def newest_opened(directory: str | os.PathLike[str]) -> Iterator[Opened | None]:
    """Opens the checkpoint of `newest_intact`; a downloaded copy is deleted when the block ends."""
    broken: list[str] = []
    with contextlib.ExitStack() as stack:
        chosen = None
        for path in reversed(find_checkpoints(directory)):
            with contextlib.ExitStack() as attempt:
                # A failed download is an error: the checkpoint may be intact.
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
            warnings.warn(
                f"skipped damaged checkpoints, {using}:\n" + "\n".join(broken), stacklevel=stacklevel_of_caller()
            )
        yield chosen


@contextlib.contextmanager
def opened(path: str | os.PathLike[str] | Opened) -> Iterator[Opened]:
    """Opens a checkpoint, or the newest intact one in a directory; a downloaded copy is deleted when the block ends.

    The directory may be the folder of a run. If a crash interrupted the replacement of a checkpoint, the old one is
    opened. An `Opened` is returned as it is.

    Raises:
        CheckpointError: if no checkpoint in the directory is intact, or a download fails.

    Warns:
        UserWarning: as `newest_intact` does.
    """
    if isinstance(path, Opened):
        yield path
        return
    place = place_of(path)
    if isinstance(place, LocalCheckpoint) and (place.path / RUN_FILE).exists():
        place = place_of(place.path / CHECKPOINTS)
        path = place.path
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
    """Checks that every file of a checkpoint exists and has the bytes that were written.

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
        CheckpointError: if a checkpoint at an address cannot be downloaded.

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
    """Deletes a checkpoint. A crash in between leaves no partial checkpoint.

    Raises:
        CheckpointError: if it cannot be deleted, or is not a checkpoint.
    """
    place = place_of(path)
    try:
        with in_turn(place.path):
            place.remove()
    except CheckpointError:
        raise
    except Exception as error:
        raise CheckpointError(f"{place.path}: the checkpoint cannot be deleted: {error}.") from error


def remove_leftovers(directory: str | os.PathLike[str]) -> Sequence[Path | Address]:
    """Deletes the files of interrupted saves in a directory of checkpoints; no save may be running there.

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
