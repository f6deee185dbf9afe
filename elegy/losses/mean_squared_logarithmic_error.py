"""Mean squared logarithmic error."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from elegy.losses.loss import Loss
from elegy.losses.shapes import match_real, mean_over_features


def mean_squared_logarithmic_error(target: ArrayLike, preds: ArrayLike) -> jax.Array:
    """Computes `mean((log(1 + preds) - log(1 + target)) ** 2)` over the last axis; negative numbers count as 0.

    Args:
        target: `(B, ..., D)`.
        preds: the same shape.

    Returns:
        `(B, ...)`; for inputs `(B,)` the squares themselves. At least float32.

    Raises:
        ValueError: if the shapes differ.

    Example:
        >>> mean_squared_logarithmic_error(jnp.zeros((1, 1)), jnp.array([[jnp.e - 1.0]]))
        Array([1.], dtype=float32)
    """
    target, preds = match_real(target, preds, "MeanSquaredLogarithmicError")
    difference = jnp.log1p(jnp.maximum(preds, 0.0)) - jnp.log1p(jnp.maximum(target, 0.0))
    return mean_over_features(jnp.square(difference))


class MeanSquaredLogarithmicError(Loss):
    """Mean squared logarithmic error (see `mean_squared_logarithmic_error`).

    Args:
        reduction: see `Loss`.
        weight: see `Loss`.
        name: see `Loss`.

    Example:
        >>> MeanSquaredLogarithmicError()(target=jnp.zeros((1, 1)), preds=jnp.zeros((1, 1))).item()
        0.0
    """

    def call(self, target: ArrayLike, preds: ArrayLike) -> jax.Array:
        """Computes the values of the examples.

        Args:
            target: `(B, ..., D)`.
            preds: the same shape.

        Raises:
            ValueError: if the shapes differ.
        """
        return mean_squared_logarithmic_error(target, preds)
