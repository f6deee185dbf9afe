"""Shape checks that the losses and metrics share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from elegy.data.mixing import rows_meet, with_rows
from elegy.losses.numbers import at_least_float32, check_real


def match_shapes(target: Any, preds: Any, what: str) -> tuple[jax.Array, jax.Array]:
    """Makes target and predictions arrays of one shape and one dtype, at least float32.

    `(B,)` against `(B, 1)` is meant as the same thing: broadcast, it would silently become `(B, B)`.

    Args:
        target: ground truth.
        preds: predictions.
        what: how messages call the caller.

    Returns:
        `(target, preds)`, floating or complex.

    Raises:
        ValueError: when the shapes differ otherwise.

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


def match_real(target: Any, preds: Any, what: str) -> tuple[jax.Array, jax.Array]:
    """Does what `match_shapes` does, for losses and metrics of real numbers.

    Args:
        target: ground truth.
        preds: predictions.
        what: how messages call the caller.

    Raises:
        ValueError: if the shapes differ.
        TypeError: if one of them is complex.
    """
    matched = match_shapes(target, preds, what)
    check_real(what, target=jnp.asarray(target), preds=jnp.asarray(preds))
    return matched


def array_shape(value: Any) -> tuple[int, ...] | None:
    """The shape of an array or a `jax.ShapeDtypeStruct`, and None for anything else.

    Outputs may be objects, such as distributions, whose `shape` is a method or missing: a check of shapes that gets
    None does not apply.

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
        what: how messages call the caller.

    Raises:
        TypeError: for a dict, or a tuple or list of arrays, with a hint at `index_into`; for an object that cannot be
            converted to an array.

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
        f"{what}: {name} is {found}, not one array. Choose the part that is meant: "
        f"`{what}(...).index_into({name}={key})`."
    )


def _check_convertible(value: Any, name: str, what: str) -> None:
    try:
        jnp.asarray(value)
    except TypeError as error:
        raise TypeError(
            f"{what}: {name} is a {type(value).__name__}, not an array. Write a function that computes one value for "
            "each example from it, for example `loss=lambda target, preds: -preds.log_prob(target)` for a distribution."
        ) from error


def mean_over_features(values: jax.Array) -> jax.Array:
    """Averages over the last axis, unless that is the axis of examples.

    Example:
        >>> mean_over_features(jnp.ones((4, 3))).shape, mean_over_features(jnp.ones(4)).shape
        ((4,), (4,))
    """
    return values.mean(axis=-1) if values.ndim > 1 else values


def makes_outer(function: Callable[[dict[str, Any]], Any], examples: dict[str, Any]) -> bool:
    """Whether a function falls into a trap of broadcasting: `(B,)` against `(B, 1)` makes `(B, B)`.

    Where the shapes of target and predictions differ by one axis of size 1, the function is traced, and what it makes
    on its way looked at: the trap is an array with examples along two axes.

    Args:
        function: of a dict as `examples`.
        examples: all that has one row an example, `target` and `preds` among it.

    Returns:
        False, too, where it cannot be decided: for a function that cannot be traced (one of NumPy), and for a target or
        predictions that are not one array.

    Example:
        >>> examples = {"target": jnp.zeros(3), "preds": jnp.zeros((3, 1))}
        >>> makes_outer(lambda x: jnp.mean((x["target"] - x["preds"]) ** 2), examples)
        True
        >>> makes_outer(lambda x: jnp.mean((x["target"] - x["preds"][:, 0]) ** 2), examples)
        False
    """
    pair = {name: examples[name] for name in ("target", "preds")}
    target, preds = map(array_shape, pair.values())
    if target is None or preds is None:
        return False
    if target != (*preds, 1) and preds != (*target, 1):
        return False
    try:
        outer = jnp.broadcast_shapes(target, preds)
    except ValueError:  # they do not broadcast
        return False

    def longer(one: Any) -> jax.ShapeDtypeStruct:
        """Along a second axis, too, where one that is as long by chance makes the shapes broadcast."""
        return jax.ShapeDtypeStruct(tuple(n + (n == count) for n in one.shape), one.dtype)

    count = target[0]
    more = {**with_rows(examples, count, count + 1), **{name: longer(one) for name, one in pair.items()}}
    return outer not in (target, preds) and rows_meet(function, examples, more)
