"""Sequences of tokens with padding."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def left_packed(tokens: jax.Array, counts: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Moves the tokens that count to the beginning of their sequence, in order.

    Args:
        tokens: `(..., T)`.
        counts: `(..., T)` bool, False for padding.

    Returns:
        The tokens `(..., T)`, of which those behind the length are arbitrary, and the lengths `(...)`, int32.

    Example:
        >>> tokens, length = left_packed(jnp.array([7, 8, 9]), jnp.array([True, False, True]))
        >>> tokens[:2].tolist(), int(length)
        ([7, 9], 2)
    """
    order = jnp.argsort(~counts, axis=-1, stable=True)
    return jnp.take_along_axis(tokens, order, axis=-1), jnp.sum(counts, axis=-1, dtype=jnp.int32)
