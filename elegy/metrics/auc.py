"""Area under the ROC or the precision-recall curve."""

from __future__ import annotations

from typing import Literal

import jax
import jax.numpy as jnp

from elegy.losses.reduction import safe_divide
from elegy.metrics.binned_scores import BinnedScores
from elegy.pytree import static_field


class AUC(BinnedScores):
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

    curve: Literal["ROC", "PR"] = static_field(default="ROC")

    def __post_init__(self) -> None:
        """Checks the options and sets the state to zero."""
        super().__post_init__()
        if self.curve not in ("ROC", "PR"):
            raise ValueError(f"AUC: curve={self.curve!r} is not known. Use 'ROC' or 'PR'.")

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


class AveragePrecision(AUC):
    """Area under the precision-recall curve of binary decisions, without interpolation: `AUC` with `curve="PR"`.

    It is `sum_k (recall[k] - recall[k - 1]) * precision[k]` over the thresholds, as in scikit-learn.

    Args:
        num_bins: the number of bins over [0, 1].
        from_logits: True if `preds` are logits, to which the sigmoid is applied.
        name: see `Metric`.
        dtype: the dtype of the state.

    Raises:
        ValueError: if there are fewer than 2 bins.

    Example:
        >>> metric = AveragePrecision().update(target=jnp.array([0, 0, 1, 1]), preds=jnp.array([0.1, 0.4, 0.35, 0.8]))
        >>> metric.compute().item()
        0.83333...
    """

    curve: Literal["ROC", "PR"] = static_field(default="PR", init=False)


PRAUC = AveragePrecision
