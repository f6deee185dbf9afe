"""Converts typed random keys to arrays and back: JAX runs Python code for each typed key of a compiled call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp


def key_impls(leaves: Sequence[Any]) -> dict[int, Any]:
    """Returns the generators of the typed keys among some leaves, by position.

    Args:
        leaves: arrays or tracers.

    Example:
        >>> key_impls([jax.numpy.zeros(2), jax.random.key(0)])
        {1: 'threefry2x32'}
    """
    return {
        i: jax.random.key_impl(leaf) for i, leaf in enumerate(leaves) if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    }


def unwrap_keys(leaves: Sequence[Any], impls: Mapping[int, Any]) -> list[Any]:
    """Returns the leaves with the data of each key in place of the key.

    Args:
        leaves: arrays or tracers.
        impls: the result of `key_impls`.
    """
    return [jax.random.key_data(leaf) if i in impls else leaf for i, leaf in enumerate(leaves)]


def wrap_keys(leaves: Sequence[Any], impls: Mapping[int, Any]) -> list[Any]:
    """The inverse of `unwrap_keys`.

    Args:
        leaves: arrays or tracers.
        impls: from `key_impls`.

    Example:
        >>> leaves = [jax.random.key(0)]
        >>> impls = key_impls(leaves)
        >>> wrap_keys(unwrap_keys(leaves, impls), impls)[0] == leaves[0]
        Array(True, dtype=bool)
    """
    return [jax.random.wrap_key_data(leaf, impl=impls[i]) if i in impls else leaf for i, leaf in enumerate(leaves)]
