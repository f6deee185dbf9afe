"""Area under the ROC or the precision-recall curve."""

from __future__ import annotations

from typing import Any, Literal, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from elegy.losses.reduction import safe_divide, total_weight
from elegy.losses.shapes import array_shape, match_real
from elegy.metrics.metric import Metric
from elegy.metrics.sums import CompensatedSum, binned_sums
from elegy.pytree import field, static_field
from elegy.types import PyTree


class AUC(Metric):
    """Area under the ROC or the precision-recall curve of binary decisions, over all thresholds.

    The state has a fixed size, so scores are counted in `num_bins` bins: bin `k` counts the scores that round to
    `k / (num_bins - 1)`. Scores in one bin are treated as ties, which are exact: for `ROC` a tied pair of a positive
    and a negative counts one half, as in the trapezoidal rule; for `PR` tied scores are one step. So the value is exact
    for scores that are multiples of `1 / (num_bins - 1)`. Otherwise the error of `ROC` is at most one half of the
    fraction of pairs in the same bin.

    Args:
        num_bins: the number of bins over [0, 1].
        curve: `"ROC"`, or `"PR"` for the average precision (without interpolation, as in scikit-learn).
        from_logits: True if `preds` are logits, to which the sigmoid is applied.
        name: see `Metric`.
        dtype: the dtype of the state.

    Raises:
        ValueError: if the curve is unknown, or there are fewer than 2 bins.

    Example:
        >>> metric = AUC().update(target=jnp.array([0, 0, 1, 1]), preds=jnp.array([0.1, 0.4, 0.35, 0.8]))
        >>> metric.compute().item()
        0.75
    """

    num_bins: int = static_field(default=2001)
    curve: Literal["ROC", "PR"] = static_field(default="ROC")
    from_logits: bool = static_field(default=False, kw_only=True)

    positives: CompensatedSum = field(init=False)
    negatives: CompensatedSum = field(init=False)

    def __post_init__(self) -> None:
        """Checks the options and sets the state to zero."""
        super().__post_init__()
        if self.curve not in ("ROC", "PR"):
            raise ValueError(f"AUC: curve={self.curve!r} is not known. Use 'ROC' or 'PR'.")
        if self.num_bins < 2:
            raise ValueError(f"AUC: num_bins={self.num_bins} must be 2 or more.")
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
        target, preds = match_real(target, preds, "AUC")
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

    def compute(self) -> jax.Array:
        """Returns the area, a scalar.

        It is NaN if it is undefined (no positives or, for `ROC`, no negatives), and after a NaN prediction.
        """
        positives = self.positives.value / jnp.sum(self.positives.value)
        negatives = self.negatives.value
        if self.curve == "ROC":
            negatives = negatives / jnp.sum(negatives)
            below = jnp.cumsum(negatives) - negatives
            return jnp.sum(positives * (below + 0.5 * negatives))
        found = jnp.cumsum(self.positives.value[::-1])[::-1]
        chosen = found + jnp.cumsum(negatives[::-1])[::-1]
        return jnp.sum(positives * safe_divide(found, chosen))

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
            raise ValueError(f"AUC: the targets are 0 or 1, but there are {other[:5]}.")
        if self.from_logits or not isinstance(preds, (np.ndarray, jax.Array)):
            return
        if preds.size and (preds.min() < 0 or preds.max() > 1):
            raise ValueError(
                f"AUC: preds range from {preds.min():.3g} to {preds.max():.3g}, but probabilities are in [0, 1]. "
                "Pass from_logits=True if they are logits."
            )
