"""What the compiler is told for a backend."""

from __future__ import annotations

_STEPS: dict[str, dict[str, int]] = {"cpu": {"xla_cpu_prefer_vector_width": 512}}
_ONCE: dict[str, dict[str, int]] = {"cpu": {"xla_backend_optimization_level": 1}}


def compiler_options(platform: str, *, once: bool = False) -> dict[str, int]:
    """The options with which functions are compiled for a platform.

    On the CPU XLA uses at most half of the vector width that AVX-512 offers, for the sake of old processors that
    lowered their clock for it. A processor without such vectors uses what it has. What runs once is compiled at LLVM's
    first level of optimisation instead of the third: random initial values, which are most of what a first state is
    made of, then take a third of the time to compile, and as long to compute.

    Args:
        platform: such as `"cpu"`.
        once: whether the function runs once, so that the time to compile it counts more than its own.

    Returns:
        Options for `jax.jit`.

    Example:
        >>> compiler_options("gpu")
        {}
    """
    return dict((_ONCE if once else _STEPS).get(platform, {}))


def quick_options(platform: str) -> dict[str, int]:
    """The options with which functions are compiled that run a few times on little data: without optimisation.

    On the CPU that takes a third less time than LLVM's first level.

    Args:
        platform: such as `"cpu"`.

    Returns:
        Options for `jax.jit`.

    Example:
        >>> quick_options("gpu")
        {}
    """
    return {"xla_backend_optimization_level": 0} if platform == "cpu" else {}
