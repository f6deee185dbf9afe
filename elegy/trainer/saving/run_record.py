"""The record of a trainer's run."""

from __future__ import annotations

from typing import Any

import jax

from elegy.names import path_name
from elegy.runs.record import RunRecord, of_history, read
from elegy.trainer.saving.configuration import configuration
from elegy.trainer.session import Session


def parameters(session: Session) -> list[dict[str, Any]]:
    """The path, shape and dtype of each parameter; nothing runs on a device."""
    if not session.initialized:
        return []
    leaves = jax.tree_util.tree_leaves_with_path(session.buffer.struct.get_params())
    return [{"path": path_name(p), "shape": list(leaf.shape), "dtype": str(leaf.dtype)} for p, leaf in leaves]


def run_record(session: Session, module_name: str) -> RunRecord:
    """What is known of the last fit of a trainer: what its folder contains, or its history.

    Args:
        session: the session of the trainer.
        module_name: the name of the module's class.
    """
    folder = session.run_folder
    if folder is not None and folder.path is not None:
        return read(folder.path)
    config = configuration(session, module_name)
    return of_history(
        session.history,
        module_name,
        session.step,
        session.epoch,
        environment={"versions": config.pop("versions")},
        config=config,
        parameters=tuple(parameters(session)),
        status="running" if session.run is not None else "finished",
    )
