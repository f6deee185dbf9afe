"""Directories of checkpoints: how one takes its place, and how the newest intact one is found."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import uuid
import warnings
from collections.abc import Iterator
from pathlib import Path

from elegy.checkpoint.manifest import ARRAYS, MANIFEST, METADATA, flush_directory, verify, write_flushed
from elegy.errors import CheckpointError, CheckpointFormatError

_STAGED = ".tmp-"
_REPLACED = ".old-"
_STEP = re.compile(r"step_(\d+)")
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")  # also what `Path` makes of one: "gs:/bucket"


def checkpoint_name(step: int) -> str:
    """The directory name of the checkpoint of a step.

    Example:
        >>> checkpoint_name(123)
        'step_00000123'
    """
    return f"step_{step:08d}"


def checkpoint_step(path: str | os.PathLike[str]) -> int:
    """The step that a checkpoint's directory name says.

    Raises:
        ValueError: when the name is not of the form `step_00000123`.

    Example:
        >>> checkpoint_step("runs/step_00000123")
        123
    """
    match = _STEP.fullmatch(Path(path).name.partition(_REPLACED)[0])
    if match is None:
        raise ValueError(f"{path}: the name is not that of a checkpoint, such as {checkpoint_name(123)}.")
    return int(match[1])


def local_path(path: str | os.PathLike[str]) -> Path:
    """An absolute path on this machine.

    Raises:
        CheckpointError: for an address on another file system.

    Example:
        >>> local_path("/runs/step_00000001")
        PosixPath('/runs/step_00000001')
    """
    text = os.fspath(path)
    if _ADDRESS.match(text):
        raise CheckpointError(
            f"{text}: checkpoints are written to mounted file systems, where a rename is atomic. "
            "Save to a local or mounted path and copy the finished directory."
        )
    return Path(text).expanduser().absolute()


def find_checkpoints(directory: str | os.PathLike[str]) -> list[Path]:
    """All checkpoints in a directory, oldest step first, whether intact or not.

    Args:
        directory: holds checkpoints named `step_00000123`; it may not exist yet.

    Example:
        >>> find_checkpoints("/nowhere")
        []
    """
    folder = local_path(directory)
    if not folder.is_dir():
        return []
    found = {}
    for name in sorted(os.listdir(folder)):
        base = name.partition(_REPLACED)[0]
        if _STEP.fullmatch(base) and (folder / name).is_dir():
            # A replaced checkpoint counts only while nothing has taken its place.
            found[base] = folder / base if (folder / base).is_dir() else folder / name
    return sorted(found.values(), key=checkpoint_step)


def newest_intact(directory: str | os.PathLike[str]) -> Path | None:
    """The checkpoint with the highest step that is not damaged, or None.

    Raises:
        CheckpointFormatError: when another release wrote a newer one: it is not damaged, so it is not passed over.

    Warns:
        UserWarning: naming every newer checkpoint that was skipped, and what is wrong with it.

    Example:
        >>> newest_intact("/nowhere") is None
        True
    """
    broken: list[str] = []
    chosen = None
    for path in reversed(find_checkpoints(directory)):
        try:
            verify(path)
        except CheckpointFormatError:
            raise
        except CheckpointError as error:
            broken.append(str(error))
        else:
            chosen = path
            break
    if broken:
        using = f"using {chosen} instead" if chosen else "no intact checkpoint is left"
        warnings.warn(f"skipped damaged checkpoints, {using}:\n" + "\n".join(broken), stacklevel=2)
    return chosen


def locate(path: str | os.PathLike[str]) -> Path:
    """Where the checkpoint of this name is.

    At the path; beside it if a crash interrupted its replacement; or in it, the newest intact one, if the path is a
    directory of checkpoints.

    Raises:
        CheckpointError: when no checkpoint in the directory is intact.

    Warns:
        UserWarning: as `newest_intact` does.
    """
    target = local_path(path)
    if not os.path.lexists(target):
        replaced = _leftovers(target, _REPLACED)
        if replaced:
            return max(replaced, key=lambda found: found.stat().st_mtime_ns)
    elif not (target / MANIFEST).exists() and find_checkpoints(target):
        newest = newest_intact(target)
        if newest is None:
            raise CheckpointError(f"{target}: none of the checkpoints in this directory is intact.")
        return newest
    return target


def remove(path: str | os.PathLike[str]) -> None:
    """Deletes a checkpoint. It is renamed first: a crash in between leaves no half-deleted one behind.

    Raises:
        CheckpointError: when it cannot be deleted, or is not a checkpoint.
    """
    target = local_path(path)
    _check_replaceable(target)
    doomed = _beside(target, _STAGED)
    try:
        os.rename(target, doomed)
        shutil.rmtree(doomed)
    except OSError as error:
        raise CheckpointError(f"{target}: the checkpoint cannot be deleted: {error}.") from error


def remove_leftovers(directory: str | os.PathLike[str]) -> list[Path]:
    """Deletes what interrupted saves left in a directory of checkpoints; nobody may be saving into it.

    Returns:
        The directories that were deleted.

    Example:
        >>> remove_leftovers("/nowhere")
        []
    """
    folder = local_path(directory)
    if not folder.is_dir():
        return []
    kept = set(find_checkpoints(folder))
    pattern = re.compile(rf"step_\d+(?:{re.escape(_STAGED)}|{re.escape(_REPLACED)})[0-9a-f]+")
    gone = [folder / name for name in sorted(os.listdir(folder)) if pattern.fullmatch(name)]
    gone = [path for path in gone if path not in kept]
    for path in gone:
        shutil.rmtree(path)
    return gone


def staging_path(path: Path, unique: str) -> Path:
    """Where `staged` prepares what will stand at `path`.

    Example:
        >>> staging_path(Path("/runs/best"), "1f")
        PosixPath('/runs/best.tmp-1f')
    """
    return _beside(path, _STAGED, unique)


@contextlib.contextmanager
def staged(path: Path, unique: str) -> Iterator[Path]:
    """An empty directory beside `path` that takes its place when the block ends, and is deleted if it fails.

    Args:
        path: the checkpoint's final place. What stands there stays valid until the new one is complete.
        unique: a suffix that every process of a distributed run shares.

    Raises:
        CheckpointError: when something that is no checkpoint stands at `path`.
        OSError: when the file system refuses.
    """
    _check_replaceable(path)
    staging = staging_path(path, unique)
    path.parent.mkdir(parents=True, exist_ok=True)
    staging.mkdir()
    try:
        yield staging
        _put_in_place(staging, path)
    except BaseException:
        shutil.rmtree(staging, ignore_errors=True)
        raise


def replace_file(path: Path, data: bytes) -> None:
    """Writes a single file; whatever happens, `path` holds the old bytes or the new ones, complete.

    Raises:
        CheckpointError: when the file system refuses; what was there stays.
    """
    staging = _beside(path, _STAGED)
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


def _put_in_place(staging: Path, path: Path) -> None:
    # No portable call swaps two directories: the old one steps aside, and `locate` finds it there if the process
    # dies before the new one has taken its name.
    replaced = None
    if os.path.lexists(path):
        replaced = _beside(path, _REPLACED)
        os.rename(path, replaced)
    try:
        os.rename(staging, path)
    except OSError:
        if replaced is not None:
            os.rename(replaced, path)
        raise
    flush_directory(path.parent)
    for old in _leftovers(path, _REPLACED):
        shutil.rmtree(old, ignore_errors=True)


def _beside(path: Path, mark: str, unique: str | None = None) -> Path:
    return path.with_name(path.name + mark + (unique or uuid.uuid4().hex[:16]))


def _leftovers(path: Path, mark: str) -> list[Path]:
    if not path.parent.is_dir():
        return []
    return [path.with_name(name) for name in os.listdir(path.parent) if name.startswith(path.name + mark)]


def _check_replaceable(path: Path) -> None:
    if not os.path.lexists(path):
        return
    if path.is_symlink() or not path.is_dir():
        raise CheckpointError(f"{path}: a file or a link stands there, not a checkpoint, so it is not touched.")
    foreign = sorted(set(os.listdir(path)) - {MANIFEST, METADATA, ARRAYS})
    if foreign:
        raise CheckpointError(
            f"{path}: the directory holds other things than a checkpoint ({', '.join(foreign[:5])}), "
            "so it is not touched. Name a directory of its own."
        )
