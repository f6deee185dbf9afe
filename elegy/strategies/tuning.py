"""Compiler options by backend."""

from __future__ import annotations

_STEPS: dict[str, dict[str, int]] = {"cpu": {"xla_cpu_prefer_vector_width": 512}}
_ONCE: dict[str, dict[str, int]] = {"cpu": {"xla_backend_optimization_level": 1}}


def compiler_options(platform: str, *, once: bool = False) -> dict[str, int]:
    """Returns the options with which functions are compiled for a platform.

    By default XLA uses at most half of AVX-512's vector width on the CPU, because old processors lower their clock for
    full width. Here full width is allowed. Functions that run once are compiled at LLVM's optimisation level 1 instead
    of 3: random initial values then compile in a third of the time, and run as fast.

    Args:
        platform: such as `"cpu"`.
        once: True if the function runs once, so that compilation time matters most.

    Returns:
        Options for `jax.jit`.

    Example:
        >>> compiler_options("gpu")
        {}
    """
    return dict((_ONCE if once else _STEPS).get(platform, {}))


def quick_options(platform: str) -> dict[str, int]:
    """Returns the options for functions that run a few times on little data: without optimisation.

    On the CPU they compile in two thirds of the time of LLVM's level 1.

    Args:
        platform: such as `"cpu"`.

    Returns:
        Options for `jax.jit`.

    Example:
        >>> quick_options("gpu")
        {}
    """
    return {"xla_backend_optimization_level": 0} if platform == "cpu" else {}
