"""Going back to the last good checkpoint, and on from there with other data."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from elegy.callbacks import CallbackList, ModelCheckpoint
from elegy.checkpoint import Address, is_intact, store
from elegy.checkpoint.directory import opened
from elegy.data import ArraySource
from elegy.errors import NonFiniteError
from elegy.trainer.run import Run
from elegy.trainer.saving import resume

logger = logging.getLogger("elegy")

MOST = 3
"""How often a run goes back to one checkpoint."""


def check(policy: str, callbacks: CallbackList, source: Any, shuffle: bool) -> None:
    """Checks that a run could go back.

    Raises:
        ValueError: if it has no checkpoints, or no other order of the data.
    """
    if policy != "rollback":
        return
    if not any(isinstance(callback, ModelCheckpoint) for callback in callbacks):
        raise ValueError(
            "nonfinite='rollback' goes back to a checkpoint of the run's ModelCheckpoint, but there is none among the "
            "callbacks. Add `elegy.callbacks.ModelCheckpoint(directory)`, or use 'skip' or 'raise'."
        )
    if not shuffle or not isinstance(source, ArraySource):
        raise ValueError(
            "nonfinite='rollback' goes on with another order of the data, which takes arrays and `shuffle=True`. "
            "Use 'skip' or 'raise'."
        )


def roll_back(run: Run, error: NonFiniteError) -> None:
    """Puts a run back where its newest intact checkpoint left it; the examples after that come in a new order.

    Args:
        run: the run.
        error: what is wrong.

    Raises:
        NonFiniteError: the same error, if the policy is another, there is no checkpoint, or the run was there
            several times already.
    """
    session = run.session
    if session.monitor.policy != "rollback":
        raise error
    session.monitor.begin()
    path = _newest(run.callbacks)
    if path is None:
        error.add_note("There is no checkpoint to go back to yet.")
        raise error
    run.rollbacks[path.name] = run.rollbacks.get(path.name, 0) + 1
    if run.rollbacks[path.name] > MOST:
        error.add_note(f"The run went back to {path} {MOST} times, each time with another order of the data.")
        raise error
    logger.warning("%s The run goes back to %s and on with a new order of the data.", error, path)
    reorders = run.reorders
    with opened(path) as found:
        wanted = run.config.hyperparameters if path == run.resumed else "saved"
        resume.load_run(run, found, store.read_metadata(found), wanted)
    run.reorders = [*reorders, (session.epoch, run.cursor.examples)]


def _newest(callbacks: CallbackList) -> Path | Address | None:
    found: list[Path | Address] = []
    for callback in callbacks:
        if isinstance(callback, ModelCheckpoint):
            callback.wait()
            found.extend(callback.paths)
    return next((path for path in sorted(found, key=lambda path: path.name, reverse=True) if is_intact(path)), None)
