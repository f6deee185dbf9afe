"""The first random key of a run."""

from __future__ import annotations

import jax
import numpy as np

_DEFAULT = "threefry2x32"


def key_of(seed: int) -> jax.Array:
    """Returns `jax.random.key(seed)`, for most seeds without the two programs that JAX compiles for it.

    The data of a key of JAX's default generator are the seed's two halves of 32 bits.

    Args:
        seed: the seed.

    Example:
        >>> key_of(42) == jax.random.key(42)
        Array(True, dtype=bool)
    """
    config = jax.config
    default = config.jax_default_prng_impl == _DEFAULT and not getattr(config, "jax_random_seed_offset", 0)
    if not default or not 0 <= seed < 2**31:
        return jax.random.key(seed)
    return jax.random.wrap_key_data(jax.device_put(np.array([0, seed], np.uint32)), impl=_DEFAULT)
