"""What the compiler is told for a backend."""

from __future__ import annotations

_STEPS: dict[str, dict[str, int]] = {"cpu": {"xla_cpu_prefer_vector_width": 512, "xla_backend_optimization_level": 2}}
_ONCE: dict[str, dict[str, int]] = {"cpu": {"xla_backend_optimization_level": 1}}


def compiler_options(platform: str, *, once: bool = False) -> dict[str, int]:
    """The options with which functions are compiled for a platform.

    On the CPU XLA uses at most half of the vector width that AVX-512 offers, for the sake of old processors that
    lowered their clock for it. A processor without such vectors uses what it has. And it optimises at LLVM's highest
    level, 3, which takes a third more time than the second and makes no step faster, because XLA's own passes have
    arranged the loops already; random initial values take the third part of it at the first level.

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
