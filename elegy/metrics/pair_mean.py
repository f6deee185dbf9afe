"""Metrics that are the mean of a function of target and prediction."""

from __future__ import annotations

import abc
from typing import Any, Self

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from elegy.losses.cosine_similarity import cosine_similarity
from elegy.losses.cross_entropy import cross_entropy
from elegy.losses.mean_absolute_error import mean_absolute_error
from elegy.losses.mean_absolute_percentage_error import mean_absolute_percentage_error
from elegy.losses.mean_squared_error import mean_squared_error
from elegy.losses.reduction import safe_divide
from elegy.losses.shapes import match_real, mean_over_features
from elegy.metrics.reduce import Accumulator
from elegy.pytree import static_field


class PairMean(Accumulator):
    """Base class: a subclass computes the values of target and predictions.

    Args:
        name: see `Metric`.
        dtype: the dtype of the state.

    Example:
        >>> class Bias(PairMean):
        ...     def values(self, target, preds):
        ...         return preds - target
        >>> Bias().update(target=jnp.zeros(2), preds=jnp.array([1.0, 3.0])).compute().item()
        2.0
    """

    @abc.abstractmethod
    def values(self, target: ArrayLike, preds: ArrayLike) -> jax.Array:
        """Computes values `(B, ...)`."""

    def update(
        self,
        target: ArrayLike,
        preds: ArrayLike,
        sample_weight: ArrayLike | None = None,
        mask: ArrayLike | None = None,
        **_: Any,
    ) -> Self:
        """Returns the metric with a batch added.

        Args:
            target: ground truth.
            preds: predictions.
            sample_weight: a scalar, `(B,)` or finer.
            mask: `(B,)` bool, False for padding.
            **_: ignored.

        Raises:
            ValueError: if the shapes do not fit.
        """
        return self.accumulate(self.values(target, preds), sample_weight, mask)


class MeanAbsoluteError(PairMean):
    """Mean of `|preds - target|`.

    Args:
        name: see `Metric`.
        dtype: the dtype of the state.

    Example:
        >>> MeanAbsoluteError().update(target=jnp.zeros(2), preds=jnp.array([1.0, -3.0])).compute().item()
        2.0
    """

    def values(self, target: ArrayLike, preds: ArrayLike) -> jax.Array:
        """The mean over the last axis, as in `elegy.losses.mean_absolute_error`.

        Args:
            target: `(B, ...)`.
            preds: the same shape.
        """
        return mean_absolute_error(target, preds)


class MeanSquareError(PairMean):
    """Mean of `|preds - target| ** 2`.

    Args:
        name: see `Metric`.
        dtype: the dtype of the state.

    Example:
        >>> MeanSquareError().update(target=jnp.zeros(2), preds=jnp.array([1.0, 3.0])).compute().item()
        5.0
    """

    def values(self, target: ArrayLike, preds: ArrayLike) -> jax.Array:
        """The mean over the last axis, as in `elegy.losses.mean_squared_error`.

        Args:
            target: `(B, ...)`.
            preds: the same shape.
        """
        return mean_squared_error(target, preds)


class RootMeanSquareError(MeanSquareError):
    """Square root of the mean of `(preds - target) ** 2` over all data.

    Args:
        name: see `Metric`.
        dtype: the dtype of the state.

    Example:
        >>> RootMeanSquareError().update(target=jnp.zeros(2), preds=jnp.array([1.0, 7.0])).compute().item()
        5.0
    """

    def compute(self) -> jax.Array:
        """Returns the square root of the mean, a scalar; 0 without data."""
        return jnp.sqrt(super().compute())


class MeanAbsolutePercentageError(PairMean):
    """Mean of `100 |preds - target| / max(|target|, 1e-7)`, in percent.

    Args:
        name: see `Metric`.
        dtype: the dtype of the state.

    Example:
        >>> MeanAbsolutePercentageError().update(target=jnp.array([2.0]), preds=jnp.array([3.0])).compute().item()
        50.0
    """

    def values(self, target: ArrayLike, preds: ArrayLike) -> jax.Array:
        """The mean over the last axis, as in `elegy.losses.mean_absolute_percentage_error`.

        Args:
            target: `(B, ...)`.
            preds: the same shape.
        """
        return mean_absolute_percentage_error(target, preds)


class SymmetricMeanAbsolutePercentageError(PairMean):
    """Mean of `100 |preds - target| / ((|target| + |preds|) / 2)`, in percent, from 0 to 200; 0 where both are 0.

    Args:
        name: see `Metric`.
        dtype: the dtype of the state.

    Example:
        >>> SMAPE().update(target=jnp.array([1.0, 0.0]), preds=jnp.array([3.0, 0.0])).compute().item()
        50.0
    """

    def values(self, target: ArrayLike, preds: ArrayLike) -> jax.Array:
        """The mean over the last axis.

        Args:
            target: `(B, ...)`.
            preds: the same shape.
        """
        target, preds = match_real(target, preds, "SymmetricMeanAbsolutePercentageError")
        return mean_over_features(200.0 * safe_divide(jnp.abs(preds - target), jnp.abs(target) + jnp.abs(preds)))


class CosineSimilarity(PairMean):
    """Mean cosine of the angle between target and prediction, from -1 to 1; the loss of this name is its negative.

    Args:
        axis: the axis of the vectors.
        name: see `Metric`.
        dtype: the dtype of the state.

    Example:
        >>> metric = CosineSimilarity()
        >>> metric.update(target=jnp.array([[1.0, 0.0]]), preds=jnp.array([[2.0, 0.0]])).compute().item()
        1.0
    """

    axis: int = static_field(default=-1)

    def values(self, target: ArrayLike, preds: ArrayLike) -> jax.Array:
        """The cosine along `axis`; 0 for a vector of zeros.

        Args:
            target: `(B, ..., D)`.
            preds: the same shape.
        """
        return -cosine_similarity(target, preds, self.axis)


class BinaryAccuracy(PairMean):
    """The fraction of examples for which `preds > threshold` equals the 0/1 target.

    Args:
        threshold: a prediction above it counts as 1.
        name: see `Metric`.
        dtype: the dtype of the state.

    Example:
        >>> metric = BinaryAccuracy()
        >>> metric.update(target=jnp.array([1, 1, 0, 0]), preds=jnp.array([0.98, 1.0, 0.0, 0.6])).compute().item()
        0.75
    """

    threshold: float = static_field(default=0.5)

    def values(self, target: ArrayLike, preds: ArrayLike) -> jax.Array:
        """The fraction of correct decisions along the last axis.

        Args:
            target: 0 or 1, `(B, ...)`.
            preds: the same shape.
        """
        target, preds = match_real(target, preds, "BinaryAccuracy")
        return mean_over_features(((preds > self.threshold) == (target > 0.5)).astype(jnp.float32))


class BinaryCrossEntropy(PairMean):
    """Mean cross-entropy of independent binary decisions.

    Args:
        from_logits: True if `preds` are logits; by default they are probabilities.
        name: see `Metric`.
        dtype: the dtype of the state.

    Example:
        >>> metric = BinaryCrossEntropy()
        >>> metric.update(target=jnp.array([1.0, 0.0]), preds=jnp.array([0.5, 0.5])).compute().item()
        0.693147...
    """

    from_logits: bool = static_field(default=False)

    def values(self, target: ArrayLike, preds: ArrayLike) -> jax.Array:
        """The mean over the last axis, as in `elegy.losses.cross_entropy(binary=True)`.

        Args:
            target: 0 or 1, `(B, ...)`.
            preds: the same shape.
        """
        return cross_entropy(target, preds, binary=True, from_logits=self.from_logits)


BinaryCrossentropy = BinaryCrossEntropy
MeanSquaredError = MeanSquareError
RootMeanSquaredError = RootMeanSquareError
MAE = MeanAbsoluteError
MSE = MeanSquareError
MAPE = MeanAbsolutePercentageError
SMAPE = SymmetricMeanAbsolutePercentageError
