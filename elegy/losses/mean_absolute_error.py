"""Mean absolute error."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from elegy.losses.loss import Loss
from elegy.losses.shapes import match_shapes, mean_over_features


def mean_absolute_error(target: ArrayLike, preds: ArrayLike) -> jax.Array:
    """Computes `mean(|preds - target|)` over the last axis, of real or complex numbers.

    Args:
        target: `(B, ..., D)`.
        preds: the same shape.

    Returns:
        `(B, ...)`; for inputs `(B,)` the distances themselves. At least float32.

    Raises:
        ValueError: if the shapes differ.

    Example:
        >>> mean_absolute_error(jnp.zeros((1, 2)), jnp.array([[1.0, -3.0]]))
        Array([2.], dtype=float32)
    """
    target, preds = match_shapes(target, preds, "MeanAbsoluteError")
    return mean_over_features(jnp.abs(preds - target))


class MeanAbsoluteError(Loss):
    """Mean absolute error (see `mean_absolute_error`).

    Args:
        reduction: see `Loss`.
        weight: see `Loss`.
        name: see `Loss`.

    Example:
        >>> MeanAbsoluteError()(target=jnp.zeros((2, 1)), preds=jnp.array([[1.0], [-3.0]])).item()
        2.0
    """

    def call(self, target: ArrayLike, preds: ArrayLike) -> jax.Array:
        """Computes the values of the examples.

        Args:
            target: `(B, ..., D)`.
            preds: the same shape.

        Raises:
            ValueError: if the shapes differ.
        """
        return mean_absolute_error(target, preds)
