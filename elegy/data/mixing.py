"""Whether a function computes each row from its own example alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from elegy.types import PyTree

_REDUCTIONS = {"reduce_sum", "reduce_max", "reduce_min", "reduce_prod", "reduce_and", "reduce_or", "argmax", "argmin"}
_REDUCTIONS |= {"psum", "pmax", "pmin"}  # over an axis that `vmap` named
_SCANS = {"cumsum", "cumprod", "cummax", "cummin", "cumlogsumexp"}


def mixes_rows(function: Callable[[Any, Any], Any], fixed: PyTree, examples: PyTree) -> bool:
    """Whether a function looks across examples: a mean over rows, a product of rows with rows, a sort.

    It is traced for as many rows as there are and for one more. An axis that grows is an axis of rows, and what is
    computed along it mixes examples. What other operations do (gathers, the user's own kernels) is not looked into.

    Args:
        function: of `fixed` and `examples`.
        fixed: arrays or `jax.ShapeDtypeStruct` that have no rows.
        examples: likewise, all of shape `(rows, ...)`.

    Returns:
        True, too, for a function that cannot be traced for another number of rows.

    Example:
        >>> import jax.numpy as jnp
        >>> x = jnp.ones((4, 3))
        >>> mixes_rows(lambda _, x: jax.nn.softmax(x, axis=1), None, x), mixes_rows(lambda _, x: x - x.mean(0), None, x)
        (False, True)
    """
    count = max((leaf.shape[0] for leaf in jax.tree.leaves(examples)), default=0)
    try:
        # Not of one row or none, whose axis broadcasts: then processes with shares of any length decide alike.
        one, other = (jax.make_jaxpr(function)(fixed, _of(examples, max(count, 2) + more)) for more in (0, 1))
    except Exception:  # it is made for batches of one size
        return True
    return _mixes(one.jaxpr, other.jaxpr)


def _of(examples: PyTree, count: int) -> PyTree:
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((count, *leaf.shape[1:]), leaf.dtype), examples)


def _mixes(one: Any, other: Any) -> bool:
    if len(one.eqns) != len(other.eqns):
        return True
    for a, b in zip(one.eqns, other.eqns, strict=True):
        name = a.primitive.name
        if name != b.primitive.name:
            return True
        rows = [_grown(x, y) for x, y in zip(a.invars, b.invars, strict=True)]
        if name in _REDUCTIONS and rows[0] & set(a.params["axes"]):
            return True
        if name in _SCANS and a.params["axis"] in rows[0]:
            return True
        if name == "sort" and any(a.params["dimension"] in axes for axes in rows):
            return True
        if name == "scan" and a.params["num_carry"]:
            over = rows[a.params["num_consts"] + a.params["num_carry"] :]
            if any(0 in axes for axes in over):
                return True
        if name == "rev" and rows[0] & set(a.params["dimensions"]):
            return True
        if name == "dot_general":
            contracted, _ = a.params["dimension_numbers"]
            if any(axes & set(along) for axes, along in zip(rows, contracted, strict=True)):
                return True
        if any(len(_grown(x, y)) > 1 for x, y in zip(a.outvars, b.outvars, strict=True)):
            return True  # rows against rows
        inner = [list(map(_jaxprs, (a.params[key], b.params[key]))) for key in a.params]
        if any(_mixes(x, y) for mine, theirs in inner for x, y in zip(mine, theirs, strict=True)):
            return True
    return False


def _grown(a: Any, b: Any) -> set[int]:
    """The axes along which one variable is longer than the other."""
    shapes = [getattr(var.aval, "shape", ()) for var in (a, b)]
    return {axis for axis, (n, m) in enumerate(zip(*shapes, strict=True)) if n != m}


def _jaxprs(parameter: Any) -> list[Any]:
    values = parameter if isinstance(parameter, (tuple, list)) else [parameter]
    found = [getattr(value, "jaxpr", value) for value in values]
    return [value for value in found if hasattr(value, "eqns")]
