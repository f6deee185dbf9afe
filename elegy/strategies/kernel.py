"""Compiles a step for a mesh at its first call, with the shardings of its arguments."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from elegy.strategies.strategy import Kind
from elegy.strategies.tuning import compiler_options


class MeshKernel:
    """Calls a step compiled with `jax.jit`; the new state has the shardings of the first argument.

    Args:
        strategy: a `MeshStrategy`, which gives the shardings of the arguments.
        step: as for `Strategy.compile`.
        kinds: the kind of each argument.
        outputs: the kind of the outputs.
        donate: True to donate the first argument's buffers.
    """

    def __init__(self, strategy: Any, step: Callable, kinds: tuple[Kind, ...], outputs: Kind, donate: bool):
        self._strategy, self._step, self._kinds = strategy, step, kinds
        self._outputs, self._donate = outputs, donate
        self._jitted: Any = None

    def __call__(self, *args: Any) -> Any:
        """Runs the step."""
        return self._ready(args)(*self._global(args))

    def lower(self, *args: Any) -> Any:
        """Lowers the step for arguments, to inspect the compiled program."""
        return self._ready(args).lower(*self._global(args))

    def _ready(self, args: tuple) -> Any:
        if self._jitted is None:
            everywhere = NamedSharding(self._strategy.mesh, PartitionSpec())
            self._jitted = jax.jit(
                self._step,
                in_shardings=tuple(map(self._shardings, args, self._kinds)),
                out_shardings=(
                    everywhere if self._outputs == "whole" else None,
                    self._state(args),
                ),
                donate_argnums=(0,) if self._donate else (),
                compiler_options=compiler_options(self._strategy.mesh.devices.flat[0].platform),
            )
        return self._jitted

    def _state(self, args: tuple) -> Any:
        """The shardings of the new state: those of the first argument, and of a second one of kind `"small"`."""
        parts = [jax.tree.map(lambda leaf: leaf.sharding, arg) for arg in args[:2]]
        return [*parts[0], *parts[1]] if self._kinds[1:2] == ("small",) else parts[0]

    def _shardings(self, arg: Any, kind: Kind) -> Any:
        if kind in ("state", "small"):
            return jax.tree.map(lambda leaf: leaf.sharding, arg)
        return jax.tree.map(lambda leaf: self._strategy.data_sharding(leaf.shape, kind), arg)

    def _global(self, args: tuple) -> tuple:
        """Places arguments in programs of several processes, in which JAX does not divide NumPy arrays."""
        if not self._strategy.mesh.is_multi_process:
            return args
        return tuple(
            self._strategy.place(arg, kind) if isinstance(arg, np.ndarray) else arg
            for arg, kind in zip(args, self._kinds, strict=True)
        )
