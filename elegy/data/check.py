"""Checks data for NaN and infinity (`check_inputs=True`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from elegy.data.batch import named_leaves
from elegy.data.lazy_rows import LazyRows
from elegy.types import Batch


def check_finite(batch: Batch, what: str = "the data", columns: Mapping[str, Sequence[Any]] | None = None) -> None:
    """Checks that no value of a batch, or of all the data, is NaN or infinite.

    Args:
        batch: arrays; integers are not checked.
        what: the name of the data in messages.
        columns: the column names of leaves that were tables, by the name of the leaf.

    Raises:
        ValueError: if a value is not finite; the message lists the arrays with the number of such values.

    Example:
        >>> check_finite((np.array([1.0, np.nan]), np.array([0, 1])))
        Traceback (most recent call last):
        ...
        ValueError: the data has values that are not finite (NaN or infinity): inputs has 1 of 2. ...
    """
    found = []
    for name, leaf in named_leaves(batch):
        dtype = getattr(leaf, "dtype", None)
        if dtype is None or not jnp.issubdtype(dtype, np.inexact):
            continue
        if isinstance(leaf, LazyRows):
            if count := sum(int(np.count_nonzero(~np.isfinite(values))) for values in leaf.values):
                found.append(f"{name} has {count} of {leaf.size}")
            continue
        xp: Any = jnp if isinstance(leaf, jax.Array) else np
        bad = ~xp.isfinite(leaf)
        if count := int(xp.count_nonzero(bad)):
            names = (columns or {}).get(name, ())
            where = [column for column, one in zip(names, np.asarray(bad).T, strict=False) if one.any()]
            found.append(f"{name} has {count} of {leaf.size}" + (f" (in the columns {where})" if where else ""))
    if found:
        raise ValueError(
            f"{what} has values that are not finite (NaN or infinity): {', '.join(found)}. Clean the data "
            "(`numpy.nan_to_num`, or drop the rows), or turn check_inputs off."
        )
