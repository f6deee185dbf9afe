"""Finds the safetensors files of a model, whole or in shards, on a disk or in the cache of the Hugging Face Hub."""

from __future__ import annotations

import json
import os
import re
from collections import defaultdict
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from elegy.checkpoint.address import local_path
from elegy.checkpoint.weights import load_safetensors
from elegy.errors import CheckpointError
from elegy.lazy import require
from elegy.names import listed
from elegy.patterns import few

_HUB = "hf://"
_INDEX = ".safetensors.index.json"
_WHOLE, _PARTS = "model.safetensors", "model-*-of-*.safetensors"


def read_weights(
    source: str | os.PathLike[str], *, cache_dir: str | os.PathLike[str] | None = None, local_files_only: bool = False
) -> dict[str, np.ndarray]:
    """Reads the arrays of a model.

    Args:
        source: a safetensors file; the `.safetensors.index.json` of a model in shards; a directory with either; or
            `hf://organisation/name`, `hf://organisation/name@revision` or `hf://organisation/name/file` on the Hugging
            Face Hub.
        cache_dir: the cache of the Hub; the default is that of `huggingface-hub`.
        local_files_only: True to use the cache alone, without a network.

    Returns:
        name -> NumPy array.

    Raises:
        CheckpointError: if a file is missing or damaged, or the index does not match its shards.
        ImportError: if safetensors, or for the Hub huggingface-hub, is not installed.
    """
    text = os.fspath(source)
    where = _from_hub(text, cache_dir, local_files_only) if text.startswith(_HUB) else local_path(source)
    file = _in_directory(where) if where.is_dir() else where
    return _read_shards(file) if file.name.endswith(".json") else load_safetensors(file)


def _in_directory(folder: Path) -> Path:
    for name in (_WHOLE, _WHOLE + ".index.json"):
        if (folder / name).is_file():
            return folder / name
    indices = sorted(folder.glob("*" + _INDEX))
    found = indices or sorted(folder.glob("*.safetensors"))
    if len(found) == 1:
        return found[0]
    what = f"has several models, {few([path.name for path in found])}" if found else "has no safetensors file"
    raise CheckpointError(f"{folder} {what}: give the path of a `.safetensors` file or of a `{_INDEX}`.")


def _read_shards(index: Path) -> dict[str, np.ndarray]:
    """Reads the arrays that an index assigns to its shards."""
    shards: dict[str, list[str]] = defaultdict(list)
    for name, file in _weight_map(index).items():
        shards[file].append(name)
    arrays: dict[str, np.ndarray] = {}
    problems = []
    for file, names in shards.items():
        if not (index.parent / file).is_file():
            problems.append(f"{file} is missing, with {few(names)}")
            continue
        held = load_safetensors(index.parent / file)
        if absent := [name for name in names if name not in held]:
            problems.append(f"{file} does not have {few(absent)}, which the index assigns to it")
        if extra := [name for name in held if name not in names]:
            problems.append(f"{file} has {few(extra)}, which the index does not assign to it")
        arrays |= {name: held[name] for name in names if name in held}
    if problems:
        raise CheckpointError(f"{index} does not match its shards:\n  " + "\n  ".join(problems))
    return arrays


def _weight_map(index: Path) -> dict[str, str]:
    try:
        read = json.loads(index.read_bytes())
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{index} cannot be read as the index of a model in shards: {error}.") from error
    found: Any = read.get("weight_map") if isinstance(read, dict) else None
    if not isinstance(found, dict) or not found or not all(isinstance(file, str) for file in found.values()):
        raise CheckpointError(f"{index} has no `weight_map` from names of arrays to files.")
    if outside := sorted({file for file in found.values() if PurePosixPath(file).name != file or "\\" in file}):
        raise CheckpointError(f"{index} names files outside of its directory: {listed(outside)}.")
    return found


def _from_hub(text: str, cache_dir: str | os.PathLike[str] | None, local_files_only: bool) -> Path:
    """Returns the downloaded file, or the directory of the downloaded snapshot."""
    match = re.fullmatch(r"hf://([\w.-]+/[\w.-]+)(?:@([^/]+))?(?:/(.+))?", text)
    if match is None:
        raise CheckpointError(f"{text}: a model on the Hub is written hf://organisation/name[@revision][/file].")
    hub = require("huggingface_hub", f"reading {text}")
    repository, revision, file = match.groups()
    patterns = [_WHOLE, _WHOLE + ".index.json", _PARTS] if file is None else [file]
    if file is not None and file.endswith(_INDEX):
        patterns.append(file.removesuffix(_INDEX) + "-*.safetensors")
    try:
        folder = hub.snapshot_download(
            repository,
            revision=revision,
            allow_patterns=patterns,
            cache_dir=cache_dir,
            local_files_only=local_files_only,
        )
    except (OSError, ValueError) as error:  # the errors of huggingface_hub are of these types
        raise CheckpointError(f"{text} cannot be read: {error}") from error
    where = Path(folder) / (file or "")
    if not where.exists():
        raise CheckpointError(f"{text} has no such file; there are {few(sorted(os.listdir(folder)))}.")
    return where
