"""The loops: fit, evaluate, predict. Order is behaviour, so the order is on one screen."""

from __future__ import annotations

import dataclasses
import itertools
import logging
import time
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

from elegy.callbacks import CallbackList, Event
from elegy.callbacks.event import LazyLogs
from elegy.callbacks.interrupt import handle_interrupts
from elegy.data import ArraySource, EpochPlan, IterableSource, epoch_permutation, rows, take_rows, unpack
from elegy.module.levels import level_of
from elegy.module.masking import can_mask
from elegy.trainer import checks
from elegy.trainer.cell import StateCell
from elegy.trainer.feed import Chunk, Form, array_chunks, iterable_chunks, structure
from elegy.trainer.fusing import steps_per_execution
from elegy.trainer.program import CompiledPhase
from elegy.trainer.runner import Runner
from elegy.types import Batch, PyTree

logger = logging.getLogger("elegy")

RESIDENT_BYTES = 256 * 2**20
"""In-memory data up to this size is kept on the device."""


@dataclasses.dataclass(frozen=True)
class FitPlan:
    """What a call of `fit` asked for, checked."""

    epochs: int
    max_steps: int | None = None
    max_time: float | None = None
    batch_size: int | None = None
    steps_per_epoch: int | None = None
    shuffle: bool = True
    drop_remaining: bool = False
    validation: ArraySource | IterableSource | None = None
    validation_batch_size: int | None = None
    validation_steps: int | None = None
    validation_freq: int = 1
    steps_per_execution: int | str = "auto"
    check_inputs: bool = False


class Feeder:
    """Gives one source's batches to one phase, pass after pass.

    Args:
        runner: runs the steps.
        phase: the phase that is fed.
        source: where batches come from.
        batch_size: rows of a batch, for arrays.
        limit: how many batches a pass has at most.
        drop_remaining: whether a short last batch is left out.
        what: the call, for messages.
        fuse: how many steps go into one execution, or `"auto"`.
    """

    def __init__(
        self,
        runner: Runner,
        phase: CompiledPhase,
        source: ArraySource | IterableSource,
        *,
        batch_size: int | None,
        limit: int | None,
        what: str,
        drop_remaining: bool = False,
        fuse: int | str = 1,
    ):
        self.runner, self.phase, self.source, self.limit, self.fuse = runner, phase, source, limit, fuse
        self.plan: EpochPlan | None = None
        if isinstance(source, ArraySource):
            self.plan = EpochPlan(source.size, batch_size, drop_remaining, limit, what)  # type: ignore[arg-type]
        elif batch_size is not None:
            raise ValueError(
                f"batch_size={batch_size} was given to {what} with an iterable, whose batches have their size already."
            )
        self._form: Form | None = None
        self._placed: PyTree = None
        self._pass: Iterator[Batch] | None = None
        self._first: Batch | None = None

    @property
    def steps(self) -> int | None:
        """The number of batches in a pass, where it is known."""
        if self.plan is not None:
            return self.plan.steps
        return self.limit or (None if self.source.one_shot else self.source.steps)  # type: ignore[union-attr]

    @property
    def batch_size(self) -> int | None:
        """The rows of a full batch, where they are known."""
        return None if self.plan is None else self.plan.batch_size

    def first_batch(self) -> Batch:
        """The first batch of the next pass; it will be given again."""
        if self.plan is not None:
            assert isinstance(self.source, ArraySource)
            batch = self.source.slice(*self.plan.batch_rows(0))
        else:
            if self._pass is None:
                self._pass = self.source.batches(self.limit)  # type: ignore[union-attr]
                self._first = next(self._pass)
            batch = self._first
        return unpack(batch)[0] if self.phase == "pred" else batch

    def chunks(self, cell: StateCell, order: np.ndarray | None, limit: int | None) -> Iterator[Chunk]:
        """One pass over the data, at most `limit` batches."""
        form = self._form or self._decide(cell)
        if self.plan is not None:
            assert isinstance(self.source, ArraySource)
            source = self._inputs_of(self.source)
            count = self.plan.steps if limit is None else min(limit, self.plan.steps)
            if form.resident and self._placed is None:
                # A copy, because on the CPU a placed array may share the memory of the user's.
                copies = jax.tree.map(lambda a: np.array(a) if isinstance(a, np.ndarray) else a, source.batch)
                self._placed = self.runner.strategy.place(copies, "whole")
            return array_chunks(source, self.plan, order, form, self.runner.strategy, self._placed, count)
        self.first_batch()
        assert self._pass is not None
        batches = itertools.chain([self._first], self._pass)
        self._pass = None
        checked = self._checked(batches) if level_of(cell.cls, self.phase) != "core" else batches
        return iterable_chunks(itertools.islice(checked, limit), form, self.runner.strategy)

    def _checked(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        first = structure(self._first)
        for number, batch in enumerate(batches):
            checks.same_form(first, batch, number)
            yield unpack(batch)[0] if self.phase == "pred" else batch

    def _inputs_of(self, source: ArraySource) -> ArraySource:
        if self.phase != "pred":
            return source
        return dataclasses.replace(source, batch=unpack(source.batch)[0])

    def prepare(self, cell: StateCell) -> None:
        """Chooses the form of the batches and traces the step, so that mistakes show before anything is compiled."""
        form = self._decide(cell)
        if self.runner.compiles(cell.cls, self.phase):
            struct = structure(self.first_batch())
            mask = None
            if form.masked and self.phase != "pred":
                mask = jax.ShapeDtypeStruct((rows(self.first_batch()),), np.dtype(bool))
            self.runner.program(self.phase, cell, struct, mask)

    def _decide(self, cell: StateCell) -> Form:
        """Chooses the form of the batches: once, from the program and the data."""
        self._form = Form()
        if self.runner.compiles(cell.cls, self.phase):
            first = self.first_batch()
            struct = structure(first)
            short = self.plan is None or self.plan.size % self.plan.batch_size != 0
            masked = short and can_mask(cell.struct, self.phase, struct)
            steps, resident = 1, False
            if self.phase != "pred":
                steps = self._steps(cell, struct, masked)
                resident = (
                    steps > 1
                    and isinstance(self.source, ArraySource)
                    and (self.source.nbytes <= RESIDENT_BYTES or not self.source.on_host)
                )
            self._form = Form(steps, masked, resident)
        return self._form

    def _steps(self, cell: StateCell, struct: PyTree, masked: bool) -> int:
        if isinstance(self.fuse, int):
            return self.fuse
        if self.plan is None:
            return 1
        count = self.plan.batch_size
        mask = jax.ShapeDtypeStruct((count,), np.dtype(bool)) if masked else None
        program = self.runner.program(self.phase, cell, struct, mask)
        steps = steps_per_execution(program.closed, jax.default_backend())
        steps = min(steps, 2 ** (self.plan.steps - 1).bit_length())
        logger.info("%s: %d steps in one execution", self.phase, steps)
        return steps


def fuse_with(callbacks: CallbackList, fuse: int | str, phase: str) -> int | str:
    """Turns fusing off where callbacks look at the state after each step.

    Args:
        callbacks: the callbacks of the call.
        fuse: what was asked for, a number of steps or `"auto"`.
        phase: `"train"` or `"test"`.
    """
    readers = callbacks.state_readers(phase, undeclared=fuse == "auto")
    if readers and fuse != 1:
        level = logging.INFO if fuse == "auto" else logging.WARNING
        logger.log(
            level,
            "steps_per_execution=%r: every step runs in an execution of its own, because the batch hooks of %s may "
            "read the state after each step. Declare `batch_hooks_read = 'logs'` where they do not.",
            fuse,
            ", ".join(readers),
        )
        return 1
    return fuse


def fit(trainer: Any, feeder: Feeder, plan: FitPlan, callbacks: CallbackList) -> None:
    """Trains: epochs of chunks of steps, each epoch followed by its validation."""
    run = _Run(trainer, feeder, plan, callbacks)
    with handle_interrupts(trainer) as interrupts:
        try:
            run.emit("on_train_begin")
            while trainer.epoch < plan.epochs and not run.over():
                run.emit("on_epoch_begin")
                logs = run.epoch()
                if trainer.stop_training and interrupts.interrupted:
                    break
                ended = run.epoch_ended
                if plan.validation is not None and (trainer.epoch + 1) % plan.validation_freq == 0:
                    logs = _joined(logs, run.validate())
                index = trainer.epoch
                trainer.epoch += ended
                run.emit("on_epoch_end", epoch=index, logs=logs)
        finally:
            run.emit("on_train_end", epoch=max(trainer.epoch - 1, 0))


class _Run:
    """One call of `fit`: its counters and its events."""

    def __init__(self, trainer: Any, feeder: Feeder, plan: FitPlan, callbacks: CallbackList):
        self.trainer, self.feeder, self.plan, self.callbacks = trainer, feeder, plan, callbacks
        self.started, self.steps, self.examples = time.monotonic(), 0, 0
        self.epoch_ended = False
        self._validation: Feeder | None = None

    def emit(self, hook: str, *, epoch: int | None = None, batch: int | None = None, logs: Any = None) -> None:
        if not self.callbacks.listens(hook) and hook not in ("on_train_begin", "on_train_end"):
            return
        event = Event(
            trainer=self.trainer,
            phase="train",
            step=self.trainer.step,
            epoch=self.trainer.epoch if epoch is None else epoch,
            batch=batch,
            logs=logs if logs is not None else {},
            epochs=self.plan.epochs,
            steps=self.feeder.steps,
            batch_size=self.feeder.batch_size,
            examples=self.examples,
            seconds=time.monotonic() - self.started,
            validates=self.plan.validation is not None,
        )
        self.callbacks.emit(hook, event)

    def over(self) -> bool:
        """Whether the run ends before the next step."""
        plan = self.plan
        return (
            self.trainer.stop_training
            or (plan.max_steps is not None and self.steps >= plan.max_steps)
            or (plan.max_time is not None and time.monotonic() - self.started >= plan.max_time)
        )

    def epoch(self) -> Mapping[str, float]:
        """Trains for an epoch, or until the run is over; returns the logs of the last step."""
        trainer, feeder, plan = self.trainer, self.feeder, self.plan
        runner, cell = trainer._runner, trainer._cell
        order = None
        if plan.shuffle and isinstance(feeder.source, ArraySource):
            order = epoch_permutation(trainer.seed, trainer.epoch, feeder.source.size)
        runner.reset(cell, "train")
        limit = None if plan.max_steps is None else plan.max_steps - self.steps
        chunks = feeder.chunks(cell, order, limit)
        logs: Mapping[str, float] = {}
        listens = any(self.callbacks.listens(f"on_train_batch_{when}") for when in ("begin", "end"))
        self.epoch_ended = True
        done = 0
        try:
            for chunk in chunks:
                if listens:
                    self.emit("on_train_batch_begin", batch=chunk.first)
                out = runner.run("train", cell, chunk, trainer.epoch)
                for k, size in enumerate(chunk.sizes):
                    trainer.step += 1
                    self.examples += size
                    if listens:
                        logs = out.logs(k)
                        if k:
                            self.emit("on_train_batch_begin", batch=chunk.first + k)
                        self.emit("on_train_batch_end", batch=chunk.first + k, logs=logs)
                self.steps += chunk.count
                done += chunk.count
                logs = out.logs(chunk.count - 1)
                if self.over():
                    self.epoch_ended = done == feeder.steps
                    break
            else:
                self.epoch_ended = limit is None or feeder.steps is None or done >= feeder.steps
        finally:
            close = getattr(chunks, "close", None)
            if close is not None:
                close()
        return logs

    def validate(self) -> Mapping[str, float]:
        """Evaluates the validation data."""
        plan = self.plan
        assert plan.validation is not None
        if self._validation is None:
            self._validation = Feeder(
                self.trainer._runner,
                "test",
                plan.validation,
                batch_size=plan.validation_batch_size or (self.feeder.batch_size if self._array_validation() else None),
                limit=plan.validation_steps,
                what="validation",
                fuse=plan.steps_per_execution,
            )
        return evaluate(self.trainer, self._validation, self.callbacks)

    def _array_validation(self) -> bool:
        return isinstance(self.plan.validation, ArraySource)


def _joined(logs: Mapping[str, float], validation: Mapping[str, float]) -> LazyLogs:
    return LazyLogs(lambda: {**logs, **{f"val_{name}": value for name, value in validation.items()}})


def _emit(trainer: Any, callbacks: CallbackList, hook: str, phase: Any, feeder: Feeder, **what: Any) -> None:
    if callbacks.listens(hook):
        event = Event(
            trainer=trainer,
            phase=phase,
            step=trainer.step,
            epoch=trainer.epoch,
            steps=feeder.steps,
            batch_size=feeder.batch_size,
            **what,
        )
        callbacks.emit(hook, event)


def evaluate(trainer: Any, feeder: Feeder, callbacks: CallbackList) -> Mapping[str, float]:
    """Runs the test step over a pass of the data, on a copy of the state; returns the last step's logs."""
    runner = trainer._runner
    cell = trainer._cell.fork()
    runner.reset(cell, "test")
    logs: Mapping[str, float] = {}
    listens = any(callbacks.listens(f"on_test_batch_{when}") for when in ("begin", "end"))
    _emit(trainer, callbacks, "on_test_begin", "test", feeder)
    try:
        for chunk in feeder.chunks(cell, None, None):
            out = runner.run("test", cell, chunk, trainer.epoch)
            for k in range(chunk.count if listens else 0):
                batch = chunk.first + k
                _emit(trainer, callbacks, "on_test_batch_begin", "test", feeder, batch=batch)
                _emit(trainer, callbacks, "on_test_batch_end", "test", feeder, batch=batch, logs=out.logs(k))
            logs = out.logs(chunk.count - 1)
    finally:
        _emit(trainer, callbacks, "on_test_end", "test", feeder, logs=logs)
    return logs


def predict(trainer: Any, feeder: Feeder, callbacks: CallbackList) -> Iterator[PyTree]:
    """Yields the outputs of each batch, on the host, in the order of the data."""
    runner = trainer._runner
    cell = trainer._cell.fork()
    waiting: list[tuple[PyTree, Chunk]] = []
    _emit(trainer, callbacks, "on_predict_begin", "predict", feeder)
    try:
        for chunk in feeder.chunks(cell, None, None):
            _emit(trainer, callbacks, "on_predict_batch_begin", "predict", feeder, batch=chunk.first)
            waiting.append((runner.predict(cell, chunk), chunk))
            _emit(trainer, callbacks, "on_predict_batch_end", "predict", feeder, batch=chunk.first)
            if len(waiting) > 1:  # the device works on the next batch while this one is copied
                yield _outputs(runner, *waiting.pop(0))
        while waiting:
            yield _outputs(runner, *waiting.pop(0))
    finally:
        _emit(trainer, callbacks, "on_predict_end", "predict", feeder)


def _outputs(runner: Runner, outputs: PyTree, chunk: Chunk) -> PyTree:
    host = runner.strategy.collect_outputs(outputs)
    if chunk.mask is None or chunk.mask.all():
        return host
    return take_rows(host, chunk.sizes[0])
