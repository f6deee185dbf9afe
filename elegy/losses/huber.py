"""Huber loss."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from elegy.losses.loss import Loss
from elegy.losses.shapes import match_shapes, mean_over_features
from elegy.pytree import static_field


def huber(target: ArrayLike, preds: ArrayLike, delta: float = 1.0) -> jax.Array:
    """Computes the Huber loss of the distance `|preds - target|`, averaged over the last axis.

    It is quadratic up to `delta` and linear beyond. The numbers may be complex.

    See https://en.wikipedia.org/wiki/Huber_loss.

    Args:
        target: `(B, ..., D)`.
        preds: the same shape.
        delta: the distance at which the loss becomes linear.

    Returns:
        `(B, ...)`; for inputs `(B,)` one value for each example. At least float32.

    Raises:
        ValueError: if the shapes differ.

    Example:
        >>> import jax.numpy as jnp
        >>> huber(jnp.zeros((1, 2)), jnp.array([[1.0, 3.0]]))
        Array([1.5], dtype=float32)
    """
    target, preds = match_shapes(target, preds, "Huber")
    error = preds - target
    if jnp.issubdtype(error.dtype, jnp.complexfloating):
        error = jnp.abs(error)
    return mean_over_features(optax.huber_loss(error, delta=delta))


class Huber(Loss):
    """Huber loss (see `huber`).

    Args:
        delta: the distance at which the loss becomes linear.
        reduction: see `Loss`.
        weight: see `Loss`.
        name: see `Loss`.

    Raises:
        ValueError: if `delta` is not positive.

    Example:
        >>> import jax.numpy as jnp
        >>> Huber(delta=1.0)(target=jnp.zeros((1, 2)), preds=jnp.array([[1.0, 3.0]])).item()
        1.5
    """

    delta: float = static_field(default=1.0)

    def __post_init__(self) -> None:
        """Checks the distance."""
        super().__post_init__()
        if not self.delta > 0:
            raise ValueError(f"Huber: delta={self.delta!r} must be positive.")

    def call(self, target: ArrayLike, preds: ArrayLike) -> jax.Array:
        """Computes the values of the examples.

        Args:
            target: `(B, ..., D)`.
            preds: the same shape.

        Raises:
            ValueError: if the shapes differ.
        """
        return huber(target, preds, self.delta)
