"""One step on one batch, for a loop of the user's own."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from elegy.data import pack, unpack
from elegy.data.batch import rows, size_of
from elegy.data.convert import as_batch, copied
from elegy.data.refused import refuse_non_arrays
from elegy.engine.state_buffer import StateBuffer
from elegy.loading.chunks import Chunk, structure
from elegy.trainer import checks, predictions
from elegy.trainer.nonfinite import check_level
from elegy.trainer.outputs import BatchOutputs
from elegy.trainer.session import Session
from elegy.types import Batch, PyTree
from elegy.waiting import no_wait


def init(session: Session, inputs: Any, labels: PyTree, sample_weight: PyTree) -> None:
    """Makes the first state; see `Trainer.init_on_batch`."""
    if session.run is not None:
        raise RuntimeError(
            "the state cannot be made anew while fit runs: call init_on_batch before or after it, or assign "
            "another state, `trainer.state = trainer.state.replace(...)`."
        )
    session.begin_anew(_batch("init_on_batch", inputs, labels, sample_weight))


def train(session: Session, inputs: Any, labels: PyTree, sample_weight: PyTree) -> Mapping[str, float]:
    """Takes a training step; see `Trainer.train_on_batch`."""
    checks.not_in_fit(session, "train_on_batch")
    batch = _batch("train_on_batch", inputs, labels, sample_weight)
    checks.can_run(session.buffer, "train")
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


def test(session: Session, inputs: Any, labels: PyTree, sample_weight: PyTree) -> Mapping[str, float]:
    """Evaluates a batch; see `Trainer.test_on_batch`."""
    batch = _batch("test_on_batch", inputs, labels, sample_weight)
    buffer = _ready(session, "test", batch).fork()
    session.executor.reset(buffer, "test")
    return session.executor.run("test", buffer, _chunk(session, batch), session.epoch).logs(0)


def predict(session: Session, inputs: Any) -> PyTree:
    """Computes the outputs for a batch; see `Trainer.predict_on_batch`."""
    refuse_non_arrays(inputs, "predict_on_batch")
    inputs = as_batch(inputs) if not isinstance(inputs, tuple) else as_batch((inputs,))[0]
    size_of(inputs)
    buffer = _ready(session, "pred", pack(inputs)).fork()
    chunk = _chunk(session, inputs)
    leaves, treedef = session.executor.predict(buffer, chunk)
    outline = predictions.outline_of(session, chunk.batch)
    return BatchOutputs(session.strategy.collect_outputs(leaves), treedef, outline, rows(inputs)).tree()


def _ready(session: Session, phase: Any, batch: Batch) -> StateBuffer:
    """The state for a step on one batch."""
    executor = session.executor
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


def _batch(what: str, inputs: Any, labels: PyTree, sample_weight: PyTree) -> Batch:
    """What the method `what` was given, as one batch; a tuple given alone is a batch already."""
    alone = labels is None and sample_weight is None and isinstance(inputs, tuple)
    given = inputs if alone else pack(inputs, labels, sample_weight)
    refuse_non_arrays(unpack(given)[0], what)
    batch = as_batch(given)
    size_of(batch)
    return copied(batch)  # the caller may fill the next batch into the same arrays, while this one waits for the device
