"""The first state of a module, made from one batch."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from elegy.engine.state_buffer import StateBuffer, strong
from elegy.module import managed, recipe
from elegy.module.levels import level_of
from elegy.strategies import Strategy
from elegy.types import Batch


def initial_state(strategy: Strategy, module: Any, key: jax.Array, batch: Batch) -> StateBuffer:
    """Makes the first state from one batch. A compiled init is traced now, and run when the state is needed.

    Args:
        strategy: how the state is placed.
        module: the module.
        key: a typed key, with which the parameters are initialised.
        batch: one batch, for its shapes and dtypes.
    """
    if level_of(type(module), "init") == "core":
        state = managed.check_state(module, module.init_step(key, batch), "init_step")
        return StateBuffer(strategy, strategy.place_state(state))
    if not strategy.compiles:
        return StateBuffer(strategy, strong(managed.init(module, key, batch)))
    # As an argument: constants of a function are compiled into it.
    initial = [leaf if _is_numeric(leaf) else None for leaf in jax.tree.leaves(module._initial)]
    make = strategy.compile_init(_Init(module))
    struct = strategy.local_struct(make.structure(initial, key, batch), "state")
    return StateBuffer.planned(strategy, module, struct, lambda: make(initial, key, batch), fresh=True)


class _Init:
    """The init of one module, as a function of its initial values, a key and a batch."""

    def __init__(self, module: Any):
        leaves, self._treedef = jax.tree.flatten(module._initial)
        self._constants = [None if _is_numeric(leaf) else leaf for leaf in leaves]
        self._module = module.replace(_initial=None)
        self.__name__ = "init_step"

    def __call__(self, initial: list[Any], key: jax.Array, batch: Batch) -> Any:
        leaves = [b if a is None else a for a, b in zip(initial, self._constants, strict=True)]
        module = self._module.replace(_initial=jax.tree.unflatten(self._treedef, leaves))
        make = managed.init if module._recipe is None else recipe.init
        return strong(make(module, key, batch))


def _is_numeric(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array) or (isinstance(leaf, np.ndarray) and leaf.dtype.kind not in "OSUMm")
