"""How a run goes on from a checkpoint: which one, whether it is of this run, and where it stands."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator, Mapping
from typing import Any

import jax

from elegy.callbacks import CallbackList, ModelCheckpoint
from elegy.checkpoint.background import wait_for_saves
from elegy.checkpoint.directory import Opened, newest_opened, opened
from elegy.distributed import is_first
from elegy.errors import CheckpointError
from elegy.loading.multihost import sharing, with_own_place
from elegy.trainer.population.hyperparameters import equal
from elegy.trainer.progress import ProgressBar
from elegy.trainer.run import Run
from elegy.trainer.saving.persistence import load
from elegy.types import Hyperparameters

logger = logging.getLogger("elegy")


@contextlib.contextmanager
def resumed_from(resume: Any, callbacks: CallbackList) -> Iterator[Opened | None]:
    """Opens the checkpoint from which a run resumes; `None` for a fresh start.

    Before that, it waits for saves to the directories of the run that an earlier one left in the background.

    Args:
        resume: a path, or `"auto"` for the newest intact checkpoint of the run's `ModelCheckpoint`.
        callbacks: the run's callbacks.

    Raises:
        TypeError: if `resume` is not a path.
        ValueError: for `"auto"` without a `ModelCheckpoint`.
        CheckpointError: if a path that was given holds no intact checkpoint.
    """
    checkpoints = [callback for callback in callbacks if isinstance(callback, ModelCheckpoint)]
    directories = [callback.directory for callback in checkpoints if callback.placed]
    for directory in directories:
        wait_for_saves(directory)
    if resume is None:
        yield None
        return
    if not isinstance(resume, (str, os.PathLike)):
        raise TypeError(f"resume must be 'auto' or the path of a checkpoint, not {resume!r}.")
    if resume != "auto":
        with opened(resume) as found:
            yield found
        return
    if not checkpoints:
        raise ValueError(
            "resume='auto' looks into the directory of the run's ModelCheckpoint, but there is none among the "
            "callbacks. Add `elegy.callbacks.ModelCheckpoint(directory)`, make the trainer with `run_dir`, or give a "
            "path."
        )
    with contextlib.ExitStack() as stack:
        newest = [one for where in directories if (one := stack.enter_context(newest_opened(where))) is not None]
        yield max(newest, key=lambda one: one.path.name, default=None)


def resume(run: Run, found: Opened, metadata: Mapping[str, Any]) -> None:
    """Puts a run that has not begun where a checkpoint left it.

    Args:
        run: the run.
        found: the checkpoint.
        metadata: what it holds beside the state.

    Raises:
        CheckpointError: if the checkpoint is of another run, or does not fit the state.
    """
    load_run(run, found, metadata, run.config.hyperparameters)
    run.resumed = found.path
    saved = metadata["run"]
    if saved is not None and run.session.strategy.processes == 1:
        run.schedule.load_places(saved["evaluations"])
    if not run.config.initial_epoch and run.epochs is not None:  # they count from the beginning of the run
        run.end_epoch = run.first_epoch + run.epochs


def load_run(
    run: Run, found: Opened, metadata: Mapping[str, Any], hyperparameters: Hyperparameters | None = None
) -> None:
    """Puts a run, its data and its callbacks where a checkpoint left them; validation data stays where it is.

    Args:
        run: the run.
        found: the checkpoint.
        metadata: what it holds beside the state.
        hyperparameters: as for `Trainer.restore`.

    Raises:
        CheckpointError: if the checkpoint is of another run, or does not fit the state.
    """
    check_same_run(run, metadata, found.path)
    load(run.session, found, metadata, wanted=hyperparameters)
    saved = with_own_place(metadata["run"])
    if saved is not None:
        run.load_state_dict(saved["counters"], saved.get("unfinished"))
        run.loader.load_state(saved["data"])
        run.callbacks.load_state_dict(saved["callbacks"], dict(run.session.kept))
    run.session.kept = {}


def tell_resumed(run: Run) -> None:
    """Says where a resumed run goes on, or that nothing is left of it: in the log, and where `verbose` is not 0."""
    if run.resumed is None:
        return
    session = run.session
    if run.going_on():
        text = f"resumed from {run.resumed} at step {session.step}, in epoch {session.epoch + 1}"
    else:
        text = f"resumed from {run.resumed} at step {session.step}, where the run ended: nothing is left to train"
    logger.info("%s", text)
    if is_first() and any(isinstance(callback, ProgressBar) for callback in run.callbacks):
        print(text, flush=True)


def check_same_run(run: Run, metadata: Mapping[str, Any], path: object) -> None:
    """Checks that a run goes on with the data, the seed and the members of its checkpoint.

    Raises:
        CheckpointError: naming what differs.
    """
    session, saved = run.session, metadata["run"] or {}
    now: dict[str, Any] = {"seed": session.seed}
    before: dict[str, Any] = {"seed": metadata["seed"]}
    if session.strategy.maps_members:
        for name in ("seeds", "hyperparameters"):
            now[f"the {name} of the members"] = (session.config or {}).get(name)
            before[f"the {name} of the members"] = (metadata.get("config") or {}).get(name)
    if saved:
        size = None if run.loader.plan is None else run.loader.plan.size
        now |= {"the number of examples": size, "shuffle": run.config.shuffle}
        before |= {"the number of examples": saved["examples"], "shuffle": saved["shuffle"]}
        if saved["data"] is not None:
            now["the number of processes that bring batches"] = jax.process_count()
            before["the number of processes that bring batches"] = sharing(saved)
    wrong = [
        f"{name} was {before[name]!r}, now it is {now[name]!r}" for name in now if not equal(before[name], now[name])
    ]
    if wrong:
        raise CheckpointError(
            f"the checkpoint {path} is of another run: {'; '.join(wrong)}. Resume with the run's own data and "
            "arguments, or use `trainer.restore` to start a new run from its state."
        )
