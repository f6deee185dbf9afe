"""Walks through traced functions without knowing the names of JAX's primitives."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


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
