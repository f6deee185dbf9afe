"""Perplexity."""

from __future__ import annotations

from typing import Any, Self

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from elegy.losses.cross_entropy import cross_entropy
from elegy.losses.labels import widen_integers
from elegy.losses.reduction import total_weight
from elegy.metrics.reduce import Accumulator
from elegy.pytree import static_field


class Perplexity(Accumulator):
    """The exponential of the mean cross-entropy over all values, usually tokens.

    Args:
        from_logits: True if `preds` are logits, False if they are probabilities.
        ignore_index: a class index of the target that is not counted, often that of padding.
        name: see `Metric`.
        dtype: the dtype of the state.

    Example:
        >>> metric = Perplexity().update(target=jnp.array([[0, 1]]), preds=jnp.zeros((1, 2, 4)))
        >>> metric.compute().item()
        4.0
    """

    from_logits: bool = static_field(default=True, kw_only=True)
    ignore_index: int | None = static_field(default=None, kw_only=True)

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
            target: class indices `(...)`.
            preds: `(..., C)`.
            sample_weight: a scalar, `(B,)` or finer.
            mask: `(B,)` bool, False for padding.
            **_: ignored.

        Raises:
            ValueError: if the shapes do not fit.
            TypeError: if class indices are not integers.
        """
        target = widen_integers(jnp.asarray(target))
        values = cross_entropy(target, preds, from_logits=self.from_logits)
        if self.ignore_index is not None:
            weight = total_weight(sample_weight, mask, values.shape)
            ignored = target.reshape(values.shape) == self.ignore_index
            sample_weight = jnp.where(ignored, 0.0, 1.0 if weight is None else weight)
        return self.accumulate(values, sample_weight, mask)

    def compute(self) -> jax.Array:
        """Returns the perplexity, a scalar; 1 without data."""
        return jnp.exp(super().compute())
