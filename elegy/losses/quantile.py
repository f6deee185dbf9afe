"""Quantile loss."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from elegy.losses.loss import Loss
from elegy.losses.shapes import check_array, match_real, mean_over_features
from elegy.pytree import static_field


def quantile(target: ArrayLike, preds: ArrayLike, q: float | Sequence[float] = 0.5) -> jax.Array:
    """Computes the pinball loss, `max(q * error, (q - 1) * error)` with `error = target - preds`.

    Its minimum is the `q`-quantile of the target. See Koenker and Bassett, "Regression quantiles", 1978.

    Args:
        target: `(B, ..., D)`; for several quantiles `(B, ...)`.
        preds: the same shape; for several quantiles `(B, ..., len(q))`.
        q: the quantile, or several quantiles, over which the loss is averaged.

    Returns:
        `(B, ...)`, the mean over the last axis; for inputs `(B,)` one value for each example. At least float32.

    Raises:
        ValueError: if the shapes do not fit.
        TypeError: if an array is complex.

    Example:
        >>> quantile(jnp.array([1.0, 3.0]), jnp.array([2.0, 2.0]), 0.75)
        Array([0.25, 0.75], dtype=float32)
        >>> quantile(jnp.array([1.0]), jnp.array([[1.0, 2.0]]), (0.25, 0.75))
        Array([0.125], dtype=float32)
    """
    if isinstance(q, Sequence):
        check_array(target, "target", "Quantile")
        check_array(preds, "preds", "Quantile")
        preds, target = jnp.asarray(preds), jnp.asarray(target)
        rows = preds.shape[:-1]
        if preds.shape[-1:] != (len(q),) or target.shape not in (rows, (*rows, 1)):
            raise ValueError(
                f"Quantile: target has shape {target.shape} and preds {preds.shape}. For {len(q)} quantiles give "
                f"targets of shape (...) and predictions of shape (..., {len(q)})."
            )
        target = jnp.broadcast_to(target.reshape(*rows, 1), preds.shape)
    target, preds = match_real(target, preds, "Quantile")
    level = jnp.broadcast_to(jnp.asarray(q, preds.dtype), preds.shape)
    error = target - preds
    return mean_over_features(jnp.maximum(level * error, (level - 1.0) * error))


class Quantile(Loss):
    """Quantile or pinball loss (see `quantile`).

    Args:
        q: the quantile, in (0, 1), or a tuple of them for predictions with a last axis of quantiles.
        reduction: see `Loss`.
        weight: see `Loss`.
        name: see `Loss`.

    Raises:
        ValueError: if a quantile is not in (0, 1).

    Example:
        >>> Quantile(0.9)(target=jnp.array([1.0]), preds=jnp.array([0.0])).item()
        0.89999...
    """

    q: float | tuple[float, ...] = static_field(default=0.5)

    def __post_init__(self) -> None:
        """Checks the quantiles."""
        super().__post_init__()
        levels = tuple(self.q) if isinstance(self.q, Sequence) else (self.q,)
        if not levels or not all(0 < level < 1 for level in levels):
            raise ValueError(f"Quantile: q={self.q!r} must be a number between 0 and 1, or a tuple of them.")
        vars(self).update(q=levels if isinstance(self.q, Sequence) else float(self.q))

    def call(self, target: ArrayLike, preds: ArrayLike) -> jax.Array:
        """Computes the values of the examples.

        Args:
            target: `(B, ..., D)`; for several quantiles `(B, ...)`.
            preds: the same shape; for several quantiles `(B, ..., len(q))`.

        Raises:
            ValueError: if the shapes do not fit.
        """
        return quantile(target, preds, self.q)


Pinball = Quantile
