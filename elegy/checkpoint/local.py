"""Checkpoints on the file systems of this machine: how one takes its place, at once and complete."""

from __future__ import annotations

import contextlib
import os
import shutil
import uuid
import warnings
from collections.abc import Iterator
from pathlib import Path

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
    """A checkpoint, or a directory of them, on a mounted file system.

    Args:
        path: an absolute path.
    """

    def __init__(self, path: Path):
        self.path = path

    def exists(self) -> bool:
        """True if something stands here."""
        return self.path.exists()

    def finished(self) -> bool:
        """True if a checkpoint here was written to its end."""
        return (self.path / MANIFEST).exists()

    def aside(self) -> Path | None:
        """The checkpoint of this name that a crash left beside its place, while nothing stands here."""
        if os.path.lexists(self.path):
            return None
        return max(self._replaced(), key=lambda found: found.stat().st_mtime_ns, default=None)

    def checkpoints(self) -> list[Path]:
        """All checkpoints in this directory, oldest step first, whether intact or not."""
        if not self.path.is_dir():
            return []
        found = {}
        for name in sorted(os.listdir(self.path)):
            base = name.partition(REPLACED)[0]
            if STEP.fullmatch(base) and (self.path / name).is_dir():
                # A replaced checkpoint counts only while nothing has taken its place.
                found[base] = self.path / base if (self.path / base).is_dir() else self.path / name
        return sorted(found.values(), key=checkpoint_step)

    def leftovers(self) -> list[Path]:
        """What interrupted saves left in this directory."""
        if not self.path.is_dir():
            return []
        kept = set(self.checkpoints())
        found = [self.path / name for name in sorted(os.listdir(self.path)) if LEFTOVER.fullmatch(name)]
        return [path for path in found if path not in kept]

    def make(self) -> None:
        """Makes the directory where it is missing."""
        self.path.mkdir(parents=True, exist_ok=True)

    @contextlib.contextmanager
    def copied(self) -> Iterator[Path]:
        """A directory on this machine from which the checkpoint can be read: itself."""
        yield self.path

    def staging(self, unique: str) -> Path:
        """Where `staged` prepares what will stand here.

        Example:
            >>> LocalCheckpoint(Path("/runs/best")).staging("1f")
            PosixPath('/runs/best.tmp-1f')
        """
        return _beside(self.path, STAGED, unique)

    @contextlib.contextmanager
    def staged(self, unique: str, step: object = None) -> Iterator[Path]:
        """An empty directory that takes this place when the block ends, and is deleted if it fails.

        Args:
            unique: a suffix that every process of a distributed run shares.
            step: the step that is saved. Where this place is named after it, what is in the way is moved aside: a run
                would meet it again at each launch.

        Raises:
            CheckpointError: if something that is no checkpoint stands here, and this is not the place of `step`.
            OSError: if the file system refuses.

        Warns:
            UserWarning: naming what was moved aside, and where it is.
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
        """Deletes the checkpoint. It is renamed first: a crash in between leaves no half-deleted one behind.

        Raises:
            CheckpointError: if it is not a checkpoint.
            OSError: if the file system refuses.
        """
        self._check_replaceable()
        doomed = _beside(self.path, STAGED)
        os.rename(self.path, doomed)
        shutil.rmtree(doomed)

    def clear(self) -> None:
        """Deletes a leftover."""
        shutil.rmtree(self.path)

    def _put_in_place(self, staging: Path, mark: str) -> None:
        # No portable call swaps two directories: the old one steps aside, and `aside` finds it there if the process
        # dies before the new one has taken its name.
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
                f"{self.path}: what stood there was no intact checkpoint, and held other things than one. It was moved "
                f"to {replaced}, and the checkpoint has taken its place.",
                stacklevel=2,
            )

    def _mark_of_old(self, step: object) -> str:
        """Marks what stands here and has to step aside: as a checkpoint that is replaced, or as something to keep."""
        try:
            self._check_replaceable()
        except CheckpointError:
            named = STEP.fullmatch(self.path.name)
            if named is None or int(named[1]) != step or self._readable():
                raise
            return DAMAGED
        return REPLACED

    def _readable(self) -> bool:
        """True if an intact checkpoint is found here, if only through a link or by another release."""
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
                f"{self.path}: a file or a link stands there, not a checkpoint, so it is not touched."
            )
        check_own(self.path, set(os.listdir(self.path)))


def check_own(path: object, names: set[str]) -> None:
    """Checks that a directory that is to be replaced or deleted holds nothing but a checkpoint.

    Args:
        path: the directory.
        names: what is in it.

    Raises:
        CheckpointError: naming what else is there.
    """
    foreign = sorted(names - {MANIFEST, METADATA, ARRAYS})
    if foreign:
        raise CheckpointError(
            f"{path}: the directory holds other things than a checkpoint ({', '.join(foreign[:5])}), "
            "so it is not touched. Name a directory of its own."
        )


def replace_file(path: Path, data: bytes) -> None:
    """Writes a single file; whatever happens, `path` holds the old bytes or the new ones, complete.

    Raises:
        CheckpointError: if the file system refuses; what was there stays.
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
