"""Converts class indices to a dtype in which they can be compared."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def widen_integers(labels: jax.Array) -> jax.Array:
    """Casts integers to at least int32, and returns anything else unchanged.

    JAX compares labels with a Python number in the labels' dtype. The number of classes may not fit into it, and -100
    is 156 in uint8.

    Args:
        labels: class indices, or anything else.

    Example:
        >>> widen_integers(jnp.zeros(2, jnp.uint8)).dtype.name, widen_integers(jnp.zeros(2, bool)).dtype.name
        ('int32', 'bool')
    """
    narrow = jnp.issubdtype(labels.dtype, jnp.integer) and jnp.iinfo(labels.dtype).bits < 32
    return labels.astype(jnp.int32) if narrow else labels
