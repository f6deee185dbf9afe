"""Shape checks of losses and metrics."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jax.typing import ArrayLike

from elegy.losses.numbers import at_least_float32, check_real


def match_shapes(target: ArrayLike, preds: ArrayLike, what: str) -> tuple[jax.Array, jax.Array]:
    """Converts target and predictions to arrays of the same shape and dtype, at least float32.

    `(B,)` and `(B, 1)` are treated as equal: broadcasting would silently give `(B, B)`.

    Args:
        target: ground truth.
        preds: predictions.
        what: the name of the caller in messages.

    Returns:
        `(target, preds)`, floating or complex.

    Raises:
        ValueError: if the shapes differ otherwise.

    Example:
        >>> [x.shape for x in match_shapes(jnp.zeros(3), jnp.zeros((3, 1)), "MeanSquaredError")]
        [(3,), (3,)]
    """
    check_array(target, "target", what)
    check_array(preds, "preds", what)
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
    dtype = at_least_float32(target.dtype, preds.dtype)
    return target.astype(dtype), preds.astype(dtype)


def match_real(target: ArrayLike, preds: ArrayLike, what: str) -> tuple[jax.Array, jax.Array]:
    """As `match_shapes`, for losses and metrics of real numbers.

    Args:
        target: ground truth.
        preds: predictions.
        what: the name of the caller in messages.

    Raises:
        ValueError: if the shapes differ.
        TypeError: if one of them is complex.
    """
    matched = match_shapes(target, preds, what)
    check_real(what, target=jnp.asarray(target), preds=jnp.asarray(preds))
    return matched


def array_shape(value: Any) -> tuple[int, ...] | None:
    """Returns the shape of an array or a `jax.ShapeDtypeStruct`, and None for anything else.

    Outputs may be objects, such as distributions, whose `shape` is a method or missing. Shape checks do not apply then.

    Example:
        >>> array_shape(jnp.zeros((2, 3))), array_shape([1.0]), array_shape({"a": jnp.zeros(2)})
        ((2, 3), None, None)
    """
    shape = getattr(value, "shape", None)
    return shape if isinstance(shape, tuple) and hasattr(value, "dtype") else None


def check_array(value: Any, name: str, what: str) -> None:
    """Checks that a value is one array, not several.

    Args:
        value: the value.
        name: `"target"` or `"preds"`.
        what: the name of the caller in messages.

    Raises:
        TypeError: if the value is a dict, a tuple or list of arrays (the message shows `index_into`), or an object
            that cannot be converted to an array.

    Example:
        >>> check_array({"logits": jnp.zeros(3)}, "preds", "CrossEntropy")
        Traceback (most recent call last):
        TypeError: CrossEntropy: preds is a dict with the keys 'logits', not one array...
    """
    if isinstance(value, Mapping):
        found, key = f"a dict with the keys {', '.join(map(repr, value))}", repr(next(iter(value), "..."))
    elif isinstance(value, (tuple, list)) and any(array_shape(part) for part in value):
        found, key = f"a {type(value).__name__} of {len(value)}", "0"
    else:
        if array_shape(value) is None:
            _check_convertible(value, name, what)
        return
    raise TypeError(
        f"{what}: {name} is {found}, not one array. Choose the part to use: `{what}(...).index_into({name}={key})`."
    )


def _check_convertible(value: Any, name: str, what: str) -> None:
    try:
        jnp.asarray(value)
    except TypeError as error:
        raise TypeError(
            f"{what}: {name} is a {type(value).__name__}, not an array. Write a function that computes one value for "
            "each example from it. For a distribution there are `NegativeLogLikelihood()` and "
            f'`{what}(...).index_into({name}="mean")`.'
        ) from error


def mean_over_features(values: jax.Array) -> jax.Array:
    """Averages over the last axis; an array `(B,)` is returned unchanged.

    Example:
        >>> mean_over_features(jnp.ones((4, 3))).shape, mean_over_features(jnp.ones(4)).shape
        ((4,), (4,))
    """
    return values.mean(axis=-1) if values.ndim > 1 else values
