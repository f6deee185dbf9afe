"""Sums and means of values."""

from __future__ import annotations

from typing import Any, Self

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from elegy.losses.numbers import at_least_float32, check_real
from elegy.losses.reduction import Reduction, safe_divide, sum_of_weights, total_weight, weighted_sum
from elegy.metrics.metric import Metric
from elegy.metrics.sums import CompensatedSum
from elegy.pytree import field, static_field


class Accumulator(Metric):
    """Base class of sums and means: the state is `total`, and `count` (None for a sum).

    A subclass computes values in `update` and passes them to `accumulate`.

    Args:
        name: see `Metric`.
        dtype: the dtype of the state.

    Example:
        >>> class MeanPrediction(Accumulator):
        ...     def update(self, preds, sample_weight=None):
        ...         return self.accumulate(preds, sample_weight)
        >>> MeanPrediction().update(preds=jnp.array([1.0, 3.0])).compute().item()
        2.0
    """

    total: CompensatedSum = field(init=False)
    count: CompensatedSum | None = field(init=False)

    def __post_init__(self) -> None:
        """Sets the state to zero."""
        super().__post_init__()
        count = None if self.reduces_by() is Reduction.SUM else CompensatedSum.zeros((), self.dtype)
        vars(self).update(total=CompensatedSum.zeros((), self.dtype), count=count)

    def reduces_by(self) -> Reduction:
        """Returns the reduction of `accumulate` and `compute`."""
        return Reduction.MEAN

    def accumulate(
        self, values: ArrayLike, sample_weight: ArrayLike | None = None, mask: ArrayLike | None = None
    ) -> Self:
        """Returns the metric with values added.

        Args:
            values: `(B, ...)`, or a scalar.
            sample_weight: a scalar, `(B,)` or finer. Values of weight 0 are ignored, even if they are NaN.
            mask: `(B,)` bool, False for padding.

        Raises:
            ValueError: if the weights do not fit the values.
            TypeError: if the values are complex.
        """
        values = jnp.asarray(values)
        check_real(f"the metric {self.name!r}", values=values)
        values = values.astype(at_least_float32(values.dtype))
        weight = total_weight(sample_weight, mask, values.shape)
        total = self.total + weighted_sum(values, weight)
        if self.count is None:
            return self.replace(total=total)
        if self.reduces_by() is Reduction.SUM_OVER_BATCH_SIZE:
            weight = total_weight(None, mask, values.shape)
        return self.replace(total=total, count=self.count + sum_of_weights(weight, values.shape))

    def compute(self) -> jax.Array:
        """Returns the sum or mean, a scalar; the mean of no data is 0."""
        return self.total.value if self.count is None else safe_divide(self.total.value, self.count.value)


class Reduce(Accumulator):
    """Reduces the argument `values`.

    Args:
        reduction: a `Reduction` or its value, not `NONE`.
        name: see `Metric`.
        dtype: the dtype of the state.

    Raises:
        ValueError: if the reduction is unknown, or `NONE`.

    Example:
        >>> metric = Reduce("sum_over_batch_size")
        >>> metric.update(values=jnp.array([1.0, 3.0]), sample_weight=jnp.array([1.0, 3.0])).compute().item()
        5.0
    """

    reduction: Reduction = static_field()

    def __post_init__(self) -> None:
        """Looks up the reduction."""
        vars(self).update(reduction=Reduction(self.reduction))
        if self.reduction is Reduction.NONE:
            raise ValueError("Reduction.NONE does not give one number, as a metric must: use MEAN or another one.")
        super().__post_init__()

    def reduces_by(self) -> Reduction:
        """Returns the argument `reduction`."""
        return self.reduction

    def update(
        self, values: ArrayLike, sample_weight: ArrayLike | None = None, mask: ArrayLike | None = None, **_: Any
    ) -> Self:
        """Returns the metric with values added.

        Args:
            values: `(B, ...)`, or a scalar.
            sample_weight: a scalar, `(B,)` or finer.
            mask: `(B,)` bool, False for padding.
            **_: ignored.

        Raises:
            ValueError: if the weights do not fit the values.
        """
        return self.accumulate(values, sample_weight, mask)


class Mean(Reduce):
    """The weighted mean of the argument `values`.

    Args:
        name: see `Metric`.
        dtype: the dtype of the state.

    Example:
        >>> mean = Mean().update(values=jnp.array([1.0, 3.0, 5.0, 7.0]))
        >>> mean.compute().item()
        4.0
        >>> mean.update(values=jnp.array([14.0]), sample_weight=jnp.array([4.0])).compute().item()
        9.0
    """

    reduction: Reduction = static_field(default=Reduction.MEAN, init=False)


class Sum(Reduce):
    """The weighted sum of the argument `values`.

    Args:
        name: see `Metric`.
        dtype: the dtype of the state.

    Example:
        >>> Sum().update(values=jnp.array([1.0, 3.0]), sample_weight=jnp.array([1.0, 2.0])).compute().item()
        7.0
    """

    reduction: Reduction = static_field(default=Reduction.SUM, init=False)
