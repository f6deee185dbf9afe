"""Reads and restores the state of iterables that have one, encoded as JSON."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np

from elegy.errors import CheckpointError
from elegy.lazy import is_instance_of, require
from elegy.names import type_name

_PROTOCOLS = (("state_dict", "load_state_dict"), ("get_state", "set_state"))
_TAG = "elegy"


def has_state(thing: Any) -> bool:
    """True if an object has `state_dict` and `load_state_dict`, or `get_state` and `set_state`.

    Example:
        >>> has_state(iter([1]))
        False
    """
    return _methods(thing) is not None


def get_state(thing: Any) -> Any:
    """Returns the state of an object, encoded as JSON values.

    Args:
        thing: any object.

    Returns:
        The encoded state; None if the object has no methods for it.

    Raises:
        CheckpointError: if the method raises an error, or the state cannot be encoded.
    """
    methods = _methods(thing)
    if methods is None:
        return None
    try:
        state = methods[0]()
    except Exception as error:
        raise CheckpointError(f"the state of the {type(thing).__name__} could not be read: {error!r}.") from error
    return encode(state, f"the state of the {type(thing).__name__}")


def set_state(thing: Any, state: Any) -> None:
    """Restores the state that `get_state` returned.

    Raises:
        CheckpointError: if the object has no method for it.
    """
    methods = _methods(thing)
    if methods is None:
        raise CheckpointError(
            f"the checkpoint has the position of a data iterator, but the {type(thing).__name__} that was given now "
            "has neither `load_state_dict` nor `set_state`. Resume with the kind of data that the run began with."
        )
    methods[1](decode(state))


def encode(value: Any, where: str = "the value") -> Any:
    """Encodes a value as JSON values, including bytes, tuples, arrays and dicts with any keys.

    Args:
        value: the value.
        where: the name of the value in messages.

    Raises:
        CheckpointError: if a part of the value cannot be encoded; the message names its type.

    Example:
        >>> decode(encode({"position": (3, b"!"), 7: np.arange(2)}))
        {'position': (3, b'!'), 7: array([0, 1])}
    """
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, (bytes, bytearray)):
        return {_TAG: "bytes", "data": base64.b64encode(value).decode()}
    if type(value) is list:
        return [encode(item, f"{where}[{i}]") for i, item in enumerate(value)]
    if type(value) is tuple:
        return {_TAG: "tuple", "items": [encode(item, f"{where}[{i}]") for i, item in enumerate(value)]}
    if isinstance(value, dict):
        if _TAG not in value and all(type(key) is str for key in value):
            return {key: encode(item, f"{where}[{key!r}]") for key, item in value.items()}
        items = [[encode(key, where), encode(item, f"{where}[{key!r}]")] for key, item in value.items()]
        return {_TAG: "dict", "items": items}
    kind = "array"
    if is_instance_of(value, "torch", "Tensor"):
        kind, value = "tensor", value.detach().cpu().numpy()
    if isinstance(value, (np.ndarray, np.generic)) and value.dtype.kind in "biufc" and value.dtype.isnative:
        data = base64.b64encode(np.asarray(value).tobytes()).decode()
        kind = "scalar" if isinstance(value, np.generic) else kind
        return {_TAG: kind, "dtype": value.dtype.name, "shape": list(value.shape), "data": data}
    raise CheckpointError(
        f"{where} is {type_name(value)}, which a checkpoint cannot hold. The state of a data iterator may contain "
        "numbers, strings, bytes, arrays, lists, tuples and dicts."
    )


def decode(value: Any) -> Any:
    """The inverse of `encode`."""
    if isinstance(value, list):
        return [decode(item) for item in value]
    if not isinstance(value, dict):
        return value
    kind = value.get(_TAG)
    if kind is None:
        return {key: decode(item) for key, item in value.items()}
    if kind == "dict":
        return {decode(key): decode(item) for key, item in value["items"]}
    if kind == "tuple":
        return tuple(decode(item) for item in value["items"])
    data = base64.b64decode(value["data"])
    if kind == "bytes":
        return data
    array = np.frombuffer(bytearray(data), value["dtype"]).reshape(value["shape"])
    if kind == "tensor":
        return require("torch", "the state of this data iterator").from_numpy(array)
    return array[()] if kind == "scalar" else array


def _methods(thing: Any) -> tuple[Any, Any] | None:
    for get, put in _PROTOCOLS:
        if callable(getattr(thing, get, None)) and callable(getattr(thing, put, None)):
            return getattr(thing, get), getattr(thing, put)
    return None
