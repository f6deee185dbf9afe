"""How many steps run in one execution: a function of the program and the backend, never of a clock."""

from __future__ import annotations

import math
from typing import Any

from jax.extend.core import ClosedJaxpr, Jaxpr

_WORK = {"cpu": 2e9}
_WORK_ELSEWHERE = 1e12
"""Floating-point operations that one execution should hold: enough to hide the cost of dispatching it."""

MOST = 64
"""The most steps that `"auto"` puts into one execution: logs arrive no later than that."""


def steps_per_execution(closed: Any, platform: str) -> int:
    """Decides how many steps to fuse.

    A step that is short against the cost of its dispatch gains from running in a loop on the device. A long
    one gains nothing, and on the CPU a convolution inside of a loop runs many times slower.

    Args:
        closed: the traced step.
        platform: the platform that will run it, such as `"cpu"`.

    Returns:
        A power of two; 1 means that every step is an execution of its own.
    """
    flops, convolves = work(closed)
    if platform == "cpu" and convolves:
        return 1
    room = _WORK.get(platform, _WORK_ELSEWHERE) / max(flops, 1.0)
    return 2 ** int(math.log2(min(max(room, 1.0), MOST)))


def work(closed: Any) -> tuple[float, bool]:
    """Counts the floating-point operations of a traced function, and tells whether it has convolutions.

    Products count two operations for each multiplication and addition, everything else one for each element
    it writes. A loop whose length is unknown counts once.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> work(jax.make_jaxpr(jnp.dot)(jnp.ones((2, 3)), jnp.ones((3, 4))))
        (48.0, False)
    """
    jaxpr: Jaxpr = closed.jaxpr if isinstance(closed, ClosedJaxpr) else closed
    total, convolves = 0.0, False
    for equation in jaxpr.eqns:
        inner = [value for parameter in equation.params.values() for value in _jaxprs(parameter)]
        name = equation.primitive.name
        written = sum(math.prod(_shape(out)) for out in equation.outvars)
        if name == "dot_general":
            (contracted, _), _ = equation.params["dimension_numbers"]
            shape = _shape(equation.invars[0])
            total += 2.0 * written * math.prod(shape[i] for i in contracted)
        elif name == "conv_general_dilated":
            kernel = _shape(equation.invars[1])
            features = kernel[equation.params["dimension_numbers"].rhs_spec[0]]
            total += 2.0 * written * math.prod(kernel) / max(features, 1)
            convolves = True
        elif not inner:
            total += written
        times = equation.params.get("length", 1) if name == "scan" else 1
        for body in inner:
            flops, has = work(body)
            total += times * flops
            convolves |= has
    return total, convolves


def _shape(variable: Any) -> tuple[int, ...]:
    return getattr(variable.aval, "shape", ())


def _jaxprs(parameter: Any) -> list[Any]:
    if isinstance(parameter, (ClosedJaxpr, Jaxpr)):
        return [parameter]
    if isinstance(parameter, (tuple, list)):
        return [item for item in parameter if isinstance(item, (ClosedJaxpr, Jaxpr))]
    return []
