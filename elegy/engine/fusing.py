"""Decides how many steps run in one execution, from the program and the backend, without measuring time."""

from __future__ import annotations

import math
from typing import Any

from elegy.jaxprs import bodies

_WORK = {"cpu": 2e9}
_WORK_ELSEWHERE = 1e12
"""Floating-point operations of one execution that are enough to hide the cost of its dispatch."""

MOST = 64
"""The largest number of steps in one execution under `"auto"`, which limits how late logs arrive."""


def steps_per_execution(closed: Any, platform: str) -> int:
    """Decides how many steps to fuse.

    A step that takes less time than its dispatch is faster in a loop on the device. A long step is not, and on the CPU
    a convolution inside of a loop runs many times slower.

    Args:
        closed: the traced step.
        platform: the platform that will run it, such as `"cpu"`.

    Returns:
        A power of two; 1 to run every step in its own execution.
    """
    flops, convolves = work(closed)
    if platform == "cpu" and convolves:
        return 1
    room = _WORK.get(platform, _WORK_ELSEWHERE) / max(flops, 1.0)
    return 2 ** int(math.log2(min(max(room, 1.0), MOST)))


def work(closed: Any, *, loops_once: bool = False) -> tuple[float, bool]:
    """Counts the floating-point operations of a traced function, and finds out if it has convolutions.

    Matrix products and convolutions, recognised by their dimension numbers, count two operations for each
    multiply-add; other equations count one for each element of their results. A loop of unknown length counts once.

    Args:
        closed: the result of `jax.make_jaxpr`.
        loops_once: True to count every loop once, whatever its length.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> work(jax.make_jaxpr(jnp.dot)(jnp.ones((2, 3)), jnp.ones((3, 4))))
        (48.0, False)
    """
    total, convolves = 0.0, False
    for equation in closed.eqns:
        inner = bodies(equation)
        if not inner:
            flops, has = _operations(equation)
            total, convolves = total + flops, convolves or has
        length = equation.params.get("length")
        for body in inner:
            flops, has = work(body, loops_once=loops_once)
            total += flops * (length if isinstance(length, int) and not loops_once else 1)
            convolves |= has
    return total, convolves


def _operations(equation: Any) -> tuple[float, bool]:
    """Counts one equation. With unknown dimension numbers, it counts the elements of the results."""
    written = float(sum(math.prod(_shape(out)) for out in equation.outvars))
    numbers = equation.params.get("dimension_numbers")
    try:
        if hasattr(numbers, "rhs_spec"):
            kernel = _shape(equation.invars[1])
            return 2.0 * written * math.prod(kernel) / max(kernel[numbers.rhs_spec[0]], 1), True
        if type(numbers) is tuple:
            (contracted, _), _ = numbers
            shape = _shape(equation.invars[0])
            return 2.0 * written * math.prod(shape[axis] for axis in contracted), False
    except (TypeError, ValueError, IndexError):
        pass
    return written, False


def _shape(variable: Any) -> tuple[int, ...]:
    return getattr(variable.aval, "shape", ())
