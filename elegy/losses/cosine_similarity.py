"""Cosine similarity as a loss."""

from __future__ import annotations

import jax
import optax
from jax.typing import ArrayLike

from elegy.losses.loss import Loss
from elegy.losses.shapes import match_real
from elegy.pytree import static_field

_EPSILON = 1e-7


def cosine_similarity(target: ArrayLike, preds: ArrayLike, axis: int = -1) -> jax.Array:
    """Computes the negative cosine of the angle between target and prediction: -1 is best, 1 is worst.

    For a vector of zeros the value is 0.

    Args:
        target: `(B, ..., D)`.
        preds: the same shape.
        axis: the axis of the vectors.

    Returns:
        Values without `axis`, at least float32.

    Raises:
        ValueError: if the shapes differ.

    Example:
        >>> import jax.numpy as jnp
        >>> cosine_similarity(jnp.array([[2.0, 0.0]]), jnp.array([[3.0, 0.0]]))
        Array([-1.], dtype=float32)
    """
    target, preds = match_real(target, preds, "CosineSimilarity")
    return -optax.cosine_similarity(preds, target, epsilon=_EPSILON, axis=axis)


class CosineSimilarity(Loss):
    """Negative cosine similarity (see `cosine_similarity`).

    Args:
        axis: the axis of the vectors.
        reduction: see `Loss`.
        weight: see `Loss`.
        name: see `Loss`.

    Example:
        >>> import jax.numpy as jnp
        >>> CosineSimilarity()(target=jnp.array([[1.0, 0.0]]), preds=jnp.array([[0.0, 1.0]])).item()
        -0.0
    """

    axis: int = static_field(default=-1)

    def call(self, target: ArrayLike, preds: ArrayLike) -> jax.Array:
        """Computes the values of the examples.

        Args:
            target: `(B, ..., D)`.
            preds: the same shape.

        Raises:
            ValueError: if the shapes differ.
        """
        return cosine_similarity(target, preds, self.axis)
