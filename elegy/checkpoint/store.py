"""Saves a tree of arrays with metadata to one directory, and restores it.

step_00000123/
    arrays/          the arrays, written by Orbax
    metadata.json    the metadata
    manifest.json    the checksums of all files, written last
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np

from elegy.checkpoint.arrays import from_stored, placement, read_arrays, to_stored, write_arrays
from elegy.checkpoint.directory import Opened, opened, place_of
from elegy.checkpoint.leaves import Leaf, describe, mismatch, named_leaves
from elegy.checkpoint.manifest import ARRAYS, METADATA, read_manifest, verify_files, write_flushed, write_manifest
from elegy.checkpoint.match import describe_all, fitting
from elegy.checkpoint.turns import in_turn
from elegy.distributed import from_first, is_first, together
from elegy.errors import CheckpointError
from elegy.types import PyTree

_OF_A_TRAINER = frozenset({"step", "epoch", "skipped_steps", "seed", "history", "logs", "run"})


class _TrainerMetadata(dict[str, Any]):
    """Metadata of the kind `"trainer"`, the default kind of `save`: a trainer's entries may be missing."""

    def __init__(self, entries: dict[str, Any], path: object):
        super().__init__(entries)
        self._path = path

    def __missing__(self, key: str) -> Any:
        if key not in _OF_A_TRAINER:
            raise KeyError(key)
        missing = ", ".join(sorted(_OF_A_TRAINER - self.keys()))
        raise CheckpointError(
            f"{self._path}: this is not the checkpoint of a trainer: its metadata lack {missing}. Read what "
            "`elegy.checkpoint.save` wrote with `elegy.checkpoint.restore`, or weights with `trainer.load_weights`."
        )


@dataclasses.dataclass(frozen=True)
class Snapshot:
    """The checked contents of a checkpoint, which later changes of the caller's objects do not affect.

    Args:
        kind: the kind of checkpoint.
        leaves: the manifest's description of each leaf.
        arrays: the arrays to store, by their name in the store.
        metadata: the encoded metadata.
        step: the step in the metadata, if there is one.
    """

    kind: str
    leaves: list[dict[str, Any]]
    arrays: dict[str, Any]
    metadata: bytes
    step: object = None


def save(path: str | os.PathLike[str], arrays: PyTree, metadata: dict[str, Any], *, kind: str = "trainer") -> None:
    """Writes a checkpoint atomically: after a crash or an error, `path` has the old checkpoint or the new one.

    In a program of several processes, all must call it with the same arguments and a path on a shared file system.

    Args:
        path: a directory for this checkpoint only, or an address such as `gs://bucket/run/step_00000001`. An existing
            checkpoint is replaced after the new one is complete. If another thread is writing to it, this waits for it.
        arrays: any tree of JAX arrays (typed random keys included), NumPy arrays and scalars, and Python scalars.
        metadata: JSON values: dicts with string keys, lists, strings, numbers, booleans and None. Tuples are restored
            as lists.
        kind: the kind of checkpoint; `restore` must be called with the same.

    Raises:
        CheckpointError: if a leaf or a value cannot be stored, or the files cannot be written. An existing checkpoint
            is unchanged then.

    Example:
        >>> import tempfile, numpy as np
        >>> path = tempfile.mkdtemp() + "/step_00000001"
        >>> save(path, {"w": np.ones(2, np.float32), "key": jax.random.key(0)}, {"step": 1})
        >>> restore(path, None)
        ({'key': Array((), dtype=key<fry>) overlaying: [0 0], 'w': array([1., 1.], dtype=float32)}, {'step': 1})
    """
    write(path, snapshot(arrays, metadata, kind=kind))


def restore(
    path: str | os.PathLike[str] | Opened, target: PyTree = None, *, strict: bool = True, kind: str = "trainer"
) -> tuple[PyTree, dict[str, Any]]:
    """Restores a checkpoint, after verifying its checksums.

    Args:
        path: the checkpoint's directory, or a directory of checkpoints, of which the newest intact one is restored.
            Checkpoints at an address are downloaded first.
        target: a tree of arrays, scalars or `jax.ShapeDtypeStruct`. Restored arrays have the sharding of the target's
            (uncommitted if it has none) and its types; weak types become strong. None restores a flat dict, without
            the classes of the saved tree.
        strict: True to require the same paths, shapes and dtypes. False restores the leaves that match, and keeps the
            target's values elsewhere.
        kind: the kind of checkpoint to accept.

    Returns:
        `(arrays, metadata)`: the target's structure with the saved values; without a target, a flat dict of path ->
        NumPy array, typed key or scalar.

    Raises:
        CheckpointError: if there is no checkpoint, or it is damaged, incomplete, of another kind or format, or does
            not match the target; the message lists every file or path. Nothing is cast or reshaped.

    Warns:
        UserWarning: listing the leaves that were not loaded, unless `strict`.
    """
    with opened(path) as found:
        return _read(found, target, strict=strict, kind=kind)


def _read(found: Opened, target: PyTree, *, strict: bool, kind: str) -> tuple[PyTree, dict[str, Any]]:
    manifest = _manifest_of(found, kind)
    with _malformed(found):
        saved = {entry["path"]: Leaf.from_json(entry["leaf"]) for entry in manifest["leaves"]}
        names = {entry["path"]: entry["array"] for entry in manifest["leaves"] if "array" in entry}
    if target is None:
        wanted = dict.fromkeys(saved)
        fits = set(saved)
    else:
        wanted = named_leaves(target)
        fits = fitting(saved, wanted, strict=strict, where=f"the checkpoint {found.path}")
    verify_files(found.directory, manifest, found.path)
    places = {names[p]: placement(saved[p], wanted[p]) for p in wanted if p in fits and saved[p].stored}
    with _malformed(found):
        stored = read_arrays(found.directory / ARRAYS, places) if places else {}
        loaded = {p: from_stored(saved[p], stored.get(names.get(p, "")), wanted[p]) for p in wanted if p in fits}
        if changed := [f"{p}: {text}" for p in loaded if (text := mismatch(saved[p], describe(loaded[p])))]:
            raise CheckpointError(f"{found.path}: {ARRAYS} does not hold what the manifest says: {', '.join(changed)}.")
        metadata = _read_metadata(found.directory)
    leaves = {p: loaded[p] if p in fits else old for p, old in wanted.items()}
    if target is None:
        return leaves, metadata
    return jax.tree.unflatten(jax.tree.structure(target), leaves.values()), metadata


def read_metadata(path: str | os.PathLike[str] | Opened, *, kind: str = "trainer") -> dict[str, Any]:
    """Reads a checkpoint's metadata, after verifying the checksums of the checkpoint.

    Raises:
        CheckpointError: if there is no intact checkpoint of this kind and format. Reading a trainer's entry that is
            missing from the result also raises it.
    """
    with opened(path) as found:
        verify_files(found.directory, _manifest_of(found, kind), found.path)
        with _malformed(found):
            metadata = _read_metadata(found.directory)
            return _TrainerMetadata(metadata, found.path) if kind == "trainer" else metadata


def snapshot(arrays: PyTree, metadata: dict[str, Any], *, kind: str = "trainer") -> Snapshot:
    """Collects the contents of a checkpoint: JAX arrays by reference, NumPy arrays as copies.

    Args:
        arrays: as for `save`; the JAX arrays must not be donated before `write` has returned.
        metadata: as for `save`.
        kind: as for `save`.

    Raises:
        CheckpointError: listing every leaf or value that cannot be stored.
    """
    named = named_leaves(arrays)
    leaves = describe_all(named, "these leaves cannot be stored in a checkpoint")
    abstract = [path for path, value in named.items() if isinstance(value, jax.ShapeDtypeStruct)]
    if abstract:
        raise CheckpointError(f"shapes without values cannot be stored in a checkpoint: {', '.join(abstract)}.")
    encoded = _encode_metadata(metadata)
    entries: list[dict[str, Any]] = []
    stored: dict[str, Any] = {}
    for number, (path, leaf) in enumerate(leaves.items()):
        entry: dict[str, Any] = {"path": path, "leaf": leaf.to_json()}
        if leaf.stored:
            entry["array"] = f"{number:06d}"
            value = to_stored(named[path])
            if isinstance(value, jax.Array):
                value.copy_to_host_async()
            else:
                value = np.array(value)
            stored[entry["array"]] = value
        entries.append(entry)
    return Snapshot(kind, entries, stored, encoded, metadata.get("step"))


def write(path: str | os.PathLike[str], content: Snapshot) -> None:
    """Writes a snapshot as `save` does.

    Raises:
        CheckpointError: if the files cannot be written. An existing checkpoint is unchanged then.
    """
    target = place_of(path)
    try:
        suffix = from_first(np.frombuffer(secrets.token_bytes(8), np.uint8)).tobytes().hex()
        doing = f"writing {target.path}"
        with in_turn(target.path), contextlib.ExitStack() as stack:
            if is_first():
                staging = together(lambda: stack.enter_context(target.staged(suffix, content.step)), doing)
            else:
                staging = together(lambda: target.staging(suffix), doing)
            if content.arrays:
                together(lambda: write_arrays(staging / ARRAYS, content.arrays), doing)
            together(lambda: _finish(staging, content) if is_first() else None, doing)
            together(stack.close, doing)
    except CheckpointError:
        raise
    except Exception as error:
        raise CheckpointError(f"{target.path}: the checkpoint could not be written: {error}") from error


def _finish(staging: Path, content: Snapshot) -> None:
    write_flushed(staging / METADATA, content.metadata)
    write_manifest(staging, content.kind, content.leaves)


def _manifest_of(found: Opened, kind: str) -> dict[str, Any]:
    manifest = read_manifest(found.directory, found.path)
    if manifest.get("kind") != kind:
        raise CheckpointError(
            f"{found.path}: this is a checkpoint of the kind {manifest.get('kind')!r}, but the kind {kind!r} was "
            "requested."
        )
    return manifest


@contextlib.contextmanager
def _malformed(found: Opened) -> Iterator[None]:
    """Converts errors of files with valid checksums (made by another program, disk failure) to a CheckpointError."""
    try:
        yield
    except CheckpointError:
        raise
    except Exception as error:
        raise CheckpointError(f"{found.path}: the checkpoint cannot be read: {error!r}.") from error


def _read_metadata(directory: Path) -> dict[str, Any]:
    return json.loads((directory / METADATA).read_bytes())


def _encode_metadata(metadata: dict[str, Any]) -> bytes:
    problems = json_problems(metadata, "metadata")
    if not isinstance(metadata, dict):
        problems.append(f"metadata: must be a dict, not a {type(metadata).__name__}")
    if problems:
        raise CheckpointError("this metadata cannot be stored as JSON:\n  " + "\n  ".join(problems))
    return json.dumps(metadata).encode()


def json_problems(value: Any, path: str) -> list[str]:
    """Lists the parts of a value that JSON would not give back.

    Args:
        value: nested dicts, lists and tuples.
        path: the name of the value.

    Example:
        >>> json_problems({"width": 64, "rates": [1e-3, 1j]}, "config")
        ["config['rates'][1]: a complex; put arrays into the tree, and numbers as `float(...)`"]
    """
    problems: list[str] = []
    if isinstance(value, dict):
        for key, item in value.items():
            inside = f"{path}[{key!r}]"
            if type(key) is not str:
                problems.append(f"{inside}: the key is a {type(key).__name__}; JSON would make a string of it")
            problems += json_problems(item, inside)
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            problems += json_problems(item, f"{path}[{index}]")
    elif value is not None and type(value) not in (str, int, float, bool):
        problems.append(f"{path}: a {type(value).__name__}; put arrays into the tree, and numbers as `float(...)`")
    return problems
