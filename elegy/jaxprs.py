"""Walks through traced functions without knowing the names of JAX's primitives."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np


def bodies(equation: Any) -> list[Any]:
    """Returns the traced functions that an equation calls: bodies of loops, branches, jitted functions.

    Args:
        equation: an equation of a jaxpr.
    """
    values = equation.params.values()
    listed = (value if isinstance(value, (tuple, list)) else [value] for value in values)
    return [one for some in listed for one in some if hasattr(one, "eqns")]


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


def same_program(one: Any, other: Any) -> bool:
    """True if two traced functions have the same equations, shapes, parameters and constants.

    Equal programs may be written differently, so False does not mean that the results differ. If an equation has a
    traced body, its other functions are rules for differentiation, which are not compared.

    Args:
        one: the result of `jax.make_jaxpr`.
        other: likewise.

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
        return len(some) == len(others) and all(a.aval == b.aval for a, b in zip(some, others, strict=True))

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
            and _same_parameters(a, b)
            and defined(a.outvars, b.outvars)
            for a, b in zip(mine.eqns, theirs.eqns, strict=True)
        )
        and read(mine.outvars, theirs.outvars)
    )


def _same_parameters(one: Any, other: Any) -> bool:
    """True if two equations have the same parameters."""
    holds = bool(bodies(one))

    def same(a: Any, b: Any) -> bool:
        if hasattr(a, "eqns") and hasattr(b, "eqns"):
            return same_program(a, b)
        if isinstance(a, (tuple, list)) and type(a) is type(b):
            return len(a) == len(b) and all(map(same, a, b))
        # A rule for differentiation is a function, or JAX's wrapper of one, and each trace makes a new one.
        return same_values(a, b) or (holds and all(callable(x) or hasattr(x, "call_wrapped") for x in (a, b)))

    return one.params.keys() == other.params.keys() and all(map(same, one.params.values(), other.params.values()))


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
