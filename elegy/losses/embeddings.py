"""Predictions that are several embeddings of each example."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from elegy.losses.numbers import at_least_float32, check_real
from elegy.losses.shapes import check_array
from elegy.names import snake_case


def embeddings(preds: Any, names: tuple[str, ...], what: str) -> list[jax.Array]:
    """Converts a tuple of embeddings to arrays of one shape and dtype, at least float32.

    Args:
        preds: a tuple or list of arrays `(B, ..., D)`.
        names: what the parts are, for messages.
        what: the name of the caller in messages.

    Raises:
        TypeError: if `preds` is not a tuple or list of arrays, or one of them is complex.
        ValueError: if their number or their shapes differ.

    Example:
        >>> [part.shape for part in embeddings((jnp.zeros((2, 3)), jnp.ones((2, 3))), ("left", "right"), "Contrastive")]
        [(2, 3), (2, 3)]
    """
    parts = ", ".join(names)
    if not isinstance(preds, (tuple, list)):
        raise TypeError(
            f"{what}: preds must be a tuple ({parts}) of arrays (batch, ..., features), but it is a "
            f"{type(preds).__name__}. Return such a tuple from the module, or pass a function that makes it, such as "
            f"`loss=lambda preds: eg.losses.{snake_case(what)}(({', '.join(f'preds[{name!r}]' for name in names)}))`."
        )
    if len(preds) != len(names):
        raise ValueError(f"{what}: preds has {len(preds)} parts, but must be a tuple ({parts}).")
    for part in preds:
        check_array(part, "a part of preds", what)
    arrays = [jnp.asarray(part) for part in preds]
    check_real(what, **dict(zip(names, arrays, strict=True)))
    shapes = [array.shape for array in arrays]
    if len(set(shapes)) > 1 or arrays[0].ndim == 0:
        raise ValueError(f"{what}: preds ({parts}) have the shapes {shapes}, but must have the same, (..., features).")
    dtype = at_least_float32(*(array.dtype for array in arrays))
    return [array.astype(dtype) for array in arrays]
