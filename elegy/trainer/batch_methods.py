"""The methods of a trainer that take one batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from elegy.data.columns import Given
from elegy.trainer import on_batch
from elegy.trainer.session import Session
from elegy.types import PyTree


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
        on_batch.init(self._session, Given.of("init_on_batch", data, inputs, labels, sample_weight))

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
        return on_batch.train(self._session, Given.of("train_on_batch", data, inputs, labels, sample_weight))

    def test_on_batch(
        self, data: PyTree = None, labels: PyTree = None, *, inputs: PyTree = None, sample_weight: PyTree = None
    ) -> Mapping[str, float]:
        """Evaluates one batch, alone; arguments and result as for `train_on_batch`. The state stays as it is."""
        return on_batch.test(self._session, Given.of("test_on_batch", data, inputs, labels, sample_weight))

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
        return on_batch.predict(self._session, Given.of("predict_on_batch", data, inputs, labels, sample_weight))
