"""The loops: fit, evaluate, predict. Order is behaviour, so the order is on one screen."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Generator, Iterator, Mapping
from typing import Any

from elegy.callbacks import CallbackList, Event
from elegy.callbacks.interrupt import Interrupts, handle_interrupts
from elegy.engine.state_buffer import StateBuffer
from elegy.errors import NonFiniteError
from elegy.lazy_logs import LazyLogs
from elegy.loading.chunks import Chunk
from elegy.module.levels import level_of
from elegy.trainer import persistence, rollback
from elegy.trainer.execution import ExecutionPlan
from elegy.trainer.outputs import BatchOutputs, Outline, join
from elegy.trainer.run import Run
from elegy.types import PyTree
from elegy.waiting import RunInterrupted


def fit(run: Run) -> None:
    """Trains: epochs of chunks of steps, each epoch followed by its validation.

    A run that stops inside of an epoch (`max_steps`, `max_time`, `stop_training`, a signal) neither validates that
    epoch nor ends it: `on_epoch_end` is called when a resumed run has trained the rest of it. A signal ends the run
    before and within a validation, too.
    """
    trainer = run.trainer
    trainer._monitor.begin()
    ended, failure = None, None
    with handle_interrupts(trainer) as interrupts:
        run.interrupts = interrupts
        try:
            run.emit("on_train_begin")
            persistence.tell_resumed(run)
            while run.going_on():
                run.emit("on_epoch_begin", resumed=run.cursor.batches > 0)
                try:
                    logs = run.epoch()
                except NonFiniteError as error:
                    rollback.roll_back(run, error)
                    continue
                validation = run.validation_now()
                if not run.epoch_ended or (interrupts.interrupted and validation is not None):
                    break
                if validation is not None:
                    logs = _joined(logs, evaluate(trainer, validation, run.callbacks, interrupts))
                run.note_when_computed(logs)
                run.emit("on_epoch_end", epoch=run.end_epoch(), logs=logs)
            run.warn_without_validation()
        except RunInterrupted:  # by a signal, out of a wait for data or a validation; perhaps in another process
            interrupts.end()
        except BaseException as error:  # a KeyboardInterrupt that a callback or the data raised is no end either
            ended = interrupts.ending if interrupts.interrupted else "failed"
            failure = error
            raise
        finally:
            trainer.interrupted = interrupts.signal
            epoch = trainer.epoch if run.cursor.batches else max(trainer.epoch - 1, 0)
            ended = ended or interrupts.ending
            run.emit("on_train_end", epoch=epoch, logs=run.logs, ended=ended, failure=failure)
            trainer.interrupted = interrupts.signal  # which may have come while the end was being saved


def _joined(logs: Mapping[str, float], validation: Mapping[str, float]) -> LazyLogs:
    return LazyLogs(
        lambda: {**logs, **{f"val_{name}": value for name, value in validation.items()}},
        lambda: all(getattr(part, "ready", True) is not False for part in (logs, validation)),
    )


def evaluate(
    trainer: Any, plan: ExecutionPlan, callbacks: CallbackList, interrupts: Interrupts | None = None
) -> Mapping[str, float]:
    """Runs the test step over a pass of the data, on a copy of the state; returns the last step's logs.

    Raises:
        RunInterrupted: in a validation, after a signal.
    """
    executor = trainer._executor
    logs: Mapping[str, float] = {}
    failure: BaseException | None = None
    try:
        _emit(trainer, callbacks, "on_test_begin", "test", plan)
        buffer = trainer._buffer.fork()  # after the hooks, which may assign the state to evaluate
        executor.reset(buffer, "test")
        for chunk in plan.chunks(buffer):
            out = executor.run("test", buffer, chunk, trainer.epoch)
            for k in callbacks.batches_heard("test", trainer.step, 0, chunk.sizes):
                batch = chunk.first + k
                _emit(trainer, callbacks, "on_test_batch_begin", "test", plan, batch=batch)
                _emit(trainer, callbacks, "on_test_batch_end", "test", plan, batch=batch, logs=out.logs(k))
            logs = out.logs(chunk.count - 1)
            if interrupts is not None and interrupts.interrupted:
                raise RunInterrupted
    except BaseException as error:
        failure = error
        raise
    finally:
        _emit(trainer, callbacks, "on_test_end", "test", plan, failure, logs=logs)
    return logs


def predict_all(trainer: Any, plan: ExecutionPlan, callbacks: CallbackList) -> PyTree:
    """Predicts all of the data and joins the outputs of the batches."""
    return join(list(_predictions(trainer, plan, callbacks)))


def predict(trainer: Any, plan: ExecutionPlan, callbacks: CallbackList) -> Iterator[PyTree]:
    """Yields the outputs of each batch, on the host, in the order of the data."""
    with contextlib.closing(_predictions(trainer, plan, callbacks)) as predictions:
        for outputs in predictions:
            yield outputs.tree()


def _predictions(trainer: Any, plan: ExecutionPlan, callbacks: CallbackList) -> Generator[BatchOutputs, None, None]:
    """Yields the outputs of each batch."""
    executor = trainer._executor
    buffer: StateBuffer | None = None
    waiting: list[tuple[tuple[list[Any], Any], Chunk]] = []
    failure: BaseException | None = None
    try:
        _emit(trainer, callbacks, "on_predict_begin", "predict", plan)
        # Lent after the hooks, which may assign the state to predict with; whoever iterates may train in between.
        buffer = trainer._buffer.lend()
        for chunk in plan.chunks(buffer):
            _emit(trainer, callbacks, "on_predict_batch_begin", "predict", plan, batch=chunk.first)
            waiting.append((executor.predict(buffer, chunk), chunk))
            for batch in range(chunk.first, chunk.first + chunk.count):
                if batch > chunk.first:
                    _emit(trainer, callbacks, "on_predict_batch_begin", "predict", plan, batch=batch)
                _emit(trainer, callbacks, "on_predict_batch_end", "predict", plan, batch=batch)
            if len(waiting) > 1:  # the device works on the next chunk while this one is copied
                yield from _outputs(trainer, *waiting.pop(0))
        while waiting:
            yield from _outputs(trainer, *waiting.pop(0))
    except GeneratorExit:  # whoever iterates has seen enough
        raise
    except BaseException as error:
        failure = error
        raise
    finally:
        if buffer is not None:
            buffer.give_back()
        _emit(trainer, callbacks, "on_predict_end", "predict", plan, failure)


def _outputs(trainer: Any, predicted: tuple[list[Any], Any], chunk: Chunk) -> Iterator[BatchOutputs]:
    """The outputs of each batch of a chunk, without padding."""
    leaves, treedef = predicted
    host = trainer.strategy.collect_outputs(leaves)
    single = chunk.kind == "single"
    masks = None if chunk.mask is None else chunk.mask[None] if single else chunk.mask
    outline = outline_of(trainer, chunk.batch)
    for k in range(chunk.count):
        one = host if single else [leaf[k] for leaf in host]
        if masks is not None and not masks[k].all():
            one = [leaf[masks[k]] for leaf in one]
        yield BatchOutputs(one, treedef, outline, chunk.sizes[k])


def outline_of(trainer: Any, inputs: PyTree) -> Callable[[int], Outline] | None:
    """What the module computes from a number of rows; None at the core level, whose step is never traced."""
    if level_of(trainer._buffer.cls, "pred") == "core":
        return None
    return functools.partial(trainer._executor.predicted, trainer._buffer, inputs)


def _emit(
    trainer: Any,
    callbacks: CallbackList,
    hook: str,
    phase: Any,
    plan: ExecutionPlan,
    failure: BaseException | None = None,
    **what: Any,
) -> None:
    if callbacks.listens(hook):
        event = Event(
            trainer=trainer,
            phase=phase,
            step=trainer.step,
            epoch=trainer.epoch,
            steps=plan.loader.steps,
            batch_size=plan.loader.batch_size,
            elapsed=0.0 if trainer._run is None else trainer._run.seconds,
            **what,
        )
        refusal = (
            f"the state was assigned in {hook}, but all batches of one pass run with the same state: assign it in "
            f"on_{phase}_begin, and assign the old one again in on_{phase}_end."
        )
        with trainer._buffer.refusing(refusal if "_batch_" in hook else None):
            callbacks.emit(hook, event, failure)
