"""JAX's settings that a `with` block changes for its thread only."""

from __future__ import annotations

import contextlib
import contextvars
import functools
from collections.abc import Callable
from typing import Any

import jax

_NAMES = (
    "enable_x64",
    "default_device",
    "default_matmul_precision",
    "default_prng_impl",
    "numpy_dtype_promotion",
    "numpy_rank_promotion",
    "threefry_partitionable",
    "debug_nans",
    "disable_jit",
)


def settings() -> tuple[Any, ...]:
    """Returns the values of this thread's settings: what is traced under others is another program.

    Example:
        >>> before = settings()
        >>> with jax.default_matmul_precision("bfloat16"):
        ...     settings() == before
        False
    """
    config = jax.config
    return tuple(getattr(config, f"jax_{name}") for name in _NAMES)


def inherited(function: Callable[..., None]) -> Callable[..., None]:
    """Wraps the function of one new thread, which then runs with the settings and context variables of this thread.

    Args:
        function: the function; context variables are, for example, those of `numpy.errstate`.
    """
    values = settings()

    def run(*args: Any) -> None:
        with contextlib.ExitStack() as stack:
            for name, value in zip(_NAMES, values, strict=True):
                stack.enter_context(getattr(jax, name)(value))
            function(*args)

    return functools.partial(contextvars.copy_context().run, run)
