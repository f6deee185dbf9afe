"""What a trainer writes to a checkpoint, and how it takes it back."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Literal

import jax
import numpy as np

from elegy import optimizer
from elegy.callbacks import CallbackList, ModelCheckpoint
from elegy.checkpoint import AsyncSaver, store
from elegy.checkpoint.directory import Opened, newest_opened, opened
from elegy.distributed import is_first, together
from elegy.errors import CheckpointError
from elegy.loading.multihost import sharing, with_all_places, with_own_place
from elegy.module.logs import LogBook, empty_log
from elegy.trainer.progress import ProgressBar
from elegy.trainer.run import Run
from elegy.types import PyTree

logger = logging.getLogger("elegy")


def contents(trainer: Any) -> tuple[PyTree, dict[str, Any]]:
    """Everything that a checkpoint of a trainer holds: the state, and the rest in a form fit for JSON.

    Raises:
        CheckpointError: when there is no state yet, or it is ahead of the counters.
        NonFiniteError: when a step before was not finite and the trainer's policy is to act on it: no checkpoint holds
            what came after.
    """
    if not trainer._initialized:
        raise CheckpointError("there is no state to save yet: fit, or call init_on_batch first.")
    if trainer._run is not None and trainer._run.ahead:
        raise CheckpointError(
            f"the state has seen {trainer._run.ahead} steps more than step {trainer.step}, because several run in one "
            "execution: save at its last step, or declare `batch_hooks_read = 'state'` in the callback that saves, so "
            "that every step is an execution of its own."
        )
    if trainer.nonfinite != "skip":
        trainer._monitor.settle()
    state = trainer.state
    logs = state._logs
    metadata = {
        "step": trainer.step,
        "epoch": trainer.epoch,
        "skipped_steps": trainer.skipped_steps,
        "seed": trainer.seed,
        "module": type(state).__name__,
        "history": trainer.history.state_dict(),
        "logs": {
            phase: {name: log.reduce for name, log in book.items()}
            for phase, book in (("train", logs.train), ("test", logs.test))
            if book is not None
        },
        "run": with_all_places(together(lambda: _record_of(trainer), "asking the data for its place")),
    }
    return state, metadata


def _record_of(trainer: Any) -> dict[str, Any] | None:
    return trainer._record if trainer._run is None else record(trainer._run)


def record(run: Run) -> dict[str, Any]:
    """What a later run needs to go on where this one is: counters, cursor, data, callbacks, the kind of loop.

    Raises:
        CheckpointError: when the state of the data cannot be had.
    """
    return _record(run, run.loader.state(run.cursor.batches))


def last_record(run: Run) -> dict[str, Any]:
    """As `record`, of a run that is over, which may never be saved: data that cannot tell its state is counted."""
    try:
        return record(run)
    except CheckpointError:
        return _record(run, run.loader.state(run.cursor.batches, own=False))


def _record(run: Run, data: dict[str, Any] | None) -> dict[str, Any]:
    loader = run.loader
    return {
        "data": data,
        "validation": _place_of_validation(run),
        "counters": run.state_dict(),
        "steps_per_execution": run.training.layout.steps,
        "examples": None if loader.plan is None else loader.plan.size,
        "batch_size": loader.batch_size,
        "shuffle": run.config.shuffle,
        "callbacks": run.callbacks.state_dict(),
    }


def _place_of_validation(run: Run) -> dict[str, Any] | None:
    """Where the iterable of the validation stands; of several processes' shares it is not known."""
    validation = run.validation
    return None if validation is None or run.trainer.strategy.processes > 1 else validation.loader.state(0, own=False)


def save(
    trainer: Any,
    path: str | os.PathLike[str],
    saver: AsyncSaver | None = None,
    then: Callable[[], object] | None = None,
) -> None:
    """Writes a checkpoint: now, or in the background of a saver."""
    if saver is None:
        store.save(path, *contents(trainer))
    else:
        saver.save(path, *contents(trainer), then=then)


Hyperparameters = Literal["saved", "new"]


def restore(
    trainer: Any, path: str | os.PathLike[str], *, strict: bool, hyperparameters: Hyperparameters | None
) -> None:
    """Reads a checkpoint, or the newest intact one of a directory of them; at once, or when the state exists."""
    if hyperparameters not in (None, "saved", "new"):
        raise ValueError(f"hyperparameters={hyperparameters!r}: it must be 'saved', 'new' or None.")
    with opened(path) as found:
        metadata = store.read_metadata(found)
        if trainer._initialized:
            load(trainer, found, metadata, strict=strict, wanted=hyperparameters)
        else:
            trainer._pending = trainer._pending.with_checkpoint(
                lambda: load(trainer, found.path, metadata, strict=strict, wanted=hyperparameters)
            )


def load(
    trainer: Any,
    path: str | os.PathLike[str] | Opened,
    metadata: Mapping[str, Any],
    *,
    strict: bool = True,
    wanted: Hyperparameters | None = None,
) -> None:
    """Replaces the state and the counters by those of a checkpoint.

    The accumulators of the logs are the checkpoint's: the steps that filled them are not known yet where the
    trainer has not run.
    """
    books = {
        phase: {name: empty_log(reduce, trainer.state.losses_and_metrics) for name, reduce in names.items()}
        for phase, names in metadata["logs"].items()
    }
    target = trainer.state.replace(_logs=LogBook(train=books.get("train"), test=books.get("test")))
    state, _ = store.restore(path, target, strict=strict)
    trainer._buffer.set(_with_hyperparameters(state, target, wanted))
    trainer.step, trainer.epoch = metadata["step"], metadata["epoch"]
    trainer._monitor.skipped = metadata["skipped_steps"]
    trainer.history.load_state_dict(metadata["history"])
    trainer._record = with_own_place(metadata["run"])


def _with_hyperparameters(state: Any, before: Any, wanted: Hyperparameters | None) -> Any:
    """A restored state with the hyperparameters of the optimizer that are wanted: those saved, or those before.

    Warns:
        UserWarning: if they differ and nothing was said of which are wanted; those that were saved are used then.
    """
    if state.optimizer is None or wanted == "saved":
        return state
    new, saved = optimizer.hyperparameters(before.optimizer), optimizer.hyperparameters(state.optimizer)
    changed = {path: value for path, value in new.items() if np.any(np.asarray(value) != np.asarray(saved[path]))}
    if not changed:
        return state
    if wanted == "new":
        return state.replace(optimizer=optimizer.with_hyperparameters(state.optimizer, changed))
    values = "; ".join(
        f"{path.rpartition('/')[2]} is {np.asarray(saved[path])} in the checkpoint and {np.asarray(value)} in the "
        "trainer"
        for path, value in changed.items()
    )
    warnings.warn(
        f"the checkpoint's hyperparameters replace those of the optimizer: {values}. "
        "`trainer.restore(path, hyperparameters='new')` keeps the trainer's, 'saved' takes the checkpoint's without "
        "this warning; in a run that resumes, set them in `on_train_begin`.",
        stacklevel=2,
    )
    return state


@contextlib.contextmanager
def resumed_from(resume: Any, callbacks: CallbackList) -> Iterator[Opened | None]:
    """Opens the checkpoint from which a run resumes; `None` for a fresh start.

    Args:
        resume: a path, or `"auto"` for the newest intact checkpoint of the run's `ModelCheckpoint`.
        callbacks: the run's callbacks.

    Raises:
        TypeError: for what is no path.
        ValueError: for `"auto"` without a `ModelCheckpoint`.
        CheckpointError: when a path that was given holds no intact checkpoint.
    """
    if resume is None:
        yield None
        return
    if not isinstance(resume, (str, os.PathLike)):
        raise TypeError(f"resume must be 'auto' or the path of a checkpoint, not {resume!r}.")
    if resume != "auto":
        with opened(resume) as found:
            yield found
        return
    directories = [callback.directory for callback in callbacks if isinstance(callback, ModelCheckpoint)]
    if not directories:
        raise ValueError(
            "resume='auto' looks into the directory of the run's ModelCheckpoint, but there is none among the "
            "callbacks. Add `elegy.callbacks.ModelCheckpoint(directory)`, or give a path."
        )
    with contextlib.ExitStack() as stack:
        newest = [one for where in directories if (one := stack.enter_context(newest_opened(where))) is not None]
        yield max(newest, key=lambda one: one.path.name, default=None)


def resume(run: Run, found: Opened, metadata: Mapping[str, Any], epochs: int | None) -> None:
    """Puts a run that has not begun where a checkpoint left it.

    Args:
        run: the run.
        found: the checkpoint.
        metadata: what it holds beside the state.
        epochs: how many epochs the run has from its beginning; `None` where the configuration says when it ends.

    Raises:
        CheckpointError: when the checkpoint is of another run, or does not fit the state.
    """
    load_run(run, found, metadata)
    run.resumed = found.path
    saved = metadata["run"]
    if saved is not None and run.validation is not None and run.trainer.strategy.processes == 1:
        run.validation.loader.load_state(saved.get("validation"))
    if epochs is not None:
        run.config = dataclasses.replace(run.config, epochs=run.first_epoch + epochs)


def load_run(run: Run, found: Opened, metadata: Mapping[str, Any]) -> None:
    """Puts a run, its data and its callbacks where a checkpoint left them; validation data stays where it is.

    Raises:
        CheckpointError: when the checkpoint is of another run, or does not fit the state.
    """
    check_same_run(run, run.trainer.seed, metadata, found.path)
    load(run.trainer, found, metadata)
    saved = with_own_place(metadata["run"])
    if saved is not None:
        run.load_state_dict(saved["counters"])
        run.loader.load_state(saved["data"])
        run.callbacks.load_state_dict(saved["callbacks"])


def tell_resumed(run: Run) -> None:
    """Says where a resumed run goes on, or that nothing is left of it: in the log, and where `verbose` is not 0."""
    if run.resumed is None:
        return
    trainer = run.trainer
    if run.going_on():
        text = f"resumed from {run.resumed} at step {trainer.step}, in epoch {trainer.epoch + 1}"
    else:
        text = f"resumed from {run.resumed} at step {trainer.step}, where the run ended: nothing is left to train"
    logger.info("%s", text)
    if is_first() and any(isinstance(callback, ProgressBar) for callback in run.callbacks):
        print(text, flush=True)


def check_same_run(run: Run, seed: int, metadata: Mapping[str, Any], path: object) -> None:
    """Checks that a run goes on with the data and the seed of its checkpoint.

    Raises:
        CheckpointError: naming what differs.
    """
    saved = metadata["run"] or {}
    now: dict[str, Any] = {"seed": seed}
    before: dict[str, Any] = {"seed": metadata["seed"]}
    if saved:
        size = None if run.loader.plan is None else run.loader.plan.size
        now |= {"the number of examples": size, "shuffle": run.config.shuffle}
        before |= {"the number of examples": saved["examples"], "shuffle": saved["shuffle"]}
        if saved["data"] is not None:
            now["the number of processes that bring batches"] = jax.process_count()
            before["the number of processes that bring batches"] = sharing(saved)
    wrong = [f"{name} was {before[name]!r}, now it is {now[name]!r}" for name in now if before[name] != now[name]]
    if wrong:
        raise CheckpointError(
            f"the checkpoint {path} is of another run: {'; '.join(wrong)}. Resume with the run's own data and "
            "arguments, or use `trainer.restore` to start a new run from its state."
        )
