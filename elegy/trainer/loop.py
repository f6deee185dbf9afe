"""The loops: fit, an epoch, evaluate. Order is behaviour, so the order is on one screen."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from elegy.callbacks.interrupt import Interrupts, handle_interrupts
from elegy.callbacks.skipped import SkippedSteps
from elegy.engine.measures import with_measures
from elegy.engine.step_results import PlainStepResults, StepResults
from elegy.errors import NonFiniteError
from elegy.lazy_logs import LazyLogs
from elegy.loading.chunks import Chunk
from elegy.module.averaging import Weights
from elegy.trainer import rollback
from elegy.trainer.evaluation.evaluations import EvaluationPlan
from elegy.trainer.execution import ExecutionPlan
from elegy.trainer.listeners import Listeners
from elegy.trainer.run import Run, with_added
from elegy.trainer.saving import resume
from elegy.trainer.session import Session
from elegy.waiting import RunInterrupted
from elegy.walltime import current, measured, measured_items


def fit(run: Run) -> None:
    """Trains: epochs of chunks of steps, each epoch followed by its validation.

    A run that stops inside of an epoch (`max_steps`, `max_time`, `stop_training`, a signal) does not end that epoch:
    `on_epoch_end`, and the evaluations before it, follow when a resumed run has trained the rest of it. A signal ends
    the run before and within an evaluation, too; the resumed run begins with that evaluation.
    """
    session = run.session
    session.monitor.begin()
    ended, failure = None, None
    with handle_interrupts(session) as interrupts:
        run.interrupts = interrupts
        try:
            run.emit("on_train_begin", added=run.added)
            resume.tell_resumed(run)
            run.finish_hook()
            while run.going_on():
                run.emit("on_epoch_begin", resumed=run.cursor.batches > 0, added=run.added)
                try:
                    last = _epoch(run)
                except NonFiniteError as error:
                    rollback.roll_back(run, error)
                    run.finish_hook()
                    continue
                due = run.schedule.due_at_end(session.epoch)
                if not run.epoch_ended or (interrupts.interrupted and due):
                    break
                values = _evaluations(run, due)
                logs = _joined(last, run.take_added(), values)
                run.clock.note_when_computed(logs)
                run.emit("on_epoch_end", epoch=run.end_epoch_now(), logs=logs, evaluated=tuple(values))
            run.warn_without_validation()
        except RunInterrupted:  # by a signal, out of a wait for data or a validation; perhaps in another process
            interrupts.end()
        except BaseException as error:  # also a KeyboardInterrupt that a callback or the data raised
            ended = interrupts.ending if interrupts.interrupted else "failed"
            failure = error
            raise
        finally:
            session.interrupted = interrupts.signal
            epoch = session.epoch if run.cursor.batches else max(session.epoch - 1, 0)
            ended = ended or interrupts.ending
            run.emit("on_train_end", epoch=epoch, logs=run.logs, ended=ended, failure=failure)
            session.interrupted = interrupts.signal  # which may have come while the end was being saved


def _epoch(run: Run) -> Mapping[str, float]:
    """Trains for an epoch, or until the run is over; returns the logs of the last step."""
    session, executor, buffer = run.session, run.session.executor, run.session.buffer
    run.clock.begin_epoch()
    stopped = run.cursor.batches > 0 and _evaluated_and_over(run)  # an evaluation that an interrupted run did not end
    # Before the reset, because an iterable may be exhausted.
    chunks = run.training.chunks(buffer, run.part())
    if not run.cursor.batches:
        executor.reset(buffer, "train")
        run.logs = {}
    held: AbstractContextManager[Any] = run.interrupts if executor.compiles(buffer.cls, "train") else nullcontext()
    taken = measured_items(chunks, "data")
    try:
        while not stopped and (chunk := next(taken, None)) is not None:
            _chunk(run, chunk, held)
            stopped = _evaluated_and_over(run)
    finally:
        chunks.close()  # its thread ends now
    if session.monitor.policy in ("raise", "rollback"):
        session.monitor.settle()
    run.epoch_ended = not stopped or run.loader.exhausted(run.cursor)
    return run.logs


def _chunk(run: Run, chunk: Chunk, held: AbstractContextManager[Any]) -> None:
    """Runs the steps of a chunk and calls the callbacks.

    Args:
        run: the run.
        chunk: the batches.
        held: holds a second Ctrl-C back while the state is consumed and its successor not yet in its place.
    """
    session, count = run.session, chunk.count
    selected: Sequence[int] = ()
    begins = False
    added: dict[str, Any] = {}  # what callbacks add before the step
    if run.callbacks.has_batch_hooks["train"]:
        selected = run.callbacks.selected_batches("train", session.step, run.examples, chunk.sizes)
        begins = run.callbacks.listens("on_train_batch_begin")  # then every batch has events
    if begins:
        run.emit("on_train_batch_begin", batch=chunk.first, added=added)
    out: StepResults | PlainStepResults | None = None
    done = 0
    try:
        with held, measured("steps", session.step):
            session.follow_schedule(run.loader)
            out = session.executor.run("train", session.buffer, chunk, session.epoch)
            run.ahead = count
            run.undo.keep()
            run.steps += count
        run.clock.look_at_device(out, count)
        if session.monitor.guards:
            session.monitor.record(out, session.step, session.epoch, session.buffer)
        for k in selected:
            if begins and k:
                run.emit("on_train_batch_begin", batch=chunk.first + k, is_current=False, added=added)
            skipped = SkippedSteps(chunk.sizes[done : k + 1], out, done) if k > done else None
            run.count(chunk.sizes[done : k + 1])
            done = k + 1
            run.keep_logs(out, k, added)
            added = {}
            run.emit(
                "on_train_batch_end",
                batch=chunk.first + k,
                logs=run.logs,
                is_current=k == count - 1,
                added=run.added,
                skipped=skipped,
                _step_logs=functools.partial(out.step_values, k) if session.executor.options.values else None,
            )
    finally:  # the state has seen the whole chunk, even if a callback raised at one of its steps
        if out is not None:
            run.count(chunk.sizes[done:])
            if done < count:
                run.keep_logs(out, count - 1, added)


def _evaluated_and_over(run: Run) -> bool:
    """Runs the evaluations that are due inside of the epoch; returns True if the run ends before the next step.

    Those that are due at the last step of an epoch run with those that follow the epoch.
    """
    due = run.schedule.due() if run.schedule.acts_on_run else ()
    if due and not run.interrupts.interrupted and not run.loader.exhausted(run.cursor):
        values = _evaluations(run, due)
        logs = _joined(run.logs, dict(run.added), values)
        run.clock.note_when_computed(logs)
        run.emit("on_evaluation_end", batch=run.cursor.batches - 1, logs=logs, evaluated=tuple(values))
    return run.over()


def _evaluations(run: Run, due: Sequence[EvaluationPlan]) -> dict[str, Mapping[str, float]]:
    """Evaluates the state on several data sets; returns the values by the beginnings of their names."""
    _finish(run.logs)
    run.schedule.begin()
    values = {
        one.prefix: evaluate(run.session, one.plan, run.listeners, run.interrupts, one.prefix, one.weights)
        for one in due
    }
    run.schedule.done(due)
    return values


def _joined(
    logs: Mapping[str, float], added: Mapping[str, Any], evaluations: Mapping[str, Mapping[str, float]]
) -> LazyLogs:
    """The values of a step, those that callbacks added in its epoch, and those of evaluations."""
    return LazyLogs(
        lambda: {
            **logs,
            **{name: value for name, value in added.items() if name not in logs},
            **{f"{prefix}{name}": v for prefix, values in evaluations.items() for name, v in values.items()},
        },
        lambda: all(getattr(part, "ready", True) is not False for part in (logs, *evaluations.values())),
    )


def evaluate(
    session: Session,
    plan: ExecutionPlan,
    listeners: Listeners,
    interrupts: Interrupts | None = None,
    prefix: str | None = None,
    weights: Weights = "trained",
) -> Mapping[str, float]:
    """Runs the test step over a pass of the data, on a copy of the state; returns the last step's logs.

    Args:
        session: the session.
        plan: how the batches run.
        listeners: the callbacks.
        interrupts: the signal handler of a `fit`; None outside of one.
        prefix: of a fit, the beginning of the names of the values in the logs of the epoch.
        weights: which parameters to evaluate; see `Trainer.evaluate`.

    Raises:
        RunInterrupted: in a validation, after a signal.
    """
    executor = session.executor
    logs: Mapping[str, float] = {}
    added: dict[str, Any] = {}
    failure: BaseException | None = None
    ended = "finished"
    emit = functools.partial(listeners.emit_in_pass, phase="test", plan=plan, added=added, evaluation=prefix)
    with measured("evaluation"):
        try:
            emit("on_test_begin")
            # After the hooks, which may assign the state to evaluate.
            with session.buffer.shared() as fork:
                buffer = with_measures(session.with_weights(fork, weights), plan.measures)
                executor.reset(buffer, "test")
                for chunk in plan.chunks(buffer):
                    out = executor.run("test", buffer, chunk, session.epoch)
                    for k in listeners.callbacks.selected_batches("test", session.step, 0, chunk.sizes):
                        batch = chunk.first + k
                        emit("on_test_batch_begin", batch=batch)
                        emit("on_test_batch_end", batch=batch, logs=with_added(out.logs(k), added))
                    logs = with_added(out.logs(chunk.count - 1), added)
                    if interrupts is not None and interrupts.interrupted:
                        raise RunInterrupted
        except BaseException as error:
            stopped = isinstance(error, RunInterrupted) or (interrupts is not None and interrupts.interrupted)
            failure, ended = error, "interrupted" if stopped else "failed"
            raise
        finally:
            emit("on_test_end", failure=failure, logs=logs, ended=ended)
        _finish(logs)
    return logs


def _finish(logs: Mapping[str, float]) -> None:
    """Waits for the device if the time of steps is measured, so that it is not counted as that of what comes next."""
    if current() is not None and isinstance(logs, LazyLogs):
        _ = logs.ready_at
