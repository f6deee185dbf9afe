"""Kullback-Leibler divergence."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from elegy.losses.loss import Loss
from elegy.losses.numbers import log_softmax_of
from elegy.losses.shapes import match_real
from elegy.pytree import static_field

_EPSILON = 1e-7


def kl_divergence(target: ArrayLike, preds: ArrayLike, *, from_logits: bool = True) -> jax.Array:
    """Computes `sum(target * log(target / preds))` over the last axis, by Optax.

    Args:
        target: distributions, `(..., C)`. Entries of 0 contribute 0, also where a logit is -inf.
        preds: logits or probabilities of the same shape.
        from_logits: True if `preds` are logits, False if they are probabilities, of which those below 1e-7 are
            replaced by 1e-7.

    Returns:
        `(...)`, at least float32.

    Raises:
        ValueError: if the shapes differ, or there is no axis of classes.
        TypeError: if an array is complex.

    Example:
        >>> kl_divergence(jnp.array([[0.0, 1.0]]), jnp.array([[0.0, 0.0]]))
        Array([0.6931472], dtype=float32)
    """
    target, preds = match_real(target, preds, "KLDivergence")
    if preds.ndim == 0:
        raise ValueError("KLDivergence: target and preds need a last axis of classes, but they are scalars.")
    log_preds = log_softmax_of(target, preds) if from_logits else jnp.log(jnp.maximum(preds, _EPSILON))
    return optax.losses.kl_divergence(log_preds, target)


class KLDivergence(Loss):
    """Kullback-Leibler divergence of predicted from given distributions (see `kl_divergence`).

    Args:
        from_logits: True if `preds` are logits, False if they are probabilities.
        reduction: see `Loss`.
        weight: see `Loss`.
        name: see `Loss`.

    Example:
        >>> loss = KLDivergence()
        >>> loss(target=jnp.array([[0.5, 0.5]]), preds=jnp.array([[3.0, 3.0]])).item()
        0.0
    """

    from_logits: bool = static_field(default=True, kw_only=True)

    def call(self, target: ArrayLike, preds: ArrayLike) -> jax.Array:
        """Computes the values of the examples.

        Args:
            target: distributions, `(B, ..., C)`.
            preds: the same shape.

        Raises:
            ValueError: if the shapes differ, or there is no axis of classes beside that of the examples.
        """
        if jnp.ndim(preds) == 1 or jnp.ndim(target) == 1:
            raise ValueError(
                f"KLDivergence: target has shape {jnp.shape(target)} and preds {jnp.shape(preds)}, but both need the "
                "shape (batch, ..., classes)."
            )
        return kl_divergence(target, preds, from_logits=self.from_logits)
