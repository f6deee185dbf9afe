"""Packs many small arrays into few collectives."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from elegy.types import PyTree

SMALL = 2**14
"""The largest number of elements of an array that is packed: copying it costs less than another collective."""


def packed(collective: Callable[[list[jax.Array]], list[jax.Array]], tree: PyTree, *, gathers: bool = False) -> PyTree:
    """Applies an elementwise collective to a tree; small leaves of the same dtype are concatenated first.

    Args:
        collective: takes and returns a list of arrays.
        tree: the arrays.
        gathers: True if the collective adds a leading axis.

    Example:
        >>> packed(lambda leaves: [2 * leaf for leaf in leaves], {"a": jnp.ones(2), "b": jnp.ones(())})
        {'a': Array([2., 2.], dtype=float32), 'b': Array(2., dtype=float32)}
    """
    leaves, treedef = jax.tree.flatten(tree)
    leaves = [jnp.asarray(leaf) for leaf in leaves]
    groups: dict[Any, list[int]] = {}
    for i, leaf in enumerate(leaves):
        groups.setdefault(leaf.dtype if leaf.size <= SMALL else i, []).append(i)
    joined = [
        leaves[group[0]] if len(group) == 1 else jnp.concatenate([leaves[i].ravel() for i in group])
        for group in groups.values()
    ]
    out: list[Any] = list(leaves)
    for group, result in zip(groups.values(), collective(joined) if joined else [], strict=True):
        if len(group) == 1:
            out[group[0]] = result
            continue
        lead = result.shape[:1] if gathers else ()
        start = 0
        for i in group:
            stop = start + math.prod(leaves[i].shape)
            out[i] = result[..., start:stop].reshape(lead + leaves[i].shape)
            start = stop
    return jax.tree.unflatten(treedef, out)
