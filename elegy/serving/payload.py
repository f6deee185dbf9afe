"""Reads inputs from the body of a request, and writes outputs: JSON, .npy or .npz."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from elegy.names import path_name
from elegy.types import PyTree

JSON, NPY, NPZ = "application/json", "application/x-npy", "application/x-npz"


class BadRequest(ValueError):
    """The body of a request does not hold the inputs, or not as a file; the message says what it should."""


def read(body: bytes, inputs: PyTree) -> tuple[PyTree, bool]:
    """Reads the inputs.

    Args:
        body: JSON of the form `{"inputs": ...}`, or a .npy or .npz file.
        inputs: a `jax.ShapeDtypeStruct` for each input.

    Returns:
        The arrays, and whether the body was JSON.

    Raises:
        BadRequest: if it does not hold these inputs.
    """
    is_json = not body.startswith((b"\x93NUMPY", b"PK"))
    if is_json:
        try:
            given = json.loads(body)
        except (ValueError, RecursionError) as error:
            raise BadRequest(f"the body is neither JSON nor a .npy or .npz file: {error}") from error
        if not isinstance(given, dict) or set(given) != {"inputs"}:
            raise BadRequest('the body must be a JSON object with one key, such as {"inputs": [[0.1, 0.2]]}.')
        arrays = _matched(given["inputs"], inputs, "inputs")
    else:
        arrays = _of_file(body, inputs)
    lengths = {len(leaf) for leaf in jax.tree.leaves(arrays)}
    if len(lengths) != 1 or lengths == {0}:
        raise BadRequest(f"the inputs must have the same number of rows, at least 1, not {sorted(lengths)}.")
    return arrays, is_json


def _of_file(body: bytes, inputs: PyTree) -> PyTree:
    leaves, treedef = jax.tree_util.tree_flatten_with_path(inputs)
    names = [path_name(path) if path else "inputs" for path, _ in leaves]
    try:
        if body.startswith(b"PK"):
            with zipfile.ZipFile(io.BytesIO(body)) as archive:
                if sum(one.file_size for one in archive.infolist()) > len(body):  # numpy.savez does not compress
                    raise BadRequest("compressed .npz files are not read: write them with numpy.savez.")
        loaded = np.load(io.BytesIO(body), allow_pickle=False)
        found = dict(loaded) if isinstance(loaded, np.lib.npyio.NpzFile) else {names[0]: loaded}
    except BadRequest:
        raise
    except Exception as error:
        raise BadRequest(f"the body is not a .npy or .npz file of arrays: {error}") from error
    if set(found) != set(names):
        raise BadRequest(f"the file must have the arrays {', '.join(names)}, but it has {', '.join(found) or 'none'}.")
    checked = [_array(found[name], leaf, name) for name, (_, leaf) in zip(names, leaves, strict=True)]
    return jax.tree.unflatten(treedef, checked)


def _matched(value: Any, spec: PyTree, name: str) -> PyTree:
    """The arrays of a JSON value: objects are dicts, and lists are lists, tuples, or arrays."""
    children, treedef = jax.tree_util.tree_flatten_with_path(spec, is_leaf=lambda one: one is not spec)
    if len(children) == 1 and children[0][1] is spec:
        return _array(value, spec, name)
    keys: list[Any] = list(range(len(children)))
    if isinstance(spec, Mapping):
        keys = [str(path[0].key) for path, _ in children]
        if not isinstance(value, dict) or set(value) != set(keys):
            raise BadRequest(f"{name} must be an object with the keys {', '.join(map(repr, keys))}.")
    elif not isinstance(value, list) or len(value) != len(children):
        raise BadRequest(f"{name} must be a list of {len(children)}.")
    parts = [_matched(value[key], one, f"{name}/{key}") for key, (_, one) in zip(keys, children, strict=True)]
    return jax.tree.unflatten(treedef, parts)


def _array(value: Any, spec: Any, name: str) -> np.ndarray:
    wanted = f"{name} must be {spec.dtype}[rows,{','.join(map(str, spec.shape[1:]))}]".replace(",]", "]")
    try:
        array = np.asarray(value)
    except ValueError as error:
        raise BadRequest(f"{wanted}, but its rows differ in length: {error}") from error
    if array.shape[1:] != tuple(spec.shape[1:]) or array.ndim != len(spec.shape):
        raise BadRequest(f"{wanted}, but its shape is {list(array.shape)}.")
    kind = np.dtype(spec.dtype)
    integers = np.issubdtype(kind, np.integer) and np.issubdtype(array.dtype, np.integer)
    if integers and array.size and not (np.iinfo(kind).min <= array.min() and array.max() <= np.iinfo(kind).max):
        raise BadRequest(f"{wanted}, but it has values from {array.min()} to {array.max()}.")
    if array.dtype.kind not in "biuf" or not (integers or jax.numpy.can_cast(array.dtype, kind, "same_kind")):
        kinds = {"U": "text", "S": "text", "O": "not all numbers: one is null, for example"}
        raise BadRequest(f"{wanted}, but its values are {kinds.get(array.dtype.kind, array.dtype)}.")
    return array.astype(kind)


def write(outputs: PyTree, *, as_json: bool) -> tuple[bytes, str]:
    """Writes outputs in the form of the request; returns the body and its media type.

    JSON has null in place of NaN and infinity. A .npz file has an array for each output, by its path; NumPy's files
    have no bfloat16, which becomes float32.

    Raises:
        BadRequest: if JSON is asked for and cannot hold the outputs.
    """
    if as_json:
        tree = jax.tree.map(_plain, outputs)
        return json.dumps({"outputs": tree}, allow_nan=False).encode(), JSON
    leaves = jax.tree_util.tree_leaves_with_path(outputs)
    named = {path_name(path): leaf.astype(np.float32) if leaf.dtype.kind == "V" else leaf for path, leaf in leaves}
    file = io.BytesIO()
    if len(named) == 1:
        np.save(file, next(iter(named.values())))
        return file.getvalue(), NPY
    np.savez(file, **named)
    return file.getvalue(), NPZ


def _plain(leaf: np.ndarray) -> Any:
    if leaf.dtype.kind == "c":
        raise BadRequest(
            f"the outputs are {leaf.dtype}, which JSON cannot hold: send the inputs as a .npy or .npz file, which is "
            "answered with one."
        )
    if leaf.dtype.kind not in "biu":
        leaf = leaf.astype(np.float64) if leaf.dtype.itemsize < 4 else leaf  # bfloat16 and float16
        if not np.isfinite(leaf).all():
            return np.where(np.isfinite(leaf), leaf.astype(object), None).tolist()
    return leaf.tolist()
