"""Saves a whole object to one file with cloudpickle. Load only files that you trust."""

from __future__ import annotations

import hashlib
import os
from typing import Any

import cloudpickle

from elegy.checkpoint.address import local_path
from elegy.checkpoint.local import replace_file
from elegy.errors import CheckpointError

_MAGIC = b"elegy pickle 1\n"
_HEADER = len(_MAGIC) + 64 + 1


def save_pickle(path: str | os.PathLike[str], obj: Any) -> None:
    """Writes a whole object, its classes and functions included, to one file.

    Args:
        path: the file; an existing one is replaced atomically.
        obj: any object that cloudpickle can pickle.

    Raises:
        CheckpointError: if the object cannot be pickled, or the file cannot be written.

    Example:
        >>> import tempfile
        >>> path = tempfile.mkdtemp() + "/model.pkl"
        >>> save_pickle(path, {"a": 1})
        >>> load(path, allow_code=True)
        {'a': 1}
    """
    try:
        payload = cloudpickle.dumps(obj)
    except Exception as error:
        raise CheckpointError(f"a {type(obj).__name__} cannot be pickled: {error!r}.") from error
    checksum = hashlib.sha256(payload).hexdigest().encode()
    replace_file(local_path(path), _MAGIC + checksum + b"\n" + payload)


def load(path: str | os.PathLike[str], *, allow_code: bool = False) -> Any:
    """Reads an object that `save_pickle` wrote.

    Args:
        path: the file.
        allow_code: must be True: loading a pickle can run any code, so load only files that you trust.

    Raises:
        CheckpointError: without `allow_code=True`, before the file is opened; or if the path is a directory, or the
            file cannot be read, was not written by `save_pickle`, is damaged, or needs a library that is missing.

    Example:
        >>> load("model.pkl")
        Traceback (most recent call last):
        ...
        elegy.errors.CheckpointError: model.pkl was not loaded: ...
    """
    if os.path.isdir(path):
        raise CheckpointError(
            f"{os.fspath(path)} is a directory, but `load` reads the one file that `save_pickle` wrote. A checkpoint, "
            "or a directory of them, goes into a trainer of the same module: `trainer.restore(path)`, or "
            "`trainer.load_weights(path)` for its weights alone."
        )
    if allow_code is not True:
        raise CheckpointError(
            f"{os.fspath(path)} was not loaded: it is a pickle, and loading one runs whatever code its author put into "
            "it. If you trust its author, pass `allow_code=True`; otherwise ask for a checkpoint (`trainer.save`), "
            "which runs nothing."
        )
    file = local_path(path)
    try:
        data = file.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{file} cannot be read: {error}.") from error
    if not data.startswith(_MAGIC):
        raise CheckpointError(f"{file} was not written by `save_pickle`.")
    payload = memoryview(data)[_HEADER:]
    if hashlib.sha256(payload).hexdigest().encode() + b"\n" != data[len(_MAGIC) : _HEADER]:
        raise CheckpointError(f"{file} is damaged: its bytes have changed since it was written.")
    try:
        return cloudpickle.loads(payload)
    except Exception as error:
        raise CheckpointError(f"{file} cannot be loaded here: {error!r}.") from error
