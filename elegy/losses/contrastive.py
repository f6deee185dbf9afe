"""Contrastive loss of pairs."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from elegy.losses.embeddings import embeddings
from elegy.losses.loss import Loss
from elegy.losses.shapes import array_shape, check_array
from elegy.pytree import static_field
from elegy.types import PyTree


def contrastive(target: ArrayLike, preds: tuple[ArrayLike, ArrayLike], margin: float = 1.0) -> jax.Array:
    """Computes `target * d ** 2 + (1 - target) * max(0, margin - d) ** 2`, where `d` is the Euclidean distance.

    See Hadsell, Chopra and LeCun, "Dimensionality reduction by learning an invariant mapping", 2006, where the value is
    half of this and 0 means similar.

    Args:
        target: 1 for similar pairs, 0 for others, `(...)`.
        preds: a tuple of two arrays `(..., D)`.
        margin: the distance beyond which other pairs do not count.

    Returns:
        `(...)`, at least float32. The gradient is 0 where the embeddings are equal.

    Raises:
        TypeError: if `preds` is not a tuple.
        ValueError: if the shapes do not fit.

    Example:
        >>> pair = jnp.zeros((2, 1)), jnp.full((2, 1), 0.75)
        >>> contrastive(jnp.array([1, 0]), pair)
        Array([0.5625, 0.0625], dtype=float32)
    """
    left, right = embeddings(preds, ("left", "right"), "Contrastive")
    check_array(target, "target", "Contrastive")
    target = jnp.asarray(target, left.dtype)
    if target.shape == (*left.shape[:-1], 1):
        target = target[..., 0]
    if target.shape != left.shape[:-1]:
        raise ValueError(
            f"Contrastive: target has shape {target.shape}, but embeddings of shape {left.shape} need one label for "
            f"each pair, {left.shape[:-1]}."
        )
    squared = jnp.sum(jnp.square(left - right), axis=-1)
    apart = squared > 0  # the root has no gradient at 0
    distance = jnp.where(apart, jnp.sqrt(jnp.where(apart, squared, 1.0)), 0.0)
    return target * squared + (1.0 - target) * jnp.square(jnp.maximum(margin - distance, 0.0))


class Contrastive(Loss):
    """Contrastive loss of pairs of embeddings (see `contrastive`).

    Args:
        margin: the distance beyond which pairs that are not similar do not count.
        reduction: see `Loss`.
        weight: see `Loss`.
        name: see `Loss`.

    Raises:
        ValueError: if `margin` is not positive.

    Example:
        >>> Contrastive(margin=2.0)(target=jnp.array([0]), preds=(jnp.zeros((1, 3)), jnp.zeros((1, 3)))).item()
        4.0
    """

    margin: float = static_field(default=1.0)

    def __post_init__(self) -> None:
        """Checks the margin."""
        super().__post_init__()
        if not self.margin > 0:
            raise ValueError(f"Contrastive: margin={self.margin!r} must be positive.")

    def call(self, target: ArrayLike, preds: tuple[ArrayLike, ArrayLike]) -> jax.Array:
        """Computes the values of the examples.

        Args:
            target: 1 for similar pairs, 0 for others, `(B, ...)`.
            preds: two arrays `(B, ..., D)`.

        Raises:
            TypeError: if `preds` is not a tuple.
            ValueError: if the shapes do not fit.
        """
        return contrastive(target, preds, self.margin)

    def target_check(self, target: PyTree, preds: PyTree) -> None:
        """Checks that the targets are 0 or 1.

        Args:
            target: ground truth, on the host.
            preds: predictions; not checked.

        Raises:
            ValueError: if there are other values.
        """
        if array_shape(target) is None:
            return
        other = [v for v in np.unique(np.asarray(target)).tolist() if v not in (0, 1)]
        if other:
            raise ValueError(f"Contrastive: the targets are 1 for similar pairs and 0 for others, not {other[:5]}.")
