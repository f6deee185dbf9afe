"""The manifest: the checksums of all files of a checkpoint.

`manifest.json` is written last. It lists every file with its size and SHA-256, every directory, and every
leaf of the saved tree, and carries a checksum of itself, so nothing in the directory can change unnoticed.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
import stat
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from elegy.errors import CheckpointError, CheckpointFormatError

FORMAT = 1
"""The version of the layout that this release writes and reads."""

MANIFEST = "manifest.json"
METADATA = "metadata.json"
ARRAYS = "arrays"

_LIBRARIES = ("elegy", "jax", "numpy", "orbax-checkpoint")


def write_manifest(directory: Path, kind: str, leaves: list[dict[str, Any]]) -> None:
    """Flushes everything below `directory` to the disk, then writes the manifest over it.

    Args:
        directory: the directory with the finished files.
        kind: the kind of checkpoint, such as `"trainer"`.
        leaves: one JSON object for each leaf of the saved tree.

    Raises:
        OSError: if a file cannot be read, flushed or written.
        CheckpointError: if the directory contains a link or a device.
    """
    files, folders = _listing(directory, directory)
    with ThreadPoolExecutor(_hash_threads()) as pool:
        digests = dict(zip(files, pool.map(lambda name: _digest(directory / name, flush=True), files), strict=True))
    body = {
        "format": FORMAT,
        "kind": kind,
        "versions": _versions(),
        "files": {name: {"size": files[name], "sha256": digests[name]} for name in files},
        "directories": folders,
        "leaves": leaves,
    }
    write_flushed(directory / MANIFEST, _encode(body))
    for name in folders:
        flush_directory(directory / name)
    flush_directory(directory)


def read_manifest(directory: Path, where: object = None) -> dict[str, Any]:
    """Reads the manifest of one checkpoint and checks it against its own checksum.

    Args:
        directory: the directory of the checkpoint.
        where: the path for messages, if it is not the directory.

    Raises:
        CheckpointError: if there is no checkpoint, it is incomplete, or the manifest is damaged.
        CheckpointFormatError: if it has another version of the format.
    """
    where = directory if where is None else where
    path = directory / MANIFEST
    try:
        is_file = stat.S_ISREG(os.lstat(path).st_mode)
        data = path.read_bytes() if is_file else b""
    except (FileNotFoundError, NotADirectoryError):
        raise CheckpointError(f"{where}: {_what_is_there(directory)}") from None
    except OSError as error:
        raise CheckpointError(f"{where}: {MANIFEST} cannot be read: {error}.") from error
    if not is_file:
        raise CheckpointError(f"{where}: {MANIFEST} is not a plain file, so it is not read.")
    body = _decode(data)
    if body is None:
        raise CheckpointError(f"{where}: {MANIFEST} is damaged: it does not match its own checksum.")
    if body.get("format") != FORMAT:
        raise CheckpointFormatError(
            f"{where}: the checkpoint has format {body.get('format')!r}, written by elegy "
            f"{body.get('versions', {}).get('elegy')!r}; this release reads format {FORMAT}. "
            "Load it with the release that wrote it."
        )
    return body


def verify_files(directory: Path, manifest: dict[str, Any], where: object = None) -> None:
    """Compares a checkpoint's files with its manifest.

    Args:
        directory: the directory of the checkpoint.
        manifest: the result of `read_manifest`.
        where: the path for messages, if it is not the directory.

    Raises:
        CheckpointError: naming every file that is damaged, truncated, missing or extra.
    """
    where = directory if where is None else where
    try:
        found, folders = _listing(directory, where)
        found.pop(MANIFEST, None)
        expected: dict[str, dict[str, Any]] = manifest["files"]
        problems = [f"{name}: missing" for name in expected if name not in found]
        problems += [f"{name}: not part of the checkpoint" for name in found if name not in expected]
        problems += [f"{name}/: missing" for name in manifest["directories"] if name not in folders]
        problems += [f"{name}/: not part of the checkpoint" for name in folders if name not in manifest["directories"]]
        same_size = []
        for name in expected.keys() & found.keys():
            if found[name] == expected[name]["size"]:
                same_size.append(name)
            else:
                problems.append(f"{name}: holds {found[name]} bytes, {expected[name]['size']} were written")
        with ThreadPoolExecutor(_hash_threads()) as pool:
            digests = pool.map(lambda name: _digest(directory / name), same_size)
            for name, digest in zip(same_size, digests, strict=True):
                if digest != expected[name]["sha256"]:
                    problems.append(f"{name}: its bytes have changed since it was written")
    except OSError as error:
        raise CheckpointError(f"{where}: the checkpoint cannot be read: {error}.") from error
    except (KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{where}: {MANIFEST} does not describe a checkpoint ({error!r}).") from error
    if problems:
        raise CheckpointError(f"{where}: the checkpoint is damaged:\n  " + "\n  ".join(sorted(problems)))


def write_flushed(path: Path, data: bytes) -> None:
    """Writes a file and flushes it to the disk."""
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def flush_directory(path: Path) -> None:
    """Flushes a directory to the disk: without this, a crash may undo a rename."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _encode(body: dict[str, Any]) -> bytes:
    text = json.dumps(body, sort_keys=True)
    checksum = hashlib.sha256(text.encode()).hexdigest()
    return f'{{"body": {text}, "sha256": "{checksum}"}}\n'.encode()


def _decode(data: bytes) -> dict[str, Any] | None:
    """Returns the body, or None if `_encode` does not give exactly these bytes."""
    try:
        body = json.loads(data)["body"]
        return body if isinstance(body, dict) and _encode(body) == data else None
    except (ValueError, TypeError, KeyError, RecursionError):
        return None


def _listing(directory: Path, where: object) -> tuple[dict[str, int], list[str]]:
    """Returns file names with sizes, and directory names, both relative; raises an error for links and devices."""
    files: dict[str, int] = {}
    folders: list[str] = []

    def walk(folder: Path, prefix: str) -> None:
        with os.scandir(folder) as entries:
            found = sorted(entries, key=lambda entry: entry.name)
        for entry in found:
            name = prefix + entry.name
            status = entry.stat(follow_symlinks=False)
            if stat.S_ISDIR(status.st_mode):
                folders.append(name)
                walk(folder / entry.name, name + "/")
            elif stat.S_ISREG(status.st_mode):
                files[name] = status.st_size
            else:
                raise CheckpointError(
                    f"{where}: {name} is a link or a device. A checkpoint holds plain files and directories only, "
                    "so that nothing in it can point out of it."
                )

    walk(directory, "")
    return files, folders


def _digest(path: Path, flush: bool = False) -> str:
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        if flush:
            os.fsync(file.fileno())
    return digest


def _hash_threads() -> int:
    return min(8, os.cpu_count() or 1)


def _versions() -> dict[str, str]:
    return {"python": platform.python_version()} | dict(_installed(_LIBRARIES))


def _installed(names: Iterable[str]) -> Iterable[tuple[str, str]]:
    for name in names:
        try:
            yield name, importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            yield name, "not installed as a package"


def _what_is_there(directory: Path) -> str:
    if not os.path.lexists(directory):
        return "there is no such checkpoint."
    if not directory.is_dir():
        return "this is not a checkpoint: it is not a directory."
    if not os.listdir(directory):
        return "this is not a checkpoint: the directory is empty."
    return f"this is not a finished checkpoint: it holds no {MANIFEST}, which is written last."
