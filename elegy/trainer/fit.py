"""How a call of `fit` begins: source, loader, plan, then the loop."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Sequence
from typing import Any

from elegy.callbacks import CallbackList, History, TimeMonitor
from elegy.callbacks.interrupt import interrupt_kept
from elegy.checkpoint import store
from elegy.data import ArraySource, IterableSource, first_batches, split
from elegy.data.columns import Given
from elegy.data.plan import DEFAULT_BATCH_SIZE, EpochPlan
from elegy.data.sources import source_of
from elegy.module.averaging import check_weights
from elegy.runs.folder import RunFolder
from elegy.trainer import checks, loop, rollback
from elegy.trainer.config import FitConfig
from elegy.trainer.evaluation import checks as check_evaluations
from elegy.trainer.evaluation.evaluations import EvaluationPlan, EvaluationSource, evaluation_sources
from elegy.trainer.evaluation.sanity import sanity_check
from elegy.trainer.execution import PhaseRequest, fuse_with
from elegy.trainer.listeners import Listeners
from elegy.trainer.one_fit import one_fit
from elegy.trainer.run import Run
from elegy.trainer.saving import resume
from elegy.trainer.saving.directories import reserved_directories
from elegy.trainer.saving.run_record import parameters
from elegy.trainer.session import Session, UndoOnFailure

Source = ArraySource | IterableSource


def sources(
    session: Session,
    config: FitConfig,
    given: Given,
    class_weight: Any,
    validation_data: Any,
    validation_split: float,
) -> tuple[Source, list[EvaluationSource]]:
    """Reads the data of a fit and of its evaluations.

    Args:
        session: the session; iterables with `set_epoch` receive its epoch.
        config: what was asked for.
        given: the data, with labels and sample weights or their names.
        class_weight: weights by class.
        validation_data: a data set, or a dict of them.
        validation_split: the fraction of the arrays that is kept for the validation.

    Raises:
        ValueError, TypeError: if the data cannot be used.
    """
    source = source_of(given, class_weight=class_weight, epoch=session.epoch, batch_size=config.batch_size)
    examples = isinstance(source, ArraySource) and bool(source.examples)
    evaluations = evaluation_sources(validation_data, config, given.columns, examples)
    if validation_split != 0.0:
        if evaluations:
            raise ValueError("validation_data and validation_split were both given: use one of them.")
        source, rest = split(source, validation_split)
        size, steps, weights = config.validation_batch_size, config.validation_steps, config.validation_weights
        evaluations = [EvaluationSource("val_", rest, config.validation_freq, size, steps, weights)]
    if config.overfit_batches is not None:
        source, same = first_batches(source, config.overfit_batches, config.batch_size or DEFAULT_BATCH_SIZE)
        evaluations = [dataclasses.replace(one, source=same(), batch_size=None, steps=None) for one in evaluations]
    return source, evaluations


def fit(
    session: Session,
    config: FitConfig,
    source: Source,
    evaluations: Sequence[EvaluationSource],
    listeners: Listeners,
    history: History,
) -> None:
    """Trains.

    Args:
        session: the session.
        config: what was asked for.
        source: the data.
        evaluations: that of the evaluations.
        listeners: the callbacks.
        history: records the run; the trainer's from now on.
    """
    if config.check_inputs:
        checks.finite(source, *(one.source for one in evaluations))
    config.check_validation(bool(evaluations))
    for one in evaluations:
        check_weights(session.buffer.form, one.weights, "validation_weights")
        one.check_level(session.buffer.cls)
    callbacks = listeners.callbacks
    fuse = fuse_with(callbacks, config.steps_per_execution, "train")
    values = checks.step_values(callbacks, session.buffer)
    if not config.fast_dev_run:  # it has no checkpoints
        rollback.check(session.monitor.policy, callbacks, source, config.shuffle)
    with (
        one_fit(session),
        reserved_directories(callbacks),
        _measured(callbacks),
        session.executor.asked_for(values),
        UndoOnFailure(session) as undo,
        contextlib.ExitStack() as data,
        contextlib.ExitStack() as preparing,
    ):
        preparing.enter_context(interrupt_kept())
        if (folder := run_folder(callbacks)) is not None:
            folder.begin(config.resume)
        for each in (source, *(one.source for one in evaluations)):
            data.enter_context(each.reading(config.prefetch))
        found = preparing.enter_context(resume.resumed_from(config.resume, callbacks))
        saved = None if found is None else store.read_metadata(found)
        static: tuple[int, ...] | None = None
        if saved is not None and saved["run"] is not None and fuse == "auto":
            fuse = saved["run"]["steps_per_execution"]
            static = tuple(saved["run"].get("static_steps", ()))
        size, drop = config.batch_size, config.drop_remaining
        limit = limited("limit_train", config.limit_train, config.steps_per_epoch, source, size, drop)
        ends = any(one is not None for one in (config.max_steps, config.max_time, *(c.time_budget for c in callbacks)))
        shared: dict[str, Any] = {"finite": config.check_inputs, "copies": session.copies}
        requests = [
            PhaseRequest.of(
                session.buffer,
                "train",
                source,
                what="fit",
                batch_size=size,
                limit=limit,
                fuse=fuse,
                callbacks=callbacks,
                intervals=[one.every for one in evaluations],
                cut=ends or session.microbatches.acts_on_run,
                static=static,
                drop_remaining=drop,
                **shared,
            )
        ]
        for one in evaluations:
            size = one.batch_size
            if size is None and (isinstance(one.source, ArraySource) or one.source.of_rows):
                size = requests[0].loader.batch_size
            requests.append(
                PhaseRequest.of(
                    session.buffer,
                    "test",
                    one.source,
                    what="validation",
                    batch_size=size,
                    limit=limited("limit_validation", config.limit_validation, one.steps, one.source, size),
                    fuse=config.steps_per_execution,
                    measures=one.measures,
                    **shared,
                )
            )
        training, *plans = session.prepare(*requests)
        session.stop_training, session.history = False, history
        # A restored state that was waiting for its module has brought its epoch with it by now.
        ready = [
            EvaluationPlan(one.prefix, one.every, plan, one.weights)
            for one, plan in zip(evaluations, plans, strict=True)
        ]
        check_evaluations.check_owners(training, ready)
        check_evaluations.check_monitors(callbacks, training, ready)
        check_evaluations.warn_of_unused(session.buffer.form, training, ready)
        if config.sanity_check:
            sanity_check(session, ready, config.sanity_check)
        run = session.run = Run(session, config, training, ready, listeners, undo)
        if found is not None and saved is not None:
            resume.resume(run, found, saved)
        preparing.close()
        if folder is not None:
            folder.parameters = parameters(session)
        try:
            for evaluation in ready:
                check_evaluations.warn_of_long_interval(run, evaluation)
            loop.fit(run)
        finally:
            session.run = None  # first: callbacks that are asked for their state may fail
            session.record, session.kept = run.last_record(), callbacks.kept_states()


def _measured(callbacks: CallbackList) -> contextlib.ExitStack:
    """A block in which the callbacks that measure times do so, and the run folder records."""
    stack = contextlib.ExitStack()
    if (folder := run_folder(callbacks)) is not None:
        stack.enter_context(folder.recording())
    for callback in callbacks:
        if isinstance(callback, TimeMonitor):
            stack.enter_context(callback.measure_fit())
    return stack


def run_folder(callbacks: CallbackList) -> RunFolder | None:
    """Returns the run folder among the callbacks."""
    return next((callback for callback in callbacks if isinstance(callback, RunFolder)), None)


def limited(
    name: str,
    limit: float | None,
    steps: int | None,
    source: Source,
    batch_size: int | None,
    drop_remaining: bool = False,
) -> int | None:
    """Returns the largest number of batches of a pass; None for all.

    An iterable may have fewer batches than a limit, also if its length is not known.

    Args:
        name: the name of the limit.
        limit: a number of batches, a fraction of those of the pass, or None.
        steps: the number of batches of the pass without the limit; None for all. More than there are is an error of
            the loader, with the limit, too.
        source: the data.
        batch_size: the number of examples of a batch; None for the default.
        drop_remaining: True to leave out a short last batch.

    Raises:
        ValueError: for a fraction of an iterable without a length.
    """
    if limit is None:
        return steps
    total = None
    if isinstance(source, IterableSource):
        total, source.at_most = source.steps, steps is None
    else:
        total = EpochPlan(source.size, batch_size or DEFAULT_BATCH_SIZE, drop_remaining, what=name).steps
    whole = total if steps is None else steps
    if whole is None and isinstance(limit, float):
        raise ValueError(f"{name}={limit} is a fraction of data without a length: give a number of batches.")
    if whole is None or (total is not None and whole > total):
        return int(limit) if whole is None else whole
    return max(min(int(limit * whole) if isinstance(limit, float) else limit, whole), 1)
