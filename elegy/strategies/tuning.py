"""What the compiler is told for a backend."""

from __future__ import annotations

_OPTIONS: dict[str, dict[str, int]] = {"cpu": {"xla_cpu_prefer_vector_width": 512}}


def compiler_options(platform: str) -> dict[str, int]:
    """The options with which steps are compiled for a platform.

    On the CPU XLA uses at most half of the vector width that AVX-512 offers, for the sake of old processors that
    lowered their clock for it. A processor without such vectors uses what it has.

    Args:
        platform: such as `"cpu"`.

    Returns:
        Options for `jax.jit`.

    Example:
        >>> compiler_options("gpu")
        {}
    """
    return dict(_OPTIONS.get(platform, {}))
