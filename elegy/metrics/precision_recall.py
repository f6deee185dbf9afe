"""Precision, recall and F scores."""

from __future__ import annotations

from typing import Any, Self

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from elegy.metrics.decisions import Average, DataType, DecisionMetric
from elegy.metrics.sums import CompensatedSum
from elegy.pytree import field, static_field


class _PositiveCounts(DecisionMetric):
    """Counts true positives, false positives and false negatives."""

    tp: CompensatedSum = field(init=False)
    fp: CompensatedSum = field(init=False)
    fn: CompensatedSum = field(init=False)

    integers_are = DataType.BINARY

    def __post_init__(self) -> None:
        super().__post_init__()
        vars(self).update({name: self.zeros() for name in ("tp", "fp", "fn")})

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
            target: class indices, 0/1 labels or one-hot rows.
            preds: scores, probabilities or decisions.
            sample_weight: a scalar, `(B,)` or finer.
            mask: `(B,)` bool, False for padding.
            **_: ignored.

        Raises:
            ValueError: if the shapes do not fit.
        """
        counts = self.count(target, preds, sample_weight, mask)[1]
        return self.replace(tp=self.tp + counts.tp, fp=self.fp + counts.fp, fn=self.fn + counts.fn)

    def _averaged(self, numerator: jax.Array, denominator: jax.Array) -> jax.Array:
        support = (self.tp + self.fn).value
        # As in scikit-learn, the macro mean includes labels that never occur, with 0, but not classes that never occur.
        occurs = jnp.ones_like(support) if self.mode is DataType.MULTILABEL else support + self.fp.value
        return self.averaged(numerator, denominator, occurs, support)


class Precision(_PositiveCounts):
    """The fraction of positive decisions that are correct: `tp / (tp + fp)`.

    Args:
        threshold: a binary or multi-label prediction above it is positive.
        num_classes: the number of classes or labels; needed for an average other than `micro`, and for predicted
            classes (integers of the target's shape), which are binary decisions otherwise.
        average: `micro`, `macro`, `weighted` or `none` (see `DecisionMetric`).
        ignore_index: a value of the target that is not counted.
        top_k: how many of the highest scores count as predicted.
        mode: `binary`, `multiclass`, `multilabel`, or None to derive it from the shapes.
        class_id: counts only this class or label, as a binary decision.
        name: see `Metric`.
        dtype: the dtype of the state.

    Raises:
        ValueError: if options contradict each other.

    Example:
        >>> import jax.numpy as jnp
        >>> metric = Precision().update(target=jnp.array([0, 1, 1, 1]), preds=jnp.array([0.9, 0.8, 0.1, 0.7]))
        >>> metric.compute().item()
        0.666666...
    """

    def compute(self) -> jax.Array:
        """Returns the precision: a scalar, or `(num_classes,)` for `average="none"`; 0 without positives."""
        return self._averaged(self.tp.value, (self.tp + self.fp).value)


class Recall(_PositiveCounts):
    """The fraction of positive examples that are predicted: `tp / (tp + fn)`.

    Args:
        threshold: a binary or multi-label prediction above it is positive.
        num_classes: as for `Precision`.
        average: `micro`, `macro`, `weighted` or `none` (see `DecisionMetric`).
        ignore_index: a value of the target that is not counted.
        top_k: how many of the highest scores count as predicted.
        mode: `binary`, `multiclass`, `multilabel`, or None to derive it from the shapes.
        class_id: counts only this class or label, as a binary decision.
        name: see `Metric`.
        dtype: the dtype of the state.

    Raises:
        ValueError: if options contradict each other.

    Example:
        >>> import jax.numpy as jnp
        >>> metric = Recall().update(target=jnp.array([0, 1, 1, 1]), preds=jnp.array([0.9, 0.8, 0.1, 0.1]))
        >>> metric.compute().item()
        0.333333...
    """

    def compute(self) -> jax.Array:
        """Returns the recall: a scalar, or `(num_classes,)` for `average="none"`; 0 without positives."""
        return self._averaged(self.tp.value, (self.tp + self.fn).value)


class FBeta(_PositiveCounts):
    """The weighted harmonic mean of precision and recall, `(1 + b²) tp / ((1 + b²) tp + b² fn + fp)`.

    Only `beta` may be given by its position.

    Args:
        beta: how many times as important recall is as precision.
        threshold: a binary or multi-label prediction above it is positive.
        num_classes: as for `Precision`.
        average: `micro`, `macro`, `weighted` or `none` (see `DecisionMetric`).
        ignore_index: a value of the target that is not counted.
        top_k: how many of the highest scores count as predicted.
        mode: `binary`, `multiclass`, `multilabel`, or None to derive it from the shapes.
        class_id: counts only this class or label, as a binary decision.
        name: see `Metric`.
        dtype: the dtype of the state.

    Raises:
        ValueError: if options contradict each other.

    Example:
        >>> import jax.numpy as jnp
        >>> metric = FBeta(2.0).update(target=jnp.array([0, 1, 1]), preds=jnp.array([0.9, 0.8, 0.1]))
        >>> metric.compute().item()
        0.5
    """

    threshold: float = static_field(default=0.5, kw_only=True)
    num_classes: int | None = static_field(default=None, kw_only=True)
    average: Average | None = static_field(default="micro", kw_only=True)
    beta: float = static_field(default=1.0)

    def __post_init__(self) -> None:
        """Checks the options and sets the state to zero."""
        super().__post_init__()
        if self.beta <= 0:
            raise ValueError(f"{type(self).__name__}: beta={self.beta!r} must be positive.")

    def compute(self) -> jax.Array:
        """Returns the score: a scalar, or `(num_classes,)` for `average="none"`; 0 without positives."""
        squared = self.beta**2
        numerator = (1 + squared) * self.tp.value
        return self._averaged(numerator, numerator + squared * self.fn.value + self.fp.value)


class F1(FBeta):
    """The harmonic mean of precision and recall, `2 tp / (2 tp + fn + fp)`.

    Args:
        threshold: a binary or multi-label prediction above it is positive.
        num_classes: as for `Precision`.
        average: `micro`, `macro`, `weighted` or `none` (see `DecisionMetric`).
        ignore_index: a value of the target that is not counted.
        top_k: how many of the highest scores count as predicted.
        mode: `binary`, `multiclass`, `multilabel`, or None to derive it from the shapes.
        class_id: counts only this class or label, as a binary decision.
        name: see `Metric`.
        dtype: the dtype of the state.

    Raises:
        ValueError: if options contradict each other.

    Example:
        >>> import jax.numpy as jnp
        >>> metric = F1().update(target=jnp.array([0, 1, 1, 1]), preds=jnp.array([1, 0, 1, 1]))
        >>> metric.compute().item()
        0.666666...
    """

    threshold: float = static_field(default=0.5)
    num_classes: int | None = static_field(default=None)
    average: Average | None = static_field(default="micro")
    beta: float = static_field(default=1.0, init=False)
