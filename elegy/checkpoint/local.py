"""Checkpoints on a local or mounted file system, which are replaced atomically."""

from __future__ import annotations

import contextlib
import os
import shutil
import uuid
import warnings
from collections.abc import Iterator
from pathlib import Path

from elegy.callers import stacklevel_of_caller
from elegy.checkpoint.manifest import (
    ARRAYS,
    MANIFEST,
    METADATA,
    flush_directory,
    read_manifest,
    verify_files,
    write_flushed,
)
from elegy.checkpoint.naming import DAMAGED, LEFTOVER, REPLACED, STAGED, STEP, checkpoint_step
from elegy.errors import CheckpointError, CheckpointFormatError


class LocalCheckpoint:
    """A checkpoint, or a directory of checkpoints, on a local or mounted file system.

    Args:
        path: an absolute path.
    """

    def __init__(self, path: Path):
        self.path = path

    def exists(self) -> bool:
        """True if the path exists."""
        return self.path.exists()

    def finished(self) -> bool:
        """True if the path is a complete checkpoint."""
        return (self.path / MANIFEST).exists()

    def aside(self) -> Path | None:
        """Returns the old checkpoint that a crash left under another name while it was being replaced, or None."""
        if os.path.lexists(self.path):
            return None
        return max(self._replaced(), key=lambda found: found.stat().st_mtime_ns, default=None)

    def checkpoints(self) -> list[Path]:
        """Lists all checkpoints in this directory, intact or damaged, oldest step first."""
        if not self.path.is_dir():
            return []
        found = {}
        for name in sorted(os.listdir(self.path)):
            base = name.partition(REPLACED)[0]
            if STEP.fullmatch(base) and (self.path / name).is_dir():
                # A replaced checkpoint counts only if the new one is missing.
                found[base] = self.path / base if (self.path / base).is_dir() else self.path / name
        return sorted(found.values(), key=checkpoint_step)

    def leftovers(self) -> list[Path]:
        """Lists the directories that interrupted saves left in this directory."""
        if not self.path.is_dir():
            return []
        kept = set(self.checkpoints())
        found = [self.path / name for name in sorted(os.listdir(self.path)) if LEFTOVER.fullmatch(name)]
        return [path for path in found if path not in kept]

    def make(self) -> None:
        """Makes the directory if it is missing."""
        self.path.mkdir(parents=True, exist_ok=True)

    @contextlib.contextmanager
    def copied(self) -> Iterator[Path]:
        """Yields the local directory from which to read the checkpoint: its own path."""
        yield self.path

    def staging(self, unique: str) -> Path:
        """Returns the directory in which `staged` prepares the checkpoint.

        Example:
            >>> LocalCheckpoint(Path("/runs/best")).staging("1f")
            PosixPath('/runs/best.tmp-1f')
        """
        return _beside(self.path, STAGED, unique)

    @contextlib.contextmanager
    def staged(self, unique: str, step: object = None) -> Iterator[Path]:
        """Yields an empty directory that is renamed to this path when the block ends, and deleted if the block fails.

        Args:
            unique: a suffix that is the same in every process.
            step: the step that is saved. If this path is named after it, an obstacle at the path is moved aside:
                otherwise every launch of the run would fail at the same step.

        Raises:
            CheckpointError: if the path exists, is not a checkpoint, and is not named after `step`.
            OSError: if the file system raises it.

        Warns:
            UserWarning: if something was moved aside; the message says where it is.
        """
        mark = self._mark_of_old(step)
        staging = self.staging(unique)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        staging.mkdir()
        try:
            yield staging
            self._put_in_place(staging, mark)
        except BaseException:
            shutil.rmtree(staging, ignore_errors=True)
            raise

    def remove(self) -> None:
        """Deletes the checkpoint. It is renamed first, so that a crash in between leaves no partial checkpoint.

        Raises:
            CheckpointError: if the path is not a checkpoint.
            OSError: if the file system raises it.
        """
        self._check_replaceable()
        doomed = _beside(self.path, STAGED)
        os.rename(self.path, doomed)
        shutil.rmtree(doomed)

    def clear(self) -> None:
        """Deletes the directory of an interrupted save."""
        shutil.rmtree(self.path)

    def _put_in_place(self, staging: Path, mark: str) -> None:
        # No portable call swaps two directories, so the old one is renamed first; `aside` finds it if the process is
        # killed before the second rename.
        replaced = None
        if os.path.lexists(self.path):
            replaced = _beside(self.path, mark)
            os.rename(self.path, replaced)
        try:
            os.rename(staging, self.path)
        except OSError:
            if replaced is not None:
                os.rename(replaced, self.path)
            raise
        flush_directory(self.path.parent)
        for old in self._replaced():
            shutil.rmtree(old, ignore_errors=True)
        if mark == DAMAGED and replaced is not None:
            warnings.warn(
                f"{self.path}: something other than an intact checkpoint was there. It was moved to {replaced}, and "
                "the checkpoint was written in its place.",
                stacklevel=stacklevel_of_caller(),
            )

    def _mark_of_old(self, step: object) -> str:
        """Returns the suffix for what exists at the path: that of a replaced checkpoint, or of something to keep."""
        try:
            self._check_replaceable()
        except CheckpointError:
            named = STEP.fullmatch(self.path.name)
            if named is None or int(named[1]) != step or self._readable():
                raise
            return DAMAGED
        return REPLACED

    def _readable(self) -> bool:
        """True if the path is an intact checkpoint, also behind a link or in the format of another release."""
        try:
            verify_files(self.path, read_manifest(self.path, self.path), self.path)
        except CheckpointFormatError:
            return True
        except CheckpointError:
            return False
        return True

    def _replaced(self) -> list[Path]:
        if not self.path.parent.is_dir():
            return []
        start = self.path.name + REPLACED
        return [self.path.with_name(name) for name in os.listdir(self.path.parent) if name.startswith(start)]

    def _check_replaceable(self) -> None:
        if not os.path.lexists(self.path):
            return
        if self.path.is_symlink() or not self.path.is_dir():
            raise CheckpointError(
                f"{self.path}: this is a file or a link, not a checkpoint, so it is not replaced or deleted."
            )
        check_own(self.path, set(os.listdir(self.path)))


def check_own(path: object, names: set[str]) -> None:
    """Checks before a directory is replaced or deleted that it contains nothing but a checkpoint.

    Args:
        path: the directory.
        names: the names of its entries.

    Raises:
        CheckpointError: if there are other entries; the message names them.
    """
    others = sorted(names - {MANIFEST, METADATA, ARRAYS})
    if others:
        raise CheckpointError(
            f"{path}: the directory contains other things than a checkpoint ({', '.join(others[:5])}), "
            "so it is not replaced or deleted. Choose another directory."
        )


def replace_file(path: Path, data: bytes) -> None:
    """Writes a file atomically: after a crash or an error, `path` has the old bytes or the new ones.

    Raises:
        CheckpointError: if the file cannot be written; an existing file is unchanged.
    """
    staging = _beside(path, STAGED)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_flushed(staging, data)
        os.replace(staging, path)
        flush_directory(path.parent)
    except BaseException as error:
        with contextlib.suppress(OSError):
            staging.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise CheckpointError(f"{path} could not be written: {error}.") from error
        raise


def _beside(path: Path, mark: str, unique: str | None = None) -> Path:
    return path.with_name(path.name + mark + (unique or uuid.uuid4().hex[:16]))
