"""Triplet loss."""

from __future__ import annotations

import jax
import optax
from jax.typing import ArrayLike

from elegy.losses.embeddings import embeddings
from elegy.losses.loss import Loss
from elegy.pytree import static_field


def triplet(preds: tuple[ArrayLike, ArrayLike, ArrayLike], margin: float = 1.0) -> jax.Array:
    """Computes `max(0, |anchor - positive| - |anchor - negative| + margin)` of Euclidean distances, by Optax.

    See Schroff, Kalenichenko and Philbin, "FaceNet", 2015 (https://arxiv.org/abs/1503.03832), which squares the
    distances. Optax adds 1e-6 to the sum of squares under the root, so that gradients of equal embeddings are finite.

    Args:
        preds: a tuple `(anchor, positive, negative)` of arrays `(..., D)`.
        margin: the distance by which the negative should be farther than the positive.

    Returns:
        `(...)`, at least float32.

    Raises:
        TypeError: if `preds` is not a tuple.
        ValueError: if the shapes differ.

    Example:
        >>> import jax.numpy as jnp
        >>> anchor, positive, negative = jnp.zeros((1, 2)), jnp.array([[3.0, 4.0]]), jnp.array([[0.0, 2.0]])
        >>> triplet((anchor, positive, negative)).round(3)
        Array([4.], dtype=float32)
    """
    anchor, positive, negative = embeddings(preds, ("anchor", "positive", "negative"), "Triplet")
    return optax.losses.triplet_margin_loss(anchor, positive, negative, margin=margin)


class Triplet(Loss):
    """Triplet loss of embeddings (see `triplet`). It takes no target.

    Args:
        margin: the distance by which the negative should be farther than the positive.
        reduction: see `Loss`.
        weight: see `Loss`.
        name: see `Loss`.

    Raises:
        ValueError: if `margin` is negative.

    Example:
        >>> import jax.numpy as jnp
        >>> Triplet(margin=0.5)(preds=(jnp.zeros((1, 2)),) * 3).item()
        0.5
    """

    margin: float = static_field(default=1.0)

    def __post_init__(self) -> None:
        """Checks the margin."""
        super().__post_init__()
        if self.margin < 0:
            raise ValueError(f"Triplet: margin={self.margin!r} must be 0 or more.")

    def call(self, preds: tuple[ArrayLike, ArrayLike, ArrayLike]) -> jax.Array:
        """Computes the values of the examples.

        Args:
            preds: `(anchor, positive, negative)`, each `(B, ..., D)`.

        Raises:
            TypeError: if `preds` is not a tuple.
            ValueError: if the shapes differ.
        """
        return triplet(preds, self.margin)


TripletMargin = Triplet
