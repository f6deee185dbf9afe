"""Checkpoints at addresses: uploaded from and downloaded to a temporary directory.

Object stores cannot rename, so the manifest is uploaded last and deleted first. A checkpoint without a manifest is
incomplete: it is ignored, and the next run deletes it. To replace a checkpoint, the new one is first uploaded under
another name.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import jax

from elegy.checkpoint.address import Address
from elegy.checkpoint.local import check_own
from elegy.checkpoint.manifest import MANIFEST, read_manifest
from elegy.checkpoint.naming import LEFTOVER, REPLACED, STEP, checkpoint_step
from elegy.errors import CheckpointError


class Remote:
    """A checkpoint, or a directory of checkpoints, at an address.

    Args:
        path: the address.

    Raises:
        CheckpointError: if the program has several processes, or the file system raises an error.
    """

    def __init__(self, path: Address):
        if jax.process_count() > 1:
            raise CheckpointError(
                f"{path}: the processes of a run write one checkpoint together, which takes a mounted file system that "
                "all of them share. Give a path on one; addresses are for programs of one process."
            )
        self.path = path
        with _explained(path, "cannot be reached"):
            self._files, self._root = path.connect()

    def exists(self) -> bool:
        """True if the address has a complete checkpoint."""
        return self.finished() or self.aside() is not None

    def finished(self) -> bool:
        """True if the address has a complete checkpoint."""
        return MANIFEST in self._entries()

    def aside(self) -> Address | None:
        """Returns the complete checkpoint that a crash left under another name during a replacement, or None."""
        if self.finished():
            return None
        return next((place.path for place in self._beside() if place.finished()), None)

    def checkpoints(self) -> list[Address]:
        """Lists all complete checkpoints in this directory, oldest step first."""
        found: dict[str, Address] = {}
        for name in self._folders():  # sorted: a checkpoint comes before its temporary directories
            base = name.partition(REPLACED)[0]
            if STEP.fullmatch(base) and base not in found and Remote(self.path / name).finished():
                found[base] = self.path / name
        return sorted(found.values(), key=checkpoint_step)

    def leftovers(self) -> list[Address]:
        """Lists the directories that interrupted saves left in this directory."""
        kept = self.checkpoints()
        found = [self.path / name for name in self._folders() if STEP.fullmatch(name) or LEFTOVER.fullmatch(name)]
        return [path for path in found if path not in kept]

    def make(self) -> None:
        """Makes the directory if the file system has directories."""
        with _explained(self.path, "cannot be made"):
            self._files.makedirs(self._root, exist_ok=True)

    @contextlib.contextmanager
    def copied(self) -> Iterator[Path]:
        """Yields a local directory with a downloaded copy, which is deleted when the block ends.

        Raises:
            CheckpointError: if the download fails.
        """
        with tempfile.TemporaryDirectory(prefix="elegy-") as folder:
            directory = Path(folder) / "checkpoint"
            with _explained(self.path, "the checkpoint cannot be downloaded"):
                self._download(directory)
            yield directory

    def staging(self, unique: str) -> Path:
        """Raises an error: only one process writes to an address.

        Raises:
            CheckpointError: always.
        """
        raise CheckpointError(f"{self.path}: only one process writes to an address.")

    @contextlib.contextmanager
    def staged(self, unique: str, step: object = None) -> Iterator[Path]:
        """Yields an empty local directory that is uploaded when the block ends.

        Args:
            unique: a suffix that no other save has.
            step: not used: object stores cannot rename.

        Raises:
            CheckpointError: if the address exists and is not a checkpoint.
            Exception: an error of the file system; an existing checkpoint is unchanged.
        """
        check_own(self.path, set(self._entries()))
        with tempfile.TemporaryDirectory(prefix="elegy-") as folder:
            yield Path(folder)
            if self.finished():
                for old in self._beside():
                    old.clear()
                Remote(self.path.parent / (self.path.name + REPLACED + unique))._upload(Path(folder))
            self._upload(Path(folder))
            for old in self._beside():
                old.clear()

    def remove(self) -> None:
        """Deletes the checkpoint, its manifest first, so that a crash in between leaves an incomplete one.

        Raises:
            CheckpointError: if the address is not a checkpoint.
            Exception: an error of the file system.
        """
        names = set(self._entries())
        if not names:
            raise CheckpointError(f"{self.path}: there is no such checkpoint.")
        check_own(self.path, names)
        self.clear()

    def clear(self) -> None:
        """Deletes everything at the address, the manifest first."""
        if self.finished():
            self._files.rm(f"{self._root}/{MANIFEST}")
        self._files.invalidate_cache()
        try:
            self._files.ls(self._root, detail=False)
        except FileNotFoundError:
            return
        self._files.rm(self._root, recursive=True)

    def _upload(self, directory: Path) -> None:
        try:
            self.clear()
            names = [path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file()]
            names.remove(MANIFEST)
            for folder in sorted({PurePosixPath(self._root, name).parent for name in names}):
                self._files.makedirs(str(folder), exist_ok=True)
            for batch in (names, [MANIFEST]):
                here = [str(directory / name) for name in batch]
                self._files.put(here, [f"{self._root}/{name}" for name in batch])
        except BaseException:
            # The first error is raised. Without a manifest, the next run deletes the files that remain.
            with contextlib.suppress(Exception):
                self.clear()
            raise

    def _download(self, directory: Path) -> None:
        files = dict(self._walk(self._root, ""))
        for name in files:
            (directory / name).parent.mkdir(parents=True, exist_ok=True)
        self._files.get(list(files.values()), [str(directory / name) for name in files])
        # Object stores have no empty directories. A damaged manifest is reported when it is read.
        with contextlib.suppress(CheckpointError):
            for name in read_manifest(directory)["directories"]:
                if ".." not in PurePosixPath(name).parts and not PurePosixPath(name).is_absolute():
                    (directory / name).mkdir(parents=True, exist_ok=True)

    def _walk(self, place: str, prefix: str) -> Iterator[tuple[str, str]]:
        # Not `find`, which returns nothing for a directory that cannot be listed.
        for name, entry in self._list(place).items():
            if entry["type"] == "directory":
                yield from self._walk(entry["name"], f"{prefix}{name}/")
            else:
                yield prefix + name, entry["name"]

    def _entries(self) -> dict[str, dict[str, Any]]:
        with _explained(self.path, "cannot be listed"):
            return self._list(self._root)

    def _folders(self) -> list[str]:
        return sorted(name for name, entry in self._entries().items() if entry["type"] == "directory")

    def _beside(self) -> list[Remote]:
        start = self.path.name + REPLACED
        parent = self.path.parent
        return [Remote(parent / name) for name in Remote(parent)._folders() if name.startswith(start)]

    def _list(self, place: str) -> dict[str, dict[str, Any]]:
        """Returns the entries of a directory by name; none if it does not exist."""
        self._files.invalidate_cache()
        try:
            entries = self._files.ls(place, detail=True)
        except FileNotFoundError:
            return {}
        found = {}
        for entry in entries:
            whole = entry["name"]
            if whole == place and entry["type"] == "file":
                raise CheckpointError(f"{self.path}: this is a file, not a checkpoint, so it is not replaced.")
            name = whole.rstrip("/").rpartition("/")[2]
            if whole.rstrip("/") == place.rstrip("/"):  # some stores keep an empty file for a directory
                continue
            if name in ("", ".", ".."):
                raise CheckpointError(f"{self.path}: the name {whole!r} leads out of the directory.")
            found[name] = entry
        return found


@contextlib.contextmanager
def _explained(path: Address, what: str) -> Iterator[None]:
    """Converts the errors of the file system's library to a CheckpointError that names the address."""
    try:
        yield
    except (CheckpointError, ImportError):
        raise
    except Exception as error:
        raise CheckpointError(f"{path}: {what}: {error!r}.") from error
