"""Mean absolute percentage error."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from elegy.losses.loss import Loss
from elegy.losses.shapes import match_shapes, mean_over_features

_EPSILON = 1e-7


def mean_absolute_percentage_error(target: ArrayLike, preds: ArrayLike) -> jax.Array:
    """Computes `100 * mean(|preds - target| / max(|target|, 1e-7))` over the last axis, of real or
    complex numbers.

    Args:
        target: `(B, ..., D)`.
        preds: the same shape.

    Returns:
        `(B, ...)`, in percent; for inputs `(B,)` the percentages themselves. At least float32.

    Raises:
        ValueError: if the shapes differ.

    Example:
        >>> mean_absolute_percentage_error(jnp.array([[1.0, 2.0]]), jnp.array([[1.5, 3.0]]))
        Array([50.], dtype=float32)
    """
    target, preds = match_shapes(target, preds, "MeanAbsolutePercentageError")
    return 100.0 * mean_over_features(jnp.abs(preds - target) / jnp.maximum(jnp.abs(target), _EPSILON))


class MeanAbsolutePercentageError(Loss):
    """Mean absolute percentage error (see `mean_absolute_percentage_error`).

    Args:
        reduction: see `Loss`.
        weight: see `Loss`.
        name: see `Loss`.

    Example:
        >>> MeanAbsolutePercentageError()(target=jnp.array([[2.0]]), preds=jnp.array([[3.0]])).item()
        50.0
    """

    def call(self, target: ArrayLike, preds: ArrayLike) -> jax.Array:
        """Computes the values of the examples.

        Args:
            target: `(B, ..., D)`.
            preds: the same shape.

        Raises:
            ValueError: if the shapes differ.
        """
        return mean_absolute_percentage_error(target, preds)
