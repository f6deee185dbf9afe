"""Walks through traced functions without knowing the names of JAX's primitives."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import numpy as np


def bodies(equation: Any) -> list[Any]:
    """Returns the traced functions that an equation calls: bodies of loops, branches, jitted functions.

    Args:
        equation: an equation of a jaxpr.
    """
    found = []
    for value in equation.params.values():  # without generators: this runs for every equation of every step
        if isinstance(value, (tuple, list)):
            found += [one for one in value if hasattr(one, "eqns")]
        elif hasattr(value, "eqns"):
            found.append(value)
    return found


def equations(traced: Any) -> Iterator[Any]:
    """Yields the equations of a traced function, and those of the functions that they call.

    Args:
        traced: the result of `jax.make_jaxpr`.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> traced = jax.make_jaxpr(jax.jit(lambda x: jnp.sin(x) * 2))(1.0)
        >>> [str(equation.primitive) for equation in equations(traced)][1:]
        ['sin', 'mul']
    """
    for equation in traced.eqns:
        yield equation
        for body in bodies(equation):
            yield from equations(body)


def same_program(one: Any, other: Any, same_shape: Callable[[Any, Any], bool] = operator.eq) -> bool:
    """True if two traced functions have the same equations, shapes, parameters and constants.

    Equal programs may be written differently, so False does not mean that the results differ. If an equation has a
    traced body, its other functions are rules for differentiation, which are not compared.

    Args:
        one: the result of `jax.make_jaxpr`.
        other: likewise.
        same_shape: compares two shapes, or other tuples of integers.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> sin, again = (jax.make_jaxpr(lambda x: 2 * jnp.sin(x))(1.0) for _ in range(2))
        >>> same_program(sin, again), same_program(sin, jax.make_jaxpr(lambda x: 3 * jnp.sin(x))(1.0))
        (True, False)
    """
    mine, theirs = (getattr(traced, "jaxpr", traced) for traced in (one, other))
    counterpart: dict[Any, Any] = {}

    def defined(some: Any, others: Any) -> bool:
        counterpart.update(zip(some, others, strict=False))
        return len(some) == len(others) and all(
            _same_type(a.aval, b.aval, same_shape) for a, b in zip(some, others, strict=True)
        )

    def read(some: Any, others: Any) -> bool:
        return len(some) == len(others) and all(
            same_values(a.val, b.val) if hasattr(a, "val") and hasattr(b, "val") else counterpart.get(a) is b
            for a, b in zip(some, others, strict=True)
        )

    consts = [getattr(traced, "consts", ()) for traced in (one, other)]
    return (
        defined([*mine.constvars, *mine.invars], [*theirs.constvars, *theirs.invars])
        and len(consts[0]) == len(consts[1])
        and all(map(same_values, *consts))
        and len(mine.eqns) == len(theirs.eqns)
        and all(
            a.primitive is b.primitive
            and read(a.invars, b.invars)
            and _same_parameters(a, b, same_shape)
            and defined(a.outvars, b.outvars)
            for a, b in zip(mine.eqns, theirs.eqns, strict=True)
        )
        and read(mine.outvars, theirs.outvars)
    )


def _same_type(one: Any, other: Any, same_shape: Callable[[Any, Any], bool]) -> bool:
    """True if two variables have the same dtype and shape."""
    if not (hasattr(one, "shape") and hasattr(other, "shape")):
        return bool(one == other)
    return one.dtype == other.dtype and one.weak_type == other.weak_type and same_shape(one.shape, other.shape)


def _same_parameters(one: Any, other: Any, same_shape: Callable[[Any, Any], bool]) -> bool:
    """True if two equations have the same parameters."""
    holds = bool(bodies(one))

    def same(a: Any, b: Any) -> bool:
        if hasattr(a, "eqns") and hasattr(b, "eqns"):
            return same_program(a, b, same_shape)
        if all(isinstance(x, tuple) and all(type(size) is int for size in x) for x in (a, b)):
            return same_shape(a, b)
        if isinstance(a, (tuple, list)) and type(a) is type(b):
            return len(a) == len(b) and all(map(same, a, b))
        # A rule for differentiation is a function, or JAX's wrapper of one, and each trace makes a new one.
        return same_values(a, b) or (holds and all(callable(x) or hasattr(x, "call_wrapped") for x in (a, b)))

    return one.params.keys() == other.params.keys() and all(map(same, one.params.values(), other.params.values()))


def keeps_rows(many: Any, few: Any) -> bool:
    """True if two traces show that the results do not depend on the number of rows, up to the order of the rows.

    The traces must be the same program except for shapes. No equation that the results need may reduce the axis of rows
    (`jnp.ones_like(x).sum()` is the number of rows), or compute an array with rows from another one that is constant
    (a reversed `jnp.arange` depends on the number of rows).

    Args:
        many: the function traced with some rows.
        few: the function traced with fewer rows.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> def traces(function):
        ...     return [jax.make_jaxpr(function)(jnp.ones((rows, 3))) for rows in (5, 2)]
        >>> keeps_rows(*traces(lambda x: jnp.tanh(x) @ jnp.ones(3))), keeps_rows(*traces(lambda x: x - x.mean(0)))
        (True, False)
    """

    def same_rank(one: Any, other: Any) -> bool:
        return len(one) == len(other)

    if not same_program(many, few, same_rank):
        return False
    constants: set[Any] = set()
    return all(_keeps_rows(a, b, constants) for a, b in zip(_needed(many.jaxpr), _needed(few.jaxpr), strict=True))


def _keeps_rows(many: Any, few: Any, constants: set[Any]) -> bool:
    """True for an equation that does not reduce the axis of rows, or compute with constants that have it."""
    inputs = [(a, b) for a, b in zip(many.invars, few.invars, strict=True) if not hasattr(a, "val")]
    growth = [_growth(a, b) for a, b in inputs]
    if all(a in constants for a, _ in inputs):
        constants.update(many.outvars)
        if any(factor != 1.0 for factor in growth):
            return False
    least = max([1.0, *growth])
    return all(_growth(a, b) >= least for a, b in zip(many.outvars, few.outvars, strict=True)) and all(
        _keeps_rows(a, b, constants)
        for one, other in zip(bodies(many), bodies(few), strict=True)
        for a, b in zip(one.eqns, other.eqns, strict=True)
    )


def _growth(many: Any, few: Any) -> float:
    """The ratio of the sizes of a variable in both traces."""
    sizes = [math.prod(getattr(variable.aval, "shape", ())) for variable in (many, few)]
    return sizes[0] / max(sizes[1], 1)


def _needed(jaxpr: Any, *, effects: bool = False) -> list[Any]:
    """The equations that the results depend on; with `effects`, those that have effects, too, such as printing."""
    read = {variable for variable in jaxpr.outvars if not hasattr(variable, "val")}
    found = []
    for equation in reversed(jaxpr.eqns):
        if not read.isdisjoint(equation.outvars) or (effects and equation.effects):
            found.append(equation)
            read.update(variable for variable in equation.invars if not hasattr(variable, "val"))
    return found[::-1]


def without_dead_code(closed: Any) -> Any:
    """Returns a traced function without the equations that neither its results nor its effects need.

    XLA removes them, too, but only after they were traced again in a loop, and lowered. A random key that nothing reads
    takes as long to lower as fifty other equations.

    Args:
        closed: the result of `jax.make_jaxpr`.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> def function(x):
        ...     unused = jnp.sin(x)
        ...     return jnp.cos(x)
        >>> [str(equation.primitive) for equation in without_dead_code(jax.make_jaxpr(function)(1.0)).eqns]
        ['cos']
    """
    return closed.replace(jaxpr=closed.jaxpr.replace(eqns=_needed(closed.jaxpr, effects=True)))


def arguments_read(traced: Any, results: Sequence[int]) -> set[int]:
    """Returns the positions of the arguments on which some results of a traced function may depend.

    Calls of other functions are followed. A loop or a branch is assumed to depend on all of its arguments.

    Args:
        traced: the result of `jax.make_jaxpr`.
        results: positions of results.

    Example:
        >>> import jax
        >>> traced = jax.make_jaxpr(jax.jit(lambda a, b, c: (a * b, c)))(1.0, 2.0, 3.0)
        >>> arguments_read(traced, [0]), arguments_read(traced, [1])
        ({0, 1}, {2})
    """
    jaxpr = getattr(traced, "jaxpr", traced)
    read = {jaxpr.outvars[i] for i in results if not hasattr(jaxpr.outvars[i], "val")}
    for equation in reversed(jaxpr.eqns):
        wanted = [i for i, variable in enumerate(equation.outvars) if variable in read]
        if wanted:
            places = _read_by(equation, wanted)
            read.update(equation.invars[i] for i in places if not hasattr(equation.invars[i], "val"))
    return {i for i, variable in enumerate(jaxpr.invars) if variable in read}


def _read_by(equation: Any, results: Sequence[int]) -> Iterable[int]:
    """The arguments of an equation on which some of its results may depend."""
    inner = bodies(equation)
    if len(inner) == 1 and "length" not in equation.params:  # a scan feeds results back into its body
        body = getattr(inner[0], "jaxpr", inner[0])
        if len(body.invars) == len(equation.invars) and len(body.outvars) == len(equation.outvars):
            return arguments_read(body, results)
    return range(len(equation.invars))


def same_values(one: Any, other: Any) -> bool:
    """True if two parameters or constants of traced functions are equal; arrays in all bits.

    Example:
        >>> same_values(np.float32(0), np.float32(-0.0)), same_values("x", "x"), same_values(np.zeros(1), np.zeros(2))
        (False, True, False)
    """
    if one is other:
        return True
    if hasattr(one, "dtype") and hasattr(one, "shape") and hasattr(other, "shape"):
        return one.shape == other.shape and one.dtype == other.dtype and same_bits(one, other)
    return type(one) is type(other) and bool(one == other)


def same_bits(one: Any, other: Any) -> bool:
    """True if two arrays are equal in all bits.

    Args:
        one: an array.
        other: an array.
    """
    return np.asarray(one).tobytes() == np.asarray(other).tobytes()
