"""Histograms of scores of positive and negative examples."""

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


class BinnedScores(Metric):
    """Base class of the metrics of binary scores over all thresholds.

    Bin `k` counts the scores that round to `k / (num_bins - 1)`; scores in one bin are treated as ties.

    Args:
        num_bins: the number of bins over [0, 1].
        from_logits: True if `preds` are logits, to which the sigmoid is applied.
        name: see `Metric`.
        dtype: the dtype of the state.

    Raises:
        ValueError: if there are fewer than 2 bins.

    Example:
        >>> class Positives(BinnedScores):
        ...     def compute(self):
        ...         return self.positives.value
        >>> Positives(3).update(target=jnp.array([1, 0]), preds=jnp.array([0.6, 1.0])).compute()
        Array([0., 1., 0.], dtype=float32)
    """

    num_bins: int = static_field(default=2001)
    from_logits: bool = static_field(default=False, kw_only=True)

    positives: CompensatedSum = field(init=False)
    negatives: CompensatedSum = field(init=False)

    def __post_init__(self) -> None:
        """Checks the number of bins and sets the state to zero."""
        super().__post_init__()
        if self.num_bins < 2:
            raise ValueError(f"{type(self).__name__}: num_bins={self.num_bins} must be 2 or more.")
        for name in ("positives", "negatives"):
            vars(self)[name] = CompensatedSum.zeros((self.num_bins,), self.dtype)

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
            target: 0 or 1, `(B, ...)`.
            preds: probabilities in [0, 1] (beyond, they are clipped) or logits, of the same shape.
            sample_weight: a scalar, `(B,)` or finer.
            mask: `(B,)` bool, False for padding.
            **_: ignored.

        Raises:
            ValueError: if the shapes do not fit.
        """
        target, preds = match_real(target, preds, type(self).__name__)
        scores = jax.nn.sigmoid(preds) if self.from_logits else jnp.clip(preds, 0.0, 1.0)
        weight = total_weight(sample_weight, mask, scores.shape)
        weight = jnp.ones(scores.shape) if weight is None else weight
        # NaN has no rank: it makes the area NaN, unless its weight is 0. It is replaced first, because the conversion
        # of NaN to integers is undefined.
        unknown = (weight != 0) & jnp.isnan(scores)
        scores = jnp.where(jnp.isnan(scores), 0.0, scores)
        weight = jnp.where(unknown, jnp.nan, weight)
        bins = jnp.round(scores * (self.num_bins - 1)).astype(jnp.int32)
        bins = bins + jnp.where(target > 0.5, 0, self.num_bins)
        added = binned_sums(bins.ravel(), weight.ravel(), 2 * self.num_bins)
        return self.replace(
            positives=self.positives + added[: self.num_bins], negatives=self.negatives + added[self.num_bins :]
        )

    def target_check(self, target: PyTree, preds: PyTree) -> None:
        """Checks that targets are 0 or 1 and predictions are probabilities.

        Args:
            target: ground truth, on the host.
            preds: predictions, on the host; a `jax.ShapeDtypeStruct` is not checked.

        Raises:
            ValueError: if there are other values.
        """
        if array_shape(target) is None:
            return
        other = [v for v in np.unique(np.asarray(target)).tolist() if v not in (0, 1)]
        if other:
            raise ValueError(f"{type(self).__name__}: the targets are 0 or 1, but there are {other[:5]}.")
        if self.from_logits or not isinstance(preds, (np.ndarray, jax.Array)):
            return
        if preds.size and (preds.min() < 0 or preds.max() > 1):
            raise ValueError(
                f"{type(self).__name__}: preds range from {preds.min():.3g} to {preds.max():.3g}, but probabilities "
                "are in [0, 1]. Pass from_logits=True if they are logits."
            )
