"""Shape checks that the losses and metrics share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp


def match_shapes(target: Any, preds: Any, what: str) -> tuple[jax.Array, jax.Array]:
    """Makes target and predictions arrays of one shape, in the predictions' dtype, at least float32.

    `(B,)` against `(B, 1)` is meant as the same thing: broadcast, it would silently become `(B, B)`.

    Args:
        target: ground truth.
        preds: predictions.
        what: how messages call the caller.

    Returns:
        `(target, preds)`, floating.

    Raises:
        ValueError: when the shapes differ otherwise.

    Example:
        >>> [x.shape for x in match_shapes(jnp.zeros(3), jnp.zeros((3, 1)), "MeanSquaredError")]
        [(3,), (3,)]
    """
    target, preds = jnp.asarray(target), jnp.asarray(preds)
    given = target.shape, preds.shape
    if preds.shape == (*target.shape, 1):
        preds = preds[..., 0]
    elif target.shape == (*preds.shape, 1):
        target = target[..., 0]
    if target.shape != preds.shape:
        raise ValueError(
            f"{what}: target has shape {given[0]} and preds {given[1]}. They must have the same shape "
            "(one trailing axis of size 1 may be missing)."
        )
    dtype = jnp.promote_types(preds.dtype, jnp.float32)
    return target.astype(dtype), preds.astype(dtype)


def mean_over_features(values: jax.Array) -> jax.Array:
    """Averages over the last axis, unless that is the axis of examples.

    Example:
        >>> mean_over_features(jnp.ones((4, 3))).shape, mean_over_features(jnp.ones(4)).shape
        ((4,), (4,))
    """
    return values.mean(axis=-1) if values.ndim > 1 else values


def makes_outer(function: Callable[[Any, Any], Any], target: Any, preds: Any) -> bool:
    """Whether a function falls into a trap of broadcasting: `(B,)` against `(B, 1)` makes `(B, B)`.

    Where the shapes differ by one axis of size 1, the function is traced, and what it makes on its way looked at.

    Args:
        function: of target and predictions.
        target: ground truth.
        preds: predictions.

    Example:
        >>> makes_outer(lambda t, p: jnp.mean((t - p) ** 2), jnp.zeros(3), jnp.zeros((3, 1)))
        True
        >>> makes_outer(lambda t, p: jnp.mean((t - p[:, 0]) ** 2), jnp.zeros(3), jnp.zeros((3, 1)))
        False
    """
    shapes = [tuple(one.shape) for one in (target, preds) if hasattr(one, "shape")]
    if len(shapes) < 2 or not (shapes[0] == (*shapes[1], 1) or shapes[1] == (*shapes[0], 1)):
        return False
    try:
        outer = jnp.broadcast_shapes(*shapes)
    except ValueError:  # they do not broadcast
        return False
    return outer not in shapes and _makes(jax.make_jaxpr(function)(target, preds).jaxpr, outer)


def _makes(jaxpr: Any, shape: tuple[int, ...]) -> bool:
    for equation in jaxpr.eqns:
        inner = [getattr(value, "jaxpr", value) for value in equation.params.values()]
        if any(var.aval.shape == shape for var in equation.outvars if hasattr(var.aval, "shape")):
            return True
        if any(_makes(one, shape) for one in inner if hasattr(one, "eqns")):
            return True
    return False
