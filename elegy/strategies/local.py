"""Strategies for one device."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import SingleDeviceSharding

from elegy.strategies.device_ref import reduced
from elegy.strategies.init import InitKernel, copied_to, reachable
from elegy.strategies.strategy import Kind, Strategy, to_host
from elegy.strategies.tuning import compiler_options
from elegy.types import Device, PyTree


@dataclasses.dataclass(frozen=True)
class Eager(Strategy):
    """Runs every step without compilation, operation by operation, so that breakpoints and `print` work.

    Example:
        >>> Eager().compiles
        False
    """

    def place_state(self, state: PyTree) -> PyTree:
        """Moves arrays that are on several devices to one; other arrays are not moved."""
        device = default_device()
        return jax.tree.map(lambda leaf: jax.device_put(leaf, device) if _spread(leaf) else leaf, state)

    def collect_outputs(self, outputs: PyTree) -> PyTree:
        """Copies the outputs to NumPy."""
        return to_host(outputs)


@dataclasses.dataclass(frozen=True)
class Jit(Strategy):
    """Compiles every step for one device and donates the state's buffers.

    Args:
        device: the device; None for the one that is JAX's default device at the first use.

    Example:
        >>> Jit().compiles
        True
    """

    device: Device | None = None

    def __reduce__(self) -> tuple:
        return reduced(self, Jit)

    @functools.cached_property
    def _sharding(self) -> SingleDeviceSharding:
        """Kept from the first use, because a state and its batches must be on one device."""
        return SingleDeviceSharding(self.device or default_device())

    def place_state(self, state: PyTree) -> PyTree:
        """Commits every leaf to the device, so that first, later and restored states use the same executable."""
        return jax.device_put(state, self._sharding)

    def compile_init(self, init: Callable[..., PyTree]) -> InitKernel:
        """Compiles `init` for the device."""
        place = self._sharding
        return InitKernel(
            init,
            lambda state: jax.tree.map(lambda leaf: place, state),
            put=copied_to,
            place=lambda arguments: [reachable(one, place) for one in arguments],
            options=_options(place, once=True),
        )

    def place(self, value: PyTree, kind: Kind) -> PyTree:
        """Starts the transfer to the device. NumPy arrays of one batch are transferred by the step, at lower cost.

        Stacks of batches are transferred ahead, except on the CPU.
        """
        if kind == "batch" or (kind == "chunk" and jax.default_backend() == "cpu"):
            for leaf in jax.tree_util.tree_leaves(value):  # one Python call fewer than `jax.tree.leaves`, in every step
                if not isinstance(leaf, np.ndarray):
                    break
            else:
                return value
        return jax.device_put(value, self._sharding)

    def collect_outputs(self, outputs: PyTree) -> PyTree:
        """Copies the outputs to NumPy."""
        return to_host(outputs)

    @property
    def one_device(self) -> bool:
        """True."""
        return True

    @property
    def compiles(self) -> bool:
        """True, except under `jax.disable_jit()`: there, steps run operation by operation, as under `Eager`."""
        return not jax.config.jax_disable_jit  # type: ignore[attr-defined]  # options are added at run time

    @property
    def donates(self) -> bool:
        """True."""
        return True

    def compile(
        self, step: Callable, args: Sequence[Kind], *, outputs: Kind = "whole", donate: bool = False
    ) -> Callable:
        """Compiles with `jax.jit`."""
        # The results of a function without arguments are uncommitted, for which the next step would compile again.
        place = self._sharding
        return jax.jit(
            step, donate_argnums=(0,) if donate else (), out_shardings=place, compiler_options=_options(place)
        )


def _options(place: SingleDeviceSharding, *, once: bool = False) -> dict[str, int]:
    device: Any = next(iter(place.device_set))
    return compiler_options(device.platform, once=once)


def default_device() -> Device:
    """Returns JAX's default device."""
    device = jax.config.jax_default_device  # type: ignore[attr-defined]  # options are added at run time
    return device if isinstance(device, jax.Device) else jax.local_devices(backend=device)[0]


def _spread(leaf: Any) -> bool:
    return isinstance(leaf, jax.Array) and len(leaf.sharding.device_set) > 1
