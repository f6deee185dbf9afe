"""Steps of a trainer on one batch, for a loop of your own."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import jax

from elegy.data import pack, unpack
from elegy.data.batch import rows, size_of
from elegy.data.convert import as_batch, copied
from elegy.data.refused import refuse_non_arrays
from elegy.engine.state_buffer import StateBuffer
from elegy.loading.chunks import Chunk, structure
from elegy.trainer import checks, loops
from elegy.trainer.first_state import first_state
from elegy.trainer.nonfinite import check_level
from elegy.trainer.outputs import BatchOutputs
from elegy.types import Batch, PyTree
from elegy.waiting import no_wait


class OnBatch:
    """The part of a `Trainer` that takes one step."""

    def init_on_batch(self: Any, inputs: Any, labels: PyTree = None, *, sample_weight: PyTree = None) -> None:
        """Makes the first state from a batch, anew if there is one already.

        Args:
            inputs: the inputs; or, given alone, a tuple `(inputs, labels[, sample_weight])`.
            labels: the labels.
            sample_weight: the weights.

        Raises:
            RuntimeError: when a callback calls it during `fit`, whose steps go on with the state that they have.
            TypeError: when the inputs are nothing, or a leaf is no array of numbers.
            ValueError: when the batch is empty, or its arrays differ in length.
        """
        if self._run is not None:
            raise RuntimeError(
                "the state cannot be made anew while fit runs: call init_on_batch before or after it, or assign "
                "another state, `trainer.state = trainer.state.replace(...)`."
            )
        batch = _batch("init_on_batch", inputs, labels, sample_weight)
        self._adopt(first_state(self._executor, self._buffer.get(), self.seed, batch))

    def train_on_batch(
        self: Any, inputs: Any, labels: PyTree = None, *, sample_weight: PyTree = None
    ) -> Mapping[str, float]:
        """Takes one training step.

        Args:
            inputs: as for `init_on_batch`.
            labels: the labels.
            sample_weight: the weights.

        Returns:
            The logs, read from the device when looked at: values over the steps since the epoch began;
            `trainer.state = trainer.state.reset_step()` begins one.

        Raises:
            RuntimeError: when a callback calls it during `fit`.
            TypeError: as `init_on_batch`.
            ValueError: as `init_on_batch`.
            NonFiniteError: when the step is not finite, unless the trainer's `nonfinite` says `"ignore"` or `"skip"`.
        """
        checks.not_in_fit(self, "train_on_batch")
        batch = _batch("train_on_batch", inputs, labels, sample_weight)
        checks.can_run(self._buffer, "train")
        check_level(self.nonfinite, self._buffer)
        buffer, chunk = self._ready("train", batch), self._chunk(batch)
        with no_wait():  # the data of another trainer's fit may be made here, and a signal end the wait for it
            out = self._executor.run("train", buffer, chunk, self.epoch)
            self.step += 1
        if self._monitor.guards:
            self._monitor.record(out, self.step - 1, self.epoch, self._buffer)
            if self.nonfinite != "skip":
                self._monitor.settle()
        return out.logs(0)

    def test_on_batch(
        self: Any, inputs: Any, labels: PyTree = None, *, sample_weight: PyTree = None
    ) -> Mapping[str, float]:
        """Evaluates one batch, alone; arguments and result as for `train_on_batch`. The state stays as it is."""
        batch = _batch("test_on_batch", inputs, labels, sample_weight)
        buffer = self._ready("test", batch).fork()
        self._executor.reset(buffer, "test")
        return self._executor.run("test", buffer, self._chunk(batch), self.epoch).logs(0)

    def predict_on_batch(self: Any, inputs: Any) -> PyTree:
        """Computes the outputs for one batch of inputs, as NumPy arrays. The state stays as it is."""
        refuse_non_arrays(inputs, "predict_on_batch")
        inputs = as_batch(inputs) if not isinstance(inputs, tuple) else as_batch((inputs,))[0]
        size_of(inputs)
        buffer = self._ready("pred", pack(inputs)).fork()
        chunk = self._chunk(inputs)
        leaves, treedef = self._executor.predict(buffer, chunk)
        outline = loops.outline_of(self, chunk.batch)
        return BatchOutputs(self.strategy.collect_outputs(leaves), treedef, outline, rows(inputs)).tree()

    def _ready(self: Any, phase: Any, batch: Batch) -> StateBuffer:
        """The state for a step on one batch."""
        self._executor.takes_batches[phase] = True
        buffer = self._planned(batch)
        if phase != "pred":
            checks.labels(buffer, phase, batch, functools.partial(self._executor.outputs, phase, buffer))
        if self._executor.compiles(buffer.cls, phase):
            self._executor.program(phase, buffer, structure(unpack(batch)[0] if phase == "pred" else batch), None)
        self._adopt(buffer)
        if phase != "pred":
            self._input_tree = jax.tree.structure(unpack(batch)[0])
        return self._buffer

    def _chunk(self: Any, batch: Batch) -> Chunk:
        placed = self.strategy.place(batch, "batch")
        return Chunk(placed, "single", structure(batch), (1,), 0)


def _batch(what: str, inputs: Any, labels: PyTree, sample_weight: PyTree) -> Batch:
    """What the method `what` was given, as one batch; a tuple given alone is a batch already."""
    alone = labels is None and sample_weight is None and isinstance(inputs, tuple)
    given = inputs if alone else pack(inputs, labels, sample_weight)
    refuse_non_arrays(unpack(given)[0], what)
    batch = as_batch(given)
    size_of(batch)
    return copied(batch)  # the caller may fill the next batch into the same arrays, while this one waits for the device
