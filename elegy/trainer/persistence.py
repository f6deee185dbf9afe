"""What a trainer writes to a checkpoint, and how it takes it back."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax

from elegy.checkpoint.directory import locate
from elegy.errors import CheckpointError


def save(trainer: Any, path: str | Path) -> None:
    """Writes state, counters and history."""
    from elegy.checkpoint import store

    if not trainer._initialized:
        raise CheckpointError("there is no state to save yet: fit, or call init_on_batch first.")
    store.save(path, trainer.state, metadata(trainer))


def metadata(trainer: Any) -> dict[str, Any]:
    """The counters and the record of a trainer, fit for JSON."""
    return {
        "step": trainer.step,
        "epoch": trainer.epoch,
        "seed": trainer.seed,
        "module": type(trainer.state).__name__,
        "history": trainer.history.state_dict(),
    }


def restore(trainer: Any, path: str | Path, *, strict: bool) -> None:
    """Reads a checkpoint, or the newest intact one of a directory of them."""
    from elegy.checkpoint import store

    found = locate(path)
    store.read_metadata(found)
    if not trainer._initialized:
        trainer._held = lambda: _load(trainer, found, strict)
        return
    _load(trainer, found, strict)


def _load(trainer: Any, path: Path, strict: bool) -> None:
    from elegy.checkpoint import store

    target = trainer.state
    target = target.replace(_logs=dataclasses.replace(target._logs, pending=())) if target._logs.pending else target
    state, counters = store.restore(path, target, strict=strict)
    trainer._cell.set(jax.tree.map(lambda leaf: leaf, state))
    trainer.step, trainer.epoch = counters["step"], counters["epoch"]
    trainer.history.load_state_dict(counters["history"])
