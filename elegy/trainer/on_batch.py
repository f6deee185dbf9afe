"""One step on one batch, for a loop of the user's own."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from elegy.data import pack, unpack
from elegy.data.batch import rows
from elegy.data.columns import Given
from elegy.engine.state_buffer import StateBuffer
from elegy.loading.chunks import Chunk, structure
from elegy.trainer import checks
from elegy.trainer.evaluation import predictions
from elegy.trainer.evaluation.outputs import BatchOutputs
from elegy.trainer.nonfinite import check_level
from elegy.trainer.one_batch import batch_of, inputs_of
from elegy.trainer.one_fit import not_in_fit
from elegy.trainer.session import Session
from elegy.types import Batch, PyTree
from elegy.waiting import no_wait


def init(session: Session, given: Given) -> None:
    """Makes the first state; see `Trainer.init_on_batch`."""
    if session.run is not None:
        raise RuntimeError(
            "the state cannot be made anew while fit runs: call init_on_batch before or after it, or assign "
            "another state, `trainer.state = trainer.state.replace(...)`."
        )
    checks.jit_enabled(session.buffer, "train")
    session.begin_anew(batch_of("init_on_batch", given))


def train(session: Session, given: Given) -> Mapping[str, float]:
    """Takes a training step; see `Trainer.train_on_batch`."""
    not_in_fit(session, "train_on_batch")
    batch = batch_of("train_on_batch", given)
    check_level(session.monitor.policy, session.buffer)
    checks.accumulation(session.accumulate, session.buffer)
    session.follow_schedule()
    buffer, chunk = _ready(session, "train", batch), _chunk(session, batch)
    with no_wait():  # the data of another trainer's fit may be made here, and a signal end the wait for it
        out = session.executor.run("train", buffer, chunk, session.epoch)
        session.step += 1
    if session.monitor.guards:
        session.monitor.record(out, session.step - 1, session.epoch, buffer)
        if session.monitor.policy != "skip":
            session.monitor.settle()
    return out.logs(0)


def test(session: Session, given: Given) -> Mapping[str, float]:
    """Evaluates a batch; see `Trainer.test_on_batch`."""
    batch = batch_of("test_on_batch", given)
    with _ready(session, "test", batch).shared() as buffer:
        session.executor.reset(buffer, "test")
        return session.executor.run("test", buffer, _chunk(session, batch), session.epoch).logs(0)


def predict(session: Session, given: Given) -> PyTree:
    """Computes the outputs for a batch; see `Trainer.predict_on_batch`."""
    inputs = inputs_of("predict_on_batch", given)
    with _ready(session, "pred", pack(inputs)).shared() as buffer:
        chunk = _chunk(session, inputs)
        leaves, treedef = session.executor.predict(buffer, chunk)
    outline = predictions.outline_of(session, chunk.batch)
    return BatchOutputs(session.strategy.collect_outputs(leaves), treedef, outline, rows(inputs)).tree()


def _ready(session: Session, phase: Any, batch: Batch) -> StateBuffer:
    """The state for a step on one batch."""
    executor = session.executor
    checks.can_run(session.buffer, phase)
    executor.shapes.takes_batches[phase] = True
    buffer = session.planned(batch)
    if phase != "pred":
        checks.labels(buffer, phase, batch, functools.partial(executor.outputs, phase, buffer))
    if executor.compiles(buffer.cls, phase):
        executor.program(phase, buffer, structure(unpack(batch)[0] if phase == "pred" else batch), None)
    session.adopt(buffer)
    if phase != "pred":
        session.note_inputs(batch)
    return session.buffer


def _chunk(session: Session, batch: Batch) -> Chunk:
    return Chunk(session.strategy.place(batch, "batch"), "single", structure(batch), (1,), 0)
