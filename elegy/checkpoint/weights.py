"""Selects and renames weights by path; reads and writes safetensors files."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from elegy.checkpoint.address import local_path
from elegy.checkpoint.leaves import describe, named_leaves
from elegy.checkpoint.local import replace_file
from elegy.errors import CheckpointError
from elegy.lazy import require
from elegy.types import PyTree

_PURPOSE = "reading and writing safetensors files"
_FROM_SAFETENSORS = {
    "BOOL": "bool", "U8": "uint8", "U16": "uint16", "U32": "uint32", "U64": "uint64",
    "I8": "int8", "I16": "int16", "I32": "int32", "I64": "int64",
    "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "F8_E8M0": "float8_e8m0fnu",
    "F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64", "C64": "complex64",
}  # fmt: skip
_STORABLE = frozenset(_FROM_SAFETENSORS.values())


def flatten(tree: PyTree) -> dict[str, Any]:
    """Returns the leaves of a tree by path.

    Raises:
        CheckpointError: if two leaves have the same path.

    Example:
        >>> flatten({"dense": {"kernel": 1, "bias": 2}})
        {'dense/bias': 2, 'dense/kernel': 1}
    """
    return named_leaves(tree)


def select(flat: Mapping[str, Any], prefix: str, *, keep_prefix: bool = False) -> dict[str, Any]:
    """Returns the leaves below a path.

    Args:
        flat: path -> value.
        prefix: complete components of a path, such as `"params/encoder"`.
        keep_prefix: True to keep the prefix in the returned paths.

    Raises:
        CheckpointError: if no path has the prefix; the message lists the top-level names.

    Example:
        >>> select({"params/w": 1, "params/b": 2, "step": 3}, "params")
        {'w': 1, 'b': 2}
    """
    start = prefix.rstrip("/") + "/"
    found = {path if keep_prefix else path[len(start) :]: leaf for path, leaf in flat.items() if path.startswith(start)}
    if not found:
        top = sorted({path.partition("/")[0] for path in flat})
        raise CheckpointError(f"nothing lies below {prefix!r}. At the top there are: {', '.join(top) or 'no leaves'}.")
    return found


def rename(flat: Mapping[str, Any], mapping: Mapping[str, str] | Callable[[str], str]) -> dict[str, Any]:
    """Renames paths.

    Args:
        flat: path -> value.
        mapping: old -> new, for paths or prefixes of paths (the longest match wins), or a function from a path to its
            new name.

    Raises:
        CheckpointError: if a name in the mapping matches no path, or two leaves would have the same path.

    Example:
        >>> rename({"encoder/w": 1, "encoder/b": 2, "step": 3}, {"encoder": "backbone", "encoder/b": "bias"})
        {'backbone/w': 1, 'bias': 2, 'step': 3}
    """
    new_names = {path: mapping(path) for path in flat} if callable(mapping) else _renamed(flat, mapping)
    renamed: dict[str, Any] = {}
    origin: dict[str, str] = {}
    for path, name in new_names.items():
        if name in renamed:
            raise CheckpointError(f"both {origin[name]!r} and {path!r} would be renamed to {name!r}.")
        renamed[name], origin[name] = flat[path], path
    return renamed


def save_safetensors(
    path: str | os.PathLike[str], flat: Mapping[str, Any], metadata: Mapping[str, str] | None = None
) -> None:
    """Writes arrays to a safetensors file.

    Args:
        path: the file; an existing one is replaced atomically.
        flat: path -> JAX or NumPy array.
        metadata: strings to put into the file's header.

    Raises:
        CheckpointError: listing every value that the format does not support, or if the file cannot be written.
        ImportError: if safetensors is not installed.
    """
    safetensors = require("safetensors.numpy", _PURPOSE)
    problems = [f"{name}: {problem}" for name, value in flat.items() if (problem := _problem(value))]
    if problems:
        raise CheckpointError("safetensors files hold arrays only:\n  " + "\n  ".join(problems))
    host = {name: np.asarray(value, order="C") for name, value in flat.items()}
    replace_file(local_path(path), safetensors.save(host, dict(metadata) if metadata else None))


def load_safetensors(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Reads a safetensors file of any library.

    Args:
        path: the file.

    Returns:
        path -> NumPy array; `fill` puts them into a tree.

    Raises:
        CheckpointError: if the file cannot be read, or is not a valid safetensors file.
        ImportError: if safetensors is not installed.
    """
    safetensors = require("safetensors", _PURPOSE)
    file = local_path(path)
    try:
        return {name: _array(name, entry) for name, entry in safetensors.deserialize(file.read_bytes())}
    except (OSError, ValueError, safetensors.SafetensorError) as error:
        raise CheckpointError(f"{file} cannot be read as safetensors: {error}.") from error


def _renamed(flat: Mapping[str, Any], mapping: Mapping[str, str]) -> dict[str, str]:
    names = {}
    unused = set(mapping)
    for path in flat:
        names[path] = path
        for old in sorted(mapping, key=len, reverse=True):
            if path == old or path.startswith(old + "/"):
                names[path] = mapping[old] + path[len(old) :]
                unused.discard(old)
                break
    if unused:
        raise CheckpointError(f"no path is or lies below {', '.join(sorted(unused))}. There are: {', '.join(flat)}.")
    return names


def _problem(value: Any) -> str | None:
    try:
        leaf = describe(value)
    except TypeError as error:
        return str(error)
    if leaf.kind in ("key", "python") or isinstance(value, jax.ShapeDtypeStruct):
        return f"{leaf} is not an array of numbers"
    return None if leaf.dtype in _STORABLE else f"the format has no {leaf.dtype}"


def _array(name: str, entry: Mapping[str, Any]) -> np.ndarray:
    if entry["dtype"] not in _FROM_SAFETENSORS:
        raise ValueError(f"{name} has the dtype {entry['dtype']}, which NumPy does not know")
    dtype = jax.numpy.dtype(_FROM_SAFETENSORS[entry["dtype"]])
    if math.prod(entry["shape"]) == 0:
        return np.zeros(entry["shape"], dtype)
    return np.frombuffer(bytearray(entry["data"]), dtype).reshape(entry["shape"])
