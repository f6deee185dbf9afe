"""Finds losses and metrics that compare every example with every other, because `(B,)` and `(B, 1)` broadcast."""

from __future__ import annotations

import functools
import warnings
import weakref
from collections.abc import Callable, Mapping
from typing import Any, Literal

import jax

from elegy.callers import stacklevel_of_caller
from elegy.flat import make_jaxpr
from elegy.jaxprs import equations
from elegy.losses.shapes import array_shape

EXAMPLES = ("inputs", "target", "preds", "values", "sample_weight", "mask")
"""The arguments of losses and metrics that have a row for each example."""

_by_class: weakref.WeakKeyDictionary[type, dict[Any, Any]] = weakref.WeakKeyDictionary()


def is_ours(cls: type) -> bool:
    """True for the classes of this package, which match the shapes of target and predictions themselves."""
    return cls.__module__.partition(".")[0] == __name__.partition(".")[0]


def check_pairs(
    function: Callable[..., Any], kwargs: Mapping[str, Any], what: str, known: dict[Any, Any] | type
) -> None:
    """Checks that a function does not compare every example with every other.

    Args:
        function: a function of `kwargs`.
        kwargs: its arguments.
        what: the function in messages.
        known: the results by shapes of target and predictions; a class has such results of its own.

    Raises:
        ValueError: if the function returns an array that has the rows of target and those of the predictions.

    Warns:
        UserWarning: if it reduces such an array.
    """
    examples = {name: kwargs[name] for name in EXAMPLES if kwargs.get(name) is not None}
    if not {"target", "preds"} <= examples.keys():
        return
    if isinstance(known, type):
        known = _by_class.setdefault(known, {})
    pair = {name: examples[name] for name in ("target", "preds")}
    leaves, structure = jax.tree.flatten(pair)
    shapes = (structure, tuple(map(array_shape, leaves)))
    if shapes not in known:
        known[shapes] = pairs_rows(lambda examples: function(**{**kwargs, **examples}), examples)
        if known[shapes] == "inside":
            warnings.warn(f"{_message(what, pair)}, unless you want all pairs.", stacklevel=stacklevel_of_caller())
    if known[shapes] == "output":
        raise ValueError(f"{_message(what, pair)}: a loss or metric returns a value for each example, not each pair.")


def _message(what: str, pair: Mapping[str, Any]) -> str:
    target, preds = (jax.tree.map(array_shape, pair[name]) for name in ("target", "preds"))
    return (
        f"{what} broadcasts target of shape {target} and preds of shape {preds}, which compares every example with "
        "every other. Give both the same shape, for example by `target.reshape(preds.shape)`"
    )


def pairs_rows(
    function: Callable[[dict[str, Any]], Any], examples: dict[str, Any]
) -> Literal["output", "inside"] | None:
    """Finds out if a function broadcasts `(B,)` and `(B, 1)` to `(B, B)`.

    The function is traced with different numbers of rows for arrays of target and predictions that have an axis of
    rows only, and those that have more axes. A function that matches rows then fails; one that broadcasts makes an
    array with the rows of both.

    Args:
        function: a function of a dict such as `examples`.
        examples: all values with one row for each example, including `target` and `preds`: arrays, or trees of arrays.

    Returns:
        `"output"` if the function returns the array, `"inside"` if it reduces the array, otherwise None, also for a
        function that cannot be traced, such as one of NumPy.

    Example:
        >>> import jax.numpy as jnp
        >>> examples = {"target": jnp.zeros(3), "preds": jnp.zeros((3, 1))}
        >>> pairs_rows(lambda x: jnp.mean((x["target"] - x["preds"]) ** 2), examples)
        'inside'
        >>> pairs_rows(lambda x: jnp.mean((x["target"] - x["preds"][:, 0]) ** 2), examples)
    """
    shapes = [shape for shape in map(array_shape, jax.tree.leaves((examples["target"], examples["preds"]))) if shape]
    count = shapes[0][0] if shapes else 1
    square = _square(examples)
    if square is None and (
        count == 1 or (count,) not in shapes or all(shape[0] != count or len(shape) == 1 for shape in shapes)
    ):
        return None
    first, *rest = range(101, 102 + len(square or (1,)))  # sizes that occur nowhere else
    last = rest[-1]

    def different(leaf: Any) -> Any:
        shape = array_shape(leaf)
        if not shape or shape[0] != count:
            return leaf
        if square is None:
            return jax.ShapeDtypeStruct((last,) if len(shape) == 1 else (first, *shape[1:]), _dtype(leaf))
        return jax.ShapeDtypeStruct(tuple(rest) if shape == square else (first, *rest[:-1], 1), _dtype(leaf))

    for rows in (first, rest[0]):
        given = jax.tree.map(functools.partial(_resized, count=count, rows=rows), examples)
        given |= {name: jax.tree.map(different, examples[name]) for name in ("target", "preds")}
        try:
            traced, output = make_jaxpr(function, given)
        except Exception:  # any error of the user's function
            continue
        if any({first, last} <= {*leaf.shape} for leaf in jax.tree.leaves(output)):
            return "output"
        made = (var for equation in equations(traced) for var in equation.outvars)
        if any({first, last} <= {*getattr(var.aval, "shape", ())} for var in made):
            return "inside"
    return None


def _square(examples: Mapping[str, Any]) -> tuple[int, ...] | None:
    """The shape `(B, ..., B)` if target and predictions are arrays of this shape and of `(B, ..., B, 1)`."""
    shapes = [array_shape(examples[name]) for name in ("target", "preds")]
    if None in shapes:
        return None
    short, long = sorted((tuple(shape or ()) for shape in shapes), key=len)
    return short if long == (*short, 1) and len(set(short)) == 1 and short[0] != 1 else None


def _dtype(leaf: Any) -> Any:
    return jax.dtypes.canonicalize_dtype(leaf.dtype, allow_extended_dtype=True)


def _resized(leaf: Any, count: int, rows: int) -> Any:
    shape = array_shape(leaf)
    if shape is None:
        return leaf
    return jax.ShapeDtypeStruct((rows, *shape[1:]) if shape[:1] == (count,) else shape, _dtype(leaf))
