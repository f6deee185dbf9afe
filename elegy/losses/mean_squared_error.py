"""Mean squared error."""

from __future__ import annotations

import jax
from jax.typing import ArrayLike

from elegy.losses.loss import Loss
from elegy.losses.numbers import squared_magnitude
from elegy.losses.shapes import match_shapes, mean_over_features


def mean_squared_error(target: ArrayLike, preds: ArrayLike) -> jax.Array:
    """Computes `mean(|preds - target| ** 2)` over the last axis, of real or complex numbers.

    Args:
        target: `(B, ..., D)`.
        preds: the same shape.

    Returns:
        `(B, ...)`; for inputs `(B,)` the squares themselves. At least float32.

    Raises:
        ValueError: if the shapes differ.

    Example:
        >>> import jax.numpy as jnp
        >>> mean_squared_error(jnp.zeros((1, 2)), jnp.array([[1.0, 3.0]]))
        Array([5.], dtype=float32)
    """
    target, preds = match_shapes(target, preds, "MeanSquaredError")
    return mean_over_features(squared_magnitude(preds - target))


class MeanSquaredError(Loss):
    """Mean squared error (see `mean_squared_error`).

    Args:
        reduction: see `Loss`.
        weight: see `Loss`.
        name: see `Loss`.

    Example:
        >>> import jax.numpy as jnp
        >>> MeanSquaredError()(target=jnp.zeros((2, 1)), preds=jnp.array([[1.0], [3.0]])).item()
        5.0
    """

    def call(self, target: ArrayLike, preds: ArrayLike) -> jax.Array:
        """Computes the values of the examples.

        Args:
            target: `(B, ..., D)`.
            preds: the same shape.

        Raises:
            ValueError: if the shapes differ.
        """
        return mean_squared_error(target, preds)


MeanSquareError = MeanSquaredError
