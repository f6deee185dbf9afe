"""Strategies in pickles: devices by their numbers, which another program looks up among its own."""

from __future__ import annotations

import dataclasses
import functools
import warnings
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh


@dataclasses.dataclass(frozen=True)
class Places:
    """Devices, or a mesh of them, by number.

    Args:
        ids: the numbers, an array of the mesh's shape; of one device a scalar.
        kind: `"device"`, `"devices"` or `"mesh"`.
        names: the names of the mesh's axes.
    """

    ids: Any
    kind: str
    names: tuple[str, ...] = ()

    def here(self) -> Any:
        """The devices with these numbers.

        Raises:
            LookupError: when there is none with one of them.
        """
        known = {device.id: device for device in jax.devices()}
        missing = [i for i in np.ravel(self.ids).tolist() if i not in known]
        if missing:
            raise LookupError(f"device {missing[0]}")
        if self.kind == "device":
            return known[int(self.ids)]
        found = np.array([known[i] for i in np.ravel(self.ids).tolist()], object)
        if self.kind == "devices":
            return tuple(found)
        auto = (AxisType.Auto,) * len(self.names)
        return Mesh(found.reshape(np.shape(self.ids)), self.names, axis_types=auto)


def portable(value: Any) -> Any:
    """A value of a strategy's field, with devices as `Places`."""
    if isinstance(value, jax.Device):
        return Places(np.asarray(value.id), "device")
    if isinstance(value, tuple) and value and all(isinstance(one, jax.Device) for one in value):
        return Places(np.array([one.id for one in value]), "devices")
    if isinstance(value, Mesh):
        return Places(np.vectorize(lambda one: one.id, otypes=[int])(value.devices), "mesh", value.axis_names)
    return value


def reduced(strategy: Any, instead: type) -> tuple:
    """What a strategy's `__reduce__` returns.

    Args:
        strategy: the strategy.
        instead: as for `rebuilt`.
    """
    fields = {name: portable(value) for name, value in vars(strategy).items() if not _computed(type(strategy), name)}
    return rebuilt, (type(strategy), fields, instead)


def _computed(cls: type, name: str) -> bool:
    """Whether an attribute is computed from the others at its first use."""
    return isinstance(getattr(cls, name, None), functools.cached_property)


def rebuilt(cls: type, fields: dict[str, Any], instead: type) -> Any:
    """A strategy from its fields.

    Args:
        cls: its class.
        fields: their values, by `portable`.
        instead: the class of what takes its place, with a warning, where its devices are missing.
    """
    try:
        values = {name: value.here() if isinstance(value, Places) else value for name, value in fields.items()}
    except LookupError as missing:
        warnings.warn(
            f"the {cls.__name__} that was saved used {missing.args[0]}, which is not among the {jax.device_count()} "
            f"devices here: {instead.__name__} takes its place. `set_strategy` chooses another.",
            stacklevel=2,
        )
        return instead()
    strategy: Any = object.__new__(cls)
    strategy.__dict__.update(values)
    return strategy
