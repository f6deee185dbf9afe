"""Rank correlation."""

from __future__ import annotations

from typing import Any, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from elegy.losses.reduction import total_weight
from elegy.losses.shapes import array_shape, match_real
from elegy.metrics.metric import Metric
from elegy.metrics.sums import CompensatedSum, binned_sums
from elegy.pytree import field, static_field
from elegy.types import PyTree


class SpearmanCorrelation(Metric):
    """Spearman's correlation: Pearson's correlation of the ranks of targets and predictions, between -1 and 1.

    Ranks depend on all of the data, but the state has a fixed size: a table of `num_bins` times `num_bins` counts.
    Values in one bin are treated as ties, which have their mean rank, as in SciPy. So the value is exact for numbers
    that are multiples of the width of a bin, such as ratings. Weights count as repetitions of an example.

    Args:
        target_range: the smallest and the largest target; bin `k` has its centre at
            `low + k (high - low) / (num_bins - 1)`.
        preds_range: likewise for predictions; None for the range of the targets. Values beyond are in the last bins.
        num_bins: the number of bins of each range.
        name: see `Metric`.
        dtype: the dtype of the state.

    Raises:
        ValueError: if a range is empty, or there are fewer than 2 bins.

    Example:
        >>> metric = SpearmanCorrelation((0, 10)).update(target=jnp.array([1, 2, 9]), preds=jnp.array([3, 4, 5]))
        >>> metric.compute().item()
        1.0
    """

    target_range: tuple[float, float] = static_field(default=(0.0, 1.0))
    preds_range: tuple[float, float] | None = static_field(default=None)
    num_bins: int = static_field(default=201, kw_only=True)

    table: CompensatedSum = field(init=False)

    def __post_init__(self) -> None:
        """Checks the options and sets the state to zero."""
        super().__post_init__()
        preds_range = self.target_range if self.preds_range is None else self.preds_range
        vars(self).update(target_range=tuple(self.target_range), preds_range=tuple(preds_range))
        for given in (self.target_range, preds_range):
            if len(given) != 2 or not given[0] < given[1]:
                raise ValueError(f"SpearmanCorrelation: the range {given!r} must be (low, high), with low < high.")
        if self.num_bins < 2:
            raise ValueError(f"SpearmanCorrelation: num_bins={self.num_bins} must be 2 or more.")
        vars(self).update(table=CompensatedSum.zeros((self.num_bins, self.num_bins), self.dtype))

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
            target: numbers `(B, ...)`.
            preds: the same shape.
            sample_weight: a scalar, `(B,)` or finer.
            mask: `(B,)` bool, False for padding.
            **_: ignored.

        Raises:
            ValueError: if the shapes do not fit.
        """
        target, preds = match_real(target, preds, "SpearmanCorrelation")
        weight = total_weight(sample_weight, mask, target.shape)
        weight = jnp.ones(target.shape) if weight is None else weight
        unknown = (weight != 0) & (jnp.isnan(target) | jnp.isnan(preds))
        weight = jnp.where(unknown, jnp.nan, weight)  # NaN has no rank, so the value becomes NaN
        rows, columns = self._bins(target, self.target_range), self._bins(preds, self.preds_range)
        added = binned_sums((rows * self.num_bins + columns).ravel(), weight.ravel(), self.num_bins**2)
        return self.replace(table=self.table + added.reshape(self.num_bins, self.num_bins))

    def _bins(self, values: jax.Array, given: tuple[float, float] | None) -> jax.Array:
        low, high = given or self.target_range
        place = jnp.clip((values - low) / (high - low), 0.0, 1.0)
        return jnp.round(jnp.where(jnp.isnan(place), 0.0, place) * (self.num_bins - 1)).astype(jnp.int32)

    def compute(self) -> jax.Array:
        """Returns the correlation, a scalar; NaN if one of both is constant, and after a NaN."""
        table = self.table.value / jnp.sum(self.table.value)
        first, second = _centred_ranks(jnp.sum(table, axis=1)), _centred_ranks(jnp.sum(table, axis=0))
        spreads = [jnp.sqrt(jnp.sum(jnp.sum(table, axis=1 - i) * r * r)) for i, r in enumerate((first, second))]
        return jnp.clip(jnp.sum(table * first[:, None] * second[None]) / (spreads[0] * spreads[1]), -1.0, 1.0)

    def target_check(self, target: PyTree, preds: PyTree) -> None:
        """Checks that the targets are in their range.

        Args:
            target: ground truth, on the host.
            preds: predictions; not checked.

        Raises:
            ValueError: if there are other values.
        """
        if array_shape(target) is None or not np.size(target):
            return
        low, high = np.min(target), np.max(target)
        if low < self.target_range[0] or high > self.target_range[1]:
            raise ValueError(
                f"SpearmanCorrelation: the targets range from {low:.3g} to {high:.3g}, beyond "
                f"target_range={self.target_range}. Pass the range of the data."
            )


def _centred_ranks(fractions: jax.Array) -> jax.Array:
    """The mean rank of each bin as a fraction of the data, minus that of all of the data, one half."""
    return jnp.cumsum(fractions) - 0.5 * fractions - 0.5
