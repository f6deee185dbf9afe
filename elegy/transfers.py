"""Transfers of Elegy to the devices, which `jax.transfer_guard` takes for explicit ones."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import jax

_AS_IT_IS: AbstractContextManager[None] = nullcontext()


def explicit_transfers() -> AbstractContextManager[Any]:
    """In the block, NumPy arrays that a compiled function takes count as explicit transfers, as of `jax.device_put`.

    A compiled step transfers its NumPy arrays in less time than `jax.device_put`. User code must not run in the block.

    Example:
        >>> import numpy as np
        >>> with jax.transfer_guard("disallow"), explicit_transfers():
        ...     print(jax.jit(lambda x: 2 * x)(np.ones(2)))
        [2. 2.]
    """
    level = jax.config.jax_transfer_guard_host_to_device  # type: ignore[attr-defined]  # options are added at run time
    # `log_explicit` and `disallow_explicit` mean explicit transfers, too.
    return jax.transfer_guard_host_to_device("allow") if level in ("log", "disallow") else _AS_IT_IS
