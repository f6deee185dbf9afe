"""A look at the values, for those who ask for one."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from elegy.data.batch import named_leaves
from elegy.types import Batch


def check_finite(batch: Batch, what: str = "the data") -> None:
    """Checks that a batch, or all of the data, holds no NaN and no infinity.

    Args:
        batch: arrays; those of integers are left out.
        what: what the message calls it.

    Raises:
        ValueError: when it does; the message names every such array and counts its bad values.

    Example:
        >>> check_finite((np.array([1.0, np.nan]), np.array([0, 1])))
        Traceback (most recent call last):
        ...
        ValueError: the data has values that are not finite (NaN or infinity): inputs has 1 of 2. ...
    """
    found = []
    for name, leaf in named_leaves(batch):
        dtype = getattr(leaf, "dtype", None)
        if dtype is None or not jax.dtypes.issubdtype(dtype, np.inexact):
            continue
        xp: Any = jnp if isinstance(leaf, jax.Array) else np
        bad = leaf.size - int(xp.count_nonzero(xp.isfinite(leaf)))
        if bad:
            found.append(f"{name} has {bad} of {leaf.size}")
    if found:
        raise ValueError(
            f"{what} has values that are not finite (NaN or infinity): {', '.join(found)}. Clean the data "
            "(`numpy.nan_to_num`, or drop the rows), or turn check_inputs off."
        )
