"""Which adapter a foreign module needs."""

from __future__ import annotations

from typing import Any

from elegy.module import ElegyModule


def resolve(module: Any, variables: Any = None) -> ElegyModule:
    """Turns what a Trainer was given into an `ElegyModule`.

    Raises:
        TypeError: for an unknown object.
    """
    if isinstance(module, ElegyModule):
        return module
    raise TypeError(f"the module must be an ElegyModule, not {module!r}.")
