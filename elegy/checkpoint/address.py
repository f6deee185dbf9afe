"""Paths of checkpoints: a local path, or an address on another file system."""

from __future__ import annotations

import dataclasses
import os
import re
from pathlib import Path
from typing import Any

from elegy.errors import CheckpointError
from elegy.lazy import require

_WORD = r"[A-Za-z][A-Za-z0-9+.-]+"
_ADDRESS = re.compile(f"(?:{_WORD}::)*{_WORD}:/")  # one slash: `Path` changes "gs://bucket" to "gs:/bucket"
_PATTERN = re.compile(r"[*?\[\]]")
_PURPOSE = "Reading and writing checkpoints at addresses such as gs://bucket/run"


@dataclasses.dataclass(frozen=True)
class Address:
    """A path on a file system that fsspec supports, such as `gs://bucket/run`.

    `/`, `name`, `str` and `os.fspath` work as for a `Path`.

    Args:
        text: the address, with its protocol.

    Raises:
        CheckpointError: if the text is not an address, or its protocol is unknown.
        ImportError: if fsspec, or its library for the protocol, is not installed.

    Example:
        >>> run = Address("memory://bucket/run/")
        >>> str(run / "step_00000001"), run.name
        ('memory://bucket/run/step_00000001', 'run')
    """

    text: str

    def __post_init__(self) -> None:
        protocol, mark, place = self.text.partition("://")
        if not mark or "::" in self.text:
            raise CheckpointError(
                f"{self.text}: an address is one protocol, `://` and a place, such as gs://bucket/run. Give it as a "
                "string, because `Path` takes a slash out of it, and without caches or archives in between."
            )
        if _PATTERN.search(self.text):
            raise CheckpointError(f"{self.text}: in addresses the letters *?[] are patterns. Choose a name without.")
        fsspec = require("fsspec", _PURPOSE)
        try:
            fsspec.get_filesystem_class(protocol)
        except ValueError as error:
            known = ", ".join(fsspec.available_protocols())
            raise CheckpointError(
                f"{self.text}: no file system has the protocol {protocol!r}. Known: {known}."
            ) from error
        except ImportError as error:
            raise ImportError(f"{self.text} cannot be reached: {error}.") from error
        object.__setattr__(self, "text", f"{protocol}://{place.rstrip('/') or place[:1]}")

    def connect(self) -> tuple[Any, str]:
        """Returns the fsspec file system, and the path on it."""
        return require("fsspec.core", _PURPOSE).url_to_fs(self.text)

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.text.partition("://")[2].rpartition("/")[2]

    @property
    def parent(self) -> Address:
        """The directory that contains this path."""
        return Address(self.text[: len(self.text) - len(self.name)])

    def __truediv__(self, name: str) -> Address:
        between = "" if self.text.endswith("/") else "/"
        return Address(f"{self.text}{between}{name}")

    def __str__(self) -> str:
        return self.text

    def __fspath__(self) -> str:
        return self.text


def path_of(path: str | os.PathLike[str]) -> Path | Address:
    """Converts a path to an absolute local path or an address.

    Raises:
        CheckpointError: if the protocol of an address is unknown, or a path contains a backslash outside of Windows.
        ImportError: if the library for an address is not installed.

    Example:
        >>> path_of("/runs/step_00000001"), path_of("memory://runs")
        (PosixPath('/runs/step_00000001'), Address(text='memory://runs'))
    """
    text = os.fspath(path)
    if _ADDRESS.match(text):
        return Address(text)
    where = Path(text).expanduser().absolute()
    if os.sep != "\\" and "\\" in str(where):  # Orbax treats it as a separator
        raise CheckpointError(f"{where}: a checkpoint's path must not contain a backslash. Choose a name without one.")
    return where


def local_path(path: str | os.PathLike[str]) -> Path:
    """Converts a path to an absolute local path, for files that cannot be written to an address.

    Raises:
        CheckpointError: if the path is an address.

    Example:
        >>> local_path("/runs/weights.safetensors")
        PosixPath('/runs/weights.safetensors')
    """
    text = os.fspath(path)
    if _ADDRESS.match(text):
        raise CheckpointError(
            f"{text}: only checkpoints go to addresses; this is written to and read from mounted file systems. Give a "
            "local or mounted path and copy the finished file."
        )
    return Path(text).expanduser().absolute()
