"""Calibration of predicted probabilities."""

from __future__ import annotations

from typing import Any, Self

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from elegy.losses.numbers import at_least_float32, check_real
from elegy.losses.reduction import safe_divide, total_weight
from elegy.losses.shapes import match_real
from elegy.metrics.decisions import class_indices, has_class_axis
from elegy.metrics.metric import Metric
from elegy.metrics.sums import CompensatedSum, binned_sums
from elegy.pytree import field, static_field


class ExpectedCalibrationError(Metric):
    """The mean difference between confidence and accuracy, over bins of the confidence.

    `sum_k |sum of confidences in bin k - sum of hits in bin k| / sum of weights`, with the bins
    `(k / num_bins, (k + 1) / num_bins]`. For classes the confidence is the highest probability, and a hit is that the
    class with it is the target; for binary outputs the confidence is the probability of 1, and a hit is a target of 1.
    See Guo et al., "On calibration of modern neural networks", 2017 (https://arxiv.org/abs/1706.04599).

    Args:
        num_bins: the number of bins over [0, 1].
        from_logits: True if `preds` are logits, False if they are probabilities.
        name: see `Metric`.
        dtype: the dtype of the state.

    Raises:
        ValueError: if there are no bins.

    Example:
        >>> metric = ExpectedCalibrationError(10, from_logits=False)
        >>> metric.update(target=jnp.array([0, 1]), preds=jnp.array([[0.75, 0.25], [0.75, 0.25]])).compute().item()
        0.25
    """

    num_bins: int = static_field(default=15)
    from_logits: bool = static_field(default=True, kw_only=True)

    sums: CompensatedSum = field(init=False)

    def __post_init__(self) -> None:
        """Checks the number of bins and sets the state to zero."""
        super().__post_init__()
        if self.num_bins < 1:
            raise ValueError(f"ExpectedCalibrationError: num_bins={self.num_bins} must be 1 or more.")
        vars(self).update(sums=CompensatedSum.zeros((3, self.num_bins), self.dtype))

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
            target: class indices `(...)` or one-hot `(..., C)`; or 0 and 1 in the shape of binary outputs.
            preds: `(..., C)`; or binary outputs.
            sample_weight: a scalar, `(B,)` or finer.
            mask: `(B,)` bool, False for padding.
            **_: ignored.

        Raises:
            ValueError: if the shapes do not fit.
        """
        confidence, hit = self._confidence_and_hit(jnp.asarray(target), jnp.asarray(preds))
        weight = total_weight(sample_weight, mask, confidence.shape)
        weight = jnp.ones(confidence.shape) if weight is None else weight
        confidence = jnp.where(weight != 0, confidence, 0.0)
        place = jnp.clip(jnp.nan_to_num(confidence) * self.num_bins, 0.0, self.num_bins)
        bins = jnp.maximum(jnp.ceil(place).astype(jnp.int32) - 1, 0).ravel()
        added = [binned_sums(bins, (weight * x).ravel(), self.num_bins) for x in (jnp.ones(()), confidence, hit)]
        return self.replace(sums=self.sums + jnp.stack(added))

    def _confidence_and_hit(self, target: jax.Array, preds: jax.Array) -> tuple[jax.Array, jax.Array]:
        what = type(self).__name__
        check_real(what, target=target, preds=preds)
        if not has_class_axis(target, preds):
            target, preds = match_real(target, preds, what)
            return jax.nn.sigmoid(preds) if self.from_logits else preds, (target > 0.5).astype(preds.dtype)
        preds = preds.astype(at_least_float32(preds.dtype))
        label, chosen = class_indices(target, preds, 1, what)
        probabilities = jax.nn.softmax(preds) if self.from_logits else preds
        return jnp.max(probabilities, axis=-1), (chosen[..., 0] == label).astype(preds.dtype)

    def compute(self) -> jax.Array:
        """Returns the error, a scalar; 0 without data."""
        weight, confidence, hits = self.sums.value
        return safe_divide(jnp.sum(jnp.abs(confidence - hits)), jnp.sum(weight))


ECE = ExpectedCalibrationError
