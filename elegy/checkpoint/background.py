"""Writes checkpoints in a background thread."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import jax

from elegy.checkpoint import store
from elegy.checkpoint.address import Address, path_of
from elegy.errors import CheckpointError
from elegy.types import PyTree
from elegy.waiting import join

_RUNNING: dict[threading.Thread, Path | Address] = {}
"""The threads that write, and the checkpoints that they write."""


def wait_for_saves(directory: Path | Address) -> None:
    """Waits for the saves to a directory that Ctrl-C left in the background, which another run must not meet.

    Args:
        directory: the directory of the checkpoints.
    """
    for thread, path in list(_RUNNING.items()):
        if directory / path.name == path:
            join(thread)


class AsyncSaver:
    """Writes checkpoints in a background thread, one at a time.

    `save` only collects references and starts the copies from the device, so it blocks for milliseconds. The arrays
    must stay valid until the save is complete: the caller must not donate them. In a program of several processes a
    save runs in the caller's thread, because its collectives must not mix with those of the training loop.

    The next `save`, `wait` or `close` raises the error of a save. Call `wait` or `close` before the program ends, or
    use the object as a context manager.

    Example:
        >>> import tempfile, jax.numpy as jnp
        >>> path = tempfile.mkdtemp() + "/step_00000001"
        >>> with AsyncSaver() as saver:
        ...     saver.save(path, {"w": jnp.ones(3)}, {"step": 1})
        >>> store.restore(path, None)[1]
        {'step': 1}
    """

    def __init__(self) -> None:
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._closed = self._left = False

    def save(
        self,
        path: str | os.PathLike[str],
        arrays: PyTree,
        metadata: dict[str, Any],
        *,
        kind: str = "trainer",
        then: Callable[[], object] | None = None,
    ) -> None:
        """Waits for the last save, then starts to write a checkpoint.

        Args:
            path: as for `elegy.checkpoint.save`.
            arrays: as for `elegy.checkpoint.save`.
            metadata: as for `elegy.checkpoint.save`; copied before the call returns.
            kind: as for `elegy.checkpoint.save`.
            then: a function to call in the background after the checkpoint is complete.

        Raises:
            CheckpointError: if a value cannot be stored, or the last save failed; nothing is written then.
            RuntimeError: after `close`.
        """
        if self._left:
            raise CheckpointError(
                "nothing more is saved: Ctrl-C interrupted the wait for a save that was being written."
            )
        if self._closed:
            raise RuntimeError("this AsyncSaver was closed. Make a new one to save again.")
        self.wait()
        content = store.snapshot(arrays, metadata, kind=kind)
        if jax.process_count() > 1:
            self._run(path, content, then)
            self.wait()
            return
        self._thread = threading.Thread(target=self._run, args=(path, content, then), name="elegy-save")
        _RUNNING[self._thread] = path_of(path)
        self._thread.start()

    def wait(self) -> None:
        """Waits for the last save, unless a KeyboardInterrupt has ended an earlier wait for it.

        Raises:
            CheckpointError: if the last save failed.
            Exception: the exception of its `then`.
            KeyboardInterrupt: if it occurs during the wait. The save goes on in the background.
        """
        if self._thread is not None and not self._left:
            try:
                join(self._thread)
            except KeyboardInterrupt:
                self._left = True
                raise
            self._thread = None
        error, self._error = self._error, None
        if error is not None:
            raise error

    def close(self) -> None:
        """Waits for the last save, and refuses further ones. It may be called twice.

        Raises:
            CheckpointError: if the last save failed.
        """
        self._closed = True
        self.wait()

    def _run(self, path: str | os.PathLike[str], content: store.Snapshot, then: Callable[[], object] | None) -> None:
        try:
            store.write(path, content)
            if then is not None:
                then()
        except BaseException as error:
            self._error = error
        finally:
            _RUNNING.pop(threading.current_thread(), None)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        try:
            self.close()
        except Exception:
            # The error of the block came first, so it is raised.
            if error is None:
                raise
