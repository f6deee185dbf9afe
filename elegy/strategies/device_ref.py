"""Pickles strategies: devices are stored by number and looked up where the pickle is loaded."""

from __future__ import annotations

import dataclasses
import functools
import warnings
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh

from elegy.callers import stacklevel_of_caller


@dataclasses.dataclass(frozen=True)
class DeviceRef:
    """Refers to a device, several devices or a mesh by device number.

    Args:
        ids: the device numbers: an array of the mesh's shape, or a scalar for one device.
        kind: `"device"`, `"devices"` or `"mesh"`.
        names: the names of the mesh's axes.
    """

    ids: Any
    kind: str
    names: tuple[str, ...] = ()

    def resolve(self) -> Any:
        """Looks the devices up among `jax.devices()`.

        Raises:
            LookupError: if a device is missing; the message names it.
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


def to_reference(value: Any) -> Any:
    """Replaces devices, tuples of devices and meshes by a `DeviceRef`; returns any other value as it is."""
    if isinstance(value, jax.Device):
        return DeviceRef(np.asarray(value.id), "device")
    if isinstance(value, tuple) and value and all(isinstance(one, jax.Device) for one in value):
        return DeviceRef(np.array([one.id for one in value]), "devices")
    if isinstance(value, Mesh):
        return DeviceRef(np.vectorize(lambda one: one.id, otypes=[int])(value.devices), "mesh", value.axis_names)
    return value


def reduced(strategy: Any, instead: type) -> tuple:
    """Builds the return value of a strategy's `__reduce__`.

    Args:
        strategy: the strategy to pickle.
        instead: as for `rebuilt`.
    """
    fields = {
        name: to_reference(value) for name, value in vars(strategy).items() if not _computed(type(strategy), name)
    }
    return rebuilt, (type(strategy), fields, instead)


def _computed(cls: type, name: str) -> bool:
    """True if an attribute is a `functools.cached_property`, which the pickle leaves out."""
    return isinstance(getattr(cls, name, None), functools.cached_property)


def rebuilt(cls: type, fields: dict[str, Any], instead: type) -> Any:
    """Rebuilds a strategy from a pickle.

    Args:
        cls: the strategy's class.
        fields: the values of its fields, converted by `to_reference`.
        instead: the strategy class to use if a device is missing.

    Warns:
        UserWarning: if a device is missing and `instead` is used.
    """
    try:
        values = {name: value.resolve() if isinstance(value, DeviceRef) else value for name, value in fields.items()}
    except LookupError as missing:
        warnings.warn(
            f"the {cls.__name__} that was saved used {missing.args[0]}, which is not among the {jax.device_count()} "
            f"devices here: {instead.__name__} takes its place. `set_strategy` chooses another.",
            stacklevel=stacklevel_of_caller(),
        )
        return instead()
    strategy: Any = object.__new__(cls)
    strategy.__dict__.update(values)
    return strategy
