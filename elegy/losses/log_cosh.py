"""Log-cosh loss."""

from __future__ import annotations

import jax
import optax
from jax.typing import ArrayLike

from elegy.losses.loss import Loss
from elegy.losses.shapes import match_real, mean_over_features


def log_cosh(target: ArrayLike, preds: ArrayLike) -> jax.Array:
    """Computes `log(cosh(preds - target))`, averaged over the last axis.

    It is about `error ** 2 / 2` for small errors and `|error| - log(2)` for large ones, with Optax's formula, which
    does not overflow.

    Args:
        target: `(B, ..., D)`.
        preds: the same shape.

    Returns:
        `(B, ...)`; for inputs `(B,)` one value for each example. At least float32.

    Raises:
        ValueError: if the shapes differ.
        TypeError: if an array is complex.

    Example:
        >>> import jax.numpy as jnp
        >>> log_cosh(jnp.zeros((1, 2)), jnp.array([[0.0, 1000.0]])).item()
        499.653...
    """
    target, preds = match_real(target, preds, "LogCosh")
    return mean_over_features(optax.log_cosh(preds, target))


class LogCosh(Loss):
    """Logarithm of the hyperbolic cosine of the error (see `log_cosh`).

    Args:
        reduction: see `Loss`.
        weight: see `Loss`.
        name: see `Loss`.

    Example:
        >>> import jax.numpy as jnp
        >>> LogCosh()(target=jnp.zeros(2), preds=jnp.zeros(2)).item()
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
        return log_cosh(target, preds)
