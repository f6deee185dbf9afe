"""The methods of a trainer that take one batch."""

from __future__ import annotations

from collections.abc import Mapping

from elegy.trainer import on_batch
from elegy.trainer.session import Session
from elegy.types import PyTree


class BatchMethods:
    """Initialises, trains, evaluates and predicts with one batch; the base of `Trainer`."""

    _session: Session

    def init_on_batch(self, inputs: PyTree, labels: PyTree = None, *, sample_weight: PyTree = None) -> None:
        """Makes the first state from a batch, anew if there is one already.

        Args:
            inputs: the inputs; or, given alone, a tuple `(inputs, labels[, sample_weight])`.
            labels: the labels.
            sample_weight: the weights.

        Raises:
            RuntimeError: if a callback calls it during `fit`, whose steps go on with the state that they have.
            TypeError: if the inputs are None, or a leaf is not an array of numbers.
            ValueError: if the batch is empty, or its arrays differ in length.
        """
        on_batch.init(self._session, inputs, labels, sample_weight)

    def train_on_batch(
        self, inputs: PyTree, labels: PyTree = None, *, sample_weight: PyTree = None
    ) -> Mapping[str, float]:
        """Takes one training step.

        Args:
            inputs: as for `init_on_batch`.
            labels: the labels.
            sample_weight: the weights.

        Returns:
            The logs, which are read from the device on first use: values over the steps since the epoch began;
            `trainer.state = trainer.state.reset_step()` begins one.

        Raises:
            RuntimeError: if a callback calls it during `fit`.
            TypeError: as `init_on_batch`.
            ValueError: as `init_on_batch`.
            NonFiniteError: if the step is not finite, unless the trainer's `nonfinite` says `"ignore"` or `"skip"`.
        """
        return on_batch.train(self._session, inputs, labels, sample_weight)

    def test_on_batch(
        self, inputs: PyTree, labels: PyTree = None, *, sample_weight: PyTree = None
    ) -> Mapping[str, float]:
        """Evaluates one batch, alone; arguments and result as for `train_on_batch`. The state stays as it is."""
        return on_batch.test(self._session, inputs, labels, sample_weight)

    def predict_on_batch(self, inputs: PyTree) -> PyTree:
        """Computes the outputs for one batch of inputs, as NumPy arrays. The state stays as it is."""
        return on_batch.predict(self._session, inputs)
