"""The methods of a trainer that take one batch."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Mapping, Sequence

from elegy.callbacks.interrupt import interrupt_deferred
from elegy.data import pack, unpack
from elegy.data.columns import Given
from elegy.engine.program import CompiledPhase
from elegy.engine.state_buffer import StateBuffer
from elegy.loading.chunks import structure
from elegy.trainer import checks
from elegy.trainer.evaluation import predictions
from elegy.trainer.evaluation.outputs import BatchOutputs
from elegy.trainer.first_state import first_state
from elegy.trainer.one_batch import batch_of, chunk_of, inputs_of
from elegy.trainer.one_fit import not_in_fit
from elegy.trainer.session import Session
from elegy.types import Batch, PyTree
from elegy.waiting import no_wait


class BatchMethods:
    """Initialises, trains, evaluates and predicts with one batch; the base of `Trainer`."""

    _session: Session

    def init_on_batch(
        self, data: PyTree = None, labels: PyTree = None, *, inputs: PyTree = None, sample_weight: PyTree = None
    ) -> None:
        """Makes the first state from a batch, anew if there is one already.

        Args:
            data: one batch: the inputs; or, given alone, a tuple `(inputs, labels[, sample_weight])`; or a dict or
                table that has the labels, too.
            labels: the labels; or the name, or names, of the keys or columns that are the labels.
            inputs: the names of the keys or columns that are the inputs; by default all that are not labels or
                weights. If the first argument is missing, the inputs themselves.
            sample_weight: the weights; or the name of a key or column.

        Raises:
            RuntimeError: if a callback calls it during `fit`, whose steps go on with the state that they have.
            TypeError: if the inputs are None, a leaf is not an array of numbers, or there are names, but not in the
                data.
            ValueError: if the batch is empty, its arrays differ in length, or a name is missing.
        """
        session, given = self._session, Given.of("init_on_batch", data, inputs, labels, sample_weight)
        if session.run is not None:
            raise RuntimeError(
                "the state cannot be made anew while fit runs: call init_on_batch before or after it, or assign "
                "another state, `trainer.state = trainer.state.replace(...)`."
            )
        checks.jit_enabled(session.buffer, "train")
        batch = batch_of("init_on_batch", given)
        session.adopt(first_state(session.executor, session.buffer.get(), session.seed, batch))

    def train_on_batch(
        self, data: PyTree = None, labels: PyTree = None, *, inputs: PyTree = None, sample_weight: PyTree = None
    ) -> Mapping[str, float]:
        """Takes one training step.

        Args:
            data: as for `init_on_batch`.
            labels: as for `init_on_batch`.
            inputs: as for `init_on_batch`.
            sample_weight: as for `init_on_batch`.

        Returns:
            The logs, which are read from the device on first use: values over the steps since the epoch began;
            `trainer.state = trainer.state.reset_step()` begins one.

        Raises:
            RuntimeError: if a callback calls it during `fit`.
            TypeError: as `init_on_batch`.
            ValueError: as `init_on_batch`.
            NonFiniteError: if the step is not finite, unless the trainer's `nonfinite` says `"ignore"` or `"skip"`.
        """
        session, given = self._session, Given.of("train_on_batch", data, inputs, labels, sample_weight)
        not_in_fit(session, "train_on_batch")
        batch = batch_of("train_on_batch", given)
        session.check_can_run("train")
        session.follow_schedule()
        buffer, chunk = _ready(session, "train", batch), chunk_of(session, batch)
        held = interrupt_deferred() if session.executor.compiles(buffer.cls, "train") else contextlib.nullcontext()
        with held, no_wait():  # the data of another trainer's fit may be made here, and a signal end the wait for it
            out = session.executor.run("train", buffer, chunk, session.epoch)
            session.step += 1
        if session.monitor.guards:
            session.monitor.record(out, session.step - 1, session.epoch, buffer)
            if session.monitor.policy != "skip":
                session.monitor.settle()
        return out.logs(0)

    def test_on_batch(
        self, data: PyTree = None, labels: PyTree = None, *, inputs: PyTree = None, sample_weight: PyTree = None
    ) -> Mapping[str, float]:
        """Evaluates one batch, alone; arguments and result as for `train_on_batch`. The state stays as it is."""
        session, given = self._session, Given.of("test_on_batch", data, inputs, labels, sample_weight)
        batch = batch_of("test_on_batch", given)
        session.check_can_run("test")
        with _ready(session, "test", batch).shared() as buffer:
            session.executor.reset(buffer, "test")
            return session.executor.run("test", buffer, chunk_of(session, batch), session.epoch).logs(0)

    def predict_on_batch(
        self,
        data: PyTree = None,
        *,
        inputs: PyTree = None,
        labels: str | Sequence[str] | None = None,
        sample_weight: str | Sequence[str] | None = None,
    ) -> PyTree:
        """Computes the outputs for one batch of inputs, as NumPy arrays. The state stays as it is.

        Args:
            data: one batch of inputs, where a tuple is several inputs; or a dict or table.
            inputs: the names of the keys or columns that are the inputs. If the first argument is missing, the inputs.
            labels: the names of labels in the data, which are left out; they may be missing.
            sample_weight: the name of weights in the data, which are left out; it may be missing.
        """
        session, given = self._session, Given.of("predict_on_batch", data, inputs, labels, sample_weight)
        batch = inputs_of("predict_on_batch", given)
        session.check_can_run("pred")
        with _ready(session, "pred", pack(batch)).shared() as buffer:
            chunk = chunk_of(session, batch)
            leaves, treedef = session.executor.predict(buffer, chunk)
        outline = predictions.outline_of(session, chunk.batch)
        return BatchOutputs(session.strategy.collect_outputs(leaves), treedef, outline, chunk.sizes[0]).tree()


def _ready(session: Session, phase: CompiledPhase, batch: Batch) -> StateBuffer:
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
