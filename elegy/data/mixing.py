"""Whether a function computes each row from its own example alone."""

from __future__ import annotations

import math
import numbers
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.extend.core import Literal

from elegy.flat import make_jaxpr
from elegy.types import PyTree


def mixes_rows(function: Callable[[Any, Any], Any], fixed: PyTree, examples: PyTree, count: int) -> bool:
    """Whether a function looks across examples, or at how many there are: a mean over rows, a sort, a shift of rows.

    It is traced for as many rows as there are and for one more. An axis that grows is an axis of rows. Only what is
    known to leave such an axis alone passes: an operation that is not known here counts as mixing.

    Args:
        function: of `fixed` and `examples`.
        fixed: arrays or `jax.ShapeDtypeStruct` that have no rows.
        examples: likewise. Arrays of shape `(count, ...)` have rows; scalars and arrays of another length have none.
        count: the number of rows.

    Returns:
        True, too, for a function that cannot be traced for another number of rows.

    Example:
        >>> import jax.numpy as jnp
        >>> x = jnp.ones((4, 3))
        >>> mixes_rows(lambda _, x: jax.nn.softmax(x, axis=1), None, x, 4)
        False
        >>> mixes_rows(lambda _, x: x - x.mean(0), None, x, 4)
        True
    """
    first = max(count, 2)  # one row broadcasts: so processes with shares of any length decide alike
    try:
        pair = _traced(function, *((fixed, with_rows(examples, count, rows)) for rows in (first, first + 1)))
        return any(_mixes(*jaxprs) for jaxprs in _nested(*pair))
    except Exception:  # it is made for batches of one size
        return True


def rows_meet(function: Callable[[Any], Any], examples: PyTree, longer: PyTree) -> bool:
    """Whether a function makes an array on its way that has more axes of rows than any that it is given.

    Args:
        function: of `examples`.
        examples: arrays or `jax.ShapeDtypeStruct`.
        longer: the same, longer along every axis of rows.

    Returns:
        False, too, for a function that cannot be traced for both.

    Example:
        >>> import jax.numpy as jnp
        >>> rows_meet(lambda x: (x - x[:, None]).sum(), jnp.ones(4), jnp.ones(5))
        True
    """
    try:
        pair = _traced(function, (examples,), (longer,))
        given = max(map(len, _grown(*(jaxpr.jaxpr.invars for jaxpr in pair))))
        made = [_grown(a.outvars, b.outvars) for jaxprs in _nested(*pair) for a, b in _equations(*jaxprs)]
        return any(len(axes) > given for grown in made for axes in grown)
    except Exception:
        return False


def with_rows(examples: PyTree, count: int, rows: int) -> PyTree:
    """Gives what has one number of rows another; scalars and arrays of another length stay what they are.

    Args:
        examples: arrays or `jax.ShapeDtypeStruct`.
        count: the number of rows.
        rows: the number of rows to have instead.

    Returns:
        `jax.ShapeDtypeStruct` for what has rows.

    Example:
        >>> with_rows(np.zeros((4, 3), np.float32), 4, 5)
        ShapeDtypeStruct(shape=(5, 3), dtype=float32)
    """

    def resize(leaf: Any) -> Any:
        shape = getattr(leaf, "shape", ())
        return jax.ShapeDtypeStruct((rows, *shape[1:]), leaf.dtype) if shape and shape[0] == count else leaf

    return jax.tree.map(resize, examples)


def _traced(function: Callable[..., Any], *arguments: tuple[Any, ...]) -> list[Any]:
    return [make_jaxpr(function, *given)[0] for given in arguments]


def _nested(one: Any, other: Any) -> Iterator[tuple[Any, Any]]:
    """Two jaxprs, then those inside of them, side by side."""
    yield one, other
    for a, b in _equations(one, other):
        for key in a.params:
            for x, y in zip(_jaxprs(a.params[key]), _jaxprs(b.params[key]), strict=True):
                yield from _nested(x, y)


def _jaxprs(parameter: Any) -> list[Any]:
    values = parameter if isinstance(parameter, (tuple, list)) else [parameter]
    return [value for value in values if hasattr(value, "eqns")]


def _equations(one: Any, other: Any) -> Iterator[tuple[Any, Any]]:
    for a, b in zip(one.eqns, other.eqns, strict=True):
        if a.primitive is not b.primitive:
            raise ValueError(f"what is {a.primitive} for one number of rows is {b.primitive} for another")
        yield a, b


def _grown(some: Sequence[Any], others: Sequence[Any]) -> list[set[int]]:
    """For each variable the axes along which it is longer in one trace than in the other."""
    pairs = [[getattr(var.aval, "shape", ()) for var in pair] for pair in zip(some, others, strict=True)]
    return [{axis for axis, (n, m) in enumerate(zip(*shapes, strict=True)) if n != m} for shapes in pairs]


def _mixes(one: Any, other: Any) -> bool:
    """Looks at a pair of jaxprs; what is inside of their equations makes pairs of its own."""
    consts = zip(getattr(one, "consts", ()), getattr(other, "consts", ()), strict=True)
    outputs = zip(_open(one).outvars, _open(other).outvars, strict=True)
    if not all(_same_value(a, b) for a, b in consts) or not all(_same_literal(a, b) for a, b in outputs):
        return True
    return any(_mixes_in(a, b) for a, b in _equations(one, other))


def _open(jaxpr: Any) -> Any:
    return getattr(jaxpr, "jaxpr", jaxpr)


def _same_literal(a: Any, b: Any) -> bool:
    """Whether what an equation reads is no constant, or the same one for any number of rows."""
    if not isinstance(a, Literal) or not isinstance(b, Literal):
        return isinstance(a, Literal) == isinstance(b, Literal)
    return _same_value(a.val, b.val)


def _same_value(a: Any, b: Any) -> bool:
    if a is b:
        return True
    a, b = np.asarray(a), np.asarray(b)
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def _mixes_in(a: Any, b: Any) -> bool:
    name = a.primitive.name
    if not all(_same_literal(x, y) for x, y in zip(a.invars, b.invars, strict=True)):
        return True
    free = {"length", "unroll"} if name == "scan" and not a.params["num_carry"] else set()  # rows, one by one
    for key in a.params.keys() - free:
        if isinstance(a.params[key], (numbers.Number, str)) and not _same_value(a.params[key], b.params[key]):
            return True
    rows, made = _grown(a.invars, b.invars), _grown(a.outvars, b.outvars)
    if not any(rows) and not any(made):
        return False
    if any(len(axes) > 1 for axes in made):
        return True  # rows against rows
    if name in _APART:
        return False
    if name in _ALONG:
        along = a.params[_ALONG[name]]
        return any(axes & set(along if isinstance(along, (tuple, list)) else [along]) for axes in rows)
    rule = _RULES.get(name.replace("-", "_"))
    return rule is None or any(rule(equation, rows, made) for equation in (a, b))


_ELEMENTWISE = """
    abs acos acosh add add_any and asin asinh atan atan2 atanh bessel_i0e bessel_i1e bitcast_convert_type cbrt ceil
    clamp clz complex conj convert_element_type copy copy_p cos cosh device_put digamma div eq eq_to erf erf_inv erfc
    exp exp2 expm1 floor ge gt igamma igamma_grad_a igammac imag integer_pow is_finite le le_to lgamma log log1p
    logistic lt lt_to max min mul mulhi name ne neg nextafter not optimization_barrier or polygamma population_count
    pow real reduce_precision regularized_incomplete_beta rem reshard round rsqrt select_n sharding_constraint
    shift_left shift_right_arithmetic shift_right_logical sign sin sinh sqrt square stop_gradient sub tan tanh
    threefry2x32 xor zeta
"""
_SHAPES = "broadcast_in_dim expand_dims iota squeeze stack transpose"
_RANDOM = "random_bits random_clone random_fold_in random_gamma random_seed random_split random_unwrap random_wrap"
_CALLS = """
    checkpoint closed_call composite cond core_call custom_jvp_call custom_vjp_call custom_vjp_call_jaxpr
    custom_vmap_call jit pjit remat remat2 scan while
"""  # what they call is looked at by itself; a scan over rows that carries something has another length
_APART = {*_ELEMENTWISE.split(), *_SHAPES.split(), *_RANDOM.split(), *_CALLS.split()}

_ALONG = {f"reduce_{name}": "axes" for name in ("sum", "max", "min", "prod", "and", "or", "xor")}
_ALONG |= {f"cum{name}": "axis" for name in ("sum", "prod", "max", "min", "logsumexp")}
_ALONG |= dict.fromkeys(("argmax", "argmin"), "axes")
_ALONG |= dict.fromkeys(("psum", "pmax", "pmin"), "axes")  # over an axis that `vmap` named
_ALONG |= dict.fromkeys(("concatenate", "sort"), "dimension") | dict.fromkeys(("reduce", "rev"), "dimensions")
_ALONG |= dict.fromkeys(("split", "top_k", "unstack"), "axis")
"""The parameter that says along which axes an operation works."""


def _cuts(equation: Any, rows: list[set[int]], made: list[set[int]]) -> bool:
    before, after = equation.invars[0].aval.shape, equation.outvars[0].aval.shape
    return rows[0] != made[0] or any(before[axis] != after[axis] for axis in rows[0])


def _reshapes(equation: Any, rows: list[set[int]], made: list[set[int]]) -> bool:
    """Only what lies within a row may be joined with the rows, or split off from them."""
    shapes = equation.invars[0].aval.shape, equation.outvars[0].aval.shape
    before, after = (math.prod(shape[: min(axes)]) for shape, axes in zip(shapes, (rows[0], made[0]), strict=True))
    return before != after


def _updates(equation: Any, rows: list[set[int]], made: list[set[int]]) -> bool:
    whole, part = (equation.invars[at].aval.shape for at in (0, 1))
    return not rows[0] or rows[0] != rows[1] or any(whole[axis] != part[axis] for axis in rows[0])


def _pads(equation: Any, rows: list[set[int]], made: list[set[int]]) -> bool:
    return rows[0] != made[0] or any(tuple(equation.params["padding_config"][axis]) != (0, 0, 0) for axis in rows[0])


def _tiles(equation: Any, rows: list[set[int]], made: list[set[int]]) -> bool:
    if not rows[0]:
        return any(equation.invars[0].aval.shape[axis] != 1 for axis in made[0])
    return any(equation.params["reps"][axis] != 1 for axis in rows[0])


def _transforms(equation: Any, rows: list[set[int]], made: list[set[int]]) -> bool:
    first = equation.invars[0].aval.ndim - len(equation.params["fft_lengths"])
    return any(axis >= first for axis in rows[0])


def _slides(equation: Any, rows: list[set[int]], made: list[set[int]]) -> bool:
    keys = ("window_dimensions", "window_strides", "base_dilation", "window_dilation")
    for axis in rows[0]:
        if any(equation.params[key][axis] != 1 for key in keys) or tuple(equation.params["padding"][axis]) != (0, 0):
            return True
    return rows[0] != made[0]


def _multiplies(equation: Any, rows: list[set[int]], made: list[set[int]]) -> bool:
    contracted, _ = equation.params["dimension_numbers"]
    return any(axes & set(along) for axes, along in zip(rows, contracted, strict=True))


def _convolves(equation: Any, rows: list[set[int]], made: list[set[int]]) -> bool:
    batch = equation.params["dimension_numbers"].lhs_spec[0]
    return rows[0] != {batch} or bool(rows[1]) or equation.params["batch_group_count"] != 1


def _gathers(equation: Any, rows: list[set[int]], made: list[set[int]]) -> bool:
    """Each row looks things up in itself, or in a table without rows."""
    dims, (operand, indices) = equation.params["dimension_numbers"], equation.invars
    if indices.aval.ndim - 1 in rows[1] or not made[0]:
        return True
    taken = rows[0] - set(dims.operand_batching_dims)
    sizes = equation.params["slice_sizes"]
    return any(axis in dims.start_index_map or sizes[axis] != operand.aval.shape[axis] for axis in taken)


def _scatters(equation: Any, rows: list[set[int]], made: list[set[int]]) -> bool:
    """Each row is written to by itself alone."""
    dims, (operand, indices, updates) = equation.params["dimension_numbers"], equation.invars
    if not rows[0] or indices.aval.ndim - 1 in rows[1]:
        return True
    if rows[0] <= set(dims.operand_batching_dims):
        return False
    if rows[1] or not rows[2] or rows[0] & {*dims.inserted_window_dims, *dims.scatter_dims_to_operand_dims}:
        return True
    return operand.aval.shape[min(rows[0])] != updates.aval.shape[min(rows[2])]


_RULES: dict[str, Callable[[Any, list[set[int]], list[set[int]]], bool]] = {
    "conv_general_dilated": _convolves,
    "dot_general": _multiplies,
    "dynamic_slice": _cuts,
    "dynamic_update_slice": _updates,
    "fft": _transforms,
    "gather": _gathers,
    "pad": _pads,
    "reshape": _reshapes,
    "slice": _cuts,
    "tile": _tiles,
}
_RULES |= dict.fromkeys(("reduce_window", *(f"reduce_window_{name}" for name in ("sum", "max", "min"))), _slides)
_RULES |= dict.fromkeys(("scatter", *(f"scatter_{name}" for name in ("add", "sub", "mul", "min", "max"))), _scatters)
"""What tells for the other operations whether they mix rows, where there are some."""
