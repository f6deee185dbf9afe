"""Writes arrays to a directory and reads them back, with Orbax."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from elegy.checkpoint.leaves import Leaf
from elegy.lazy import importing

_FILE_SIZE = 64 << 20
"""The target size of one file, in bytes: several files are hashed in parallel."""

_SMALL = 1 << 20
"""Arrays up to this size, in bytes, are given to Orbax as NumPy arrays, which it writes three times as fast.
Larger ones take longer that way, because Orbax copies them first."""


@contextlib.contextmanager
def _orbax() -> Iterator[tuple[ModuleType, Any]]:
    # Imported on first use: importing Orbax takes as long as importing JAX.
    with importing():
        import orbax.checkpoint as ocp

    # No compression: it saves 7% for normally distributed float32 weights, and doubles the time of reading.
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(use_compression=False)) as checkpointer:
        yield ocp, checkpointer


def write_arrays(directory: Path, arrays: Mapping[str, Any]) -> None:
    """Writes arrays by name into a new directory; every process of a distributed run calls it."""
    with _orbax() as (ocp, checkpointer):
        given = {**arrays, **jax.device_get({name: value for name, value in arrays.items() if _small(value)})}
        checkpointer.save(directory, args=ocp.args.PyTreeSave(given, ocdbt_target_data_file_size=_FILE_SIZE))


def _small(value: Any) -> bool:
    """True if an array is small and the program has one process."""
    return (
        isinstance(value, jax.Array)
        and jax.process_count() == 1
        and value.is_fully_replicated
        and value.nbytes < _SMALL
    )


def read_arrays(directory: Path, shardings: Mapping[str, jax.sharding.Sharding | None]) -> dict[str, Any]:
    """Reads some arrays back by name.

    Args:
        directory: a directory that `write_arrays` wrote.
        shardings: by name, the sharding of the array; None for a NumPy array.
    """
    with _orbax() as (ocp, checkpointer):
        how = {
            name: ocp.RestoreArgs(restore_type=np.ndarray) if place is None else ocp.ArrayRestoreArgs(sharding=place)
            for name, place in shardings.items()
        }
        wanted = dict.fromkeys(shardings, 0)
        return checkpointer.restore(
            directory, args=ocp.args.PyTreeRestore(wanted, restore_args=how, partial_restore=True)
        )


def to_stored(value: Any) -> Any:
    """Returns the array to store for a leaf; for a typed key, its data."""
    if isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
        return jax.random.key_data(value)
    return np.asarray(value) if isinstance(value, np.generic) else value


def placement(leaf: Leaf, target: Any) -> jax.sharding.Sharding | None:
    """Returns the sharding with which to read the array of a leaf for a target leaf; None for a NumPy array.

    Arrays for uncommitted targets are read to the host and stay uncommitted, as new arrays are: a committed array
    would compile the step again.
    """
    if not isinstance(target, (jax.Array, jax.ShapeDtypeStruct)):
        return None
    place = target.sharding
    if isinstance(target, jax.Array) and not target.committed:
        return None
    if leaf.kind == "key" and not isinstance(place, (jax.sharding.NamedSharding, jax.sharding.SingleDeviceSharding)):
        return None
    return place


def from_stored(leaf: Leaf, stored: Any, target: Any) -> Any:
    """Converts a stored array to a leaf of the target's type.

    Args:
        leaf: the saved leaf's description.
        stored: the array that was read, or None for a leaf without a stored array.
        target: the leaf to replace; None for host values (typed keys stay keys).
    """
    if leaf.kind == "python":
        return leaf.python_value()
    place = None
    if isinstance(target, jax.ShapeDtypeStruct) or (isinstance(target, jax.Array) and target.committed):
        place = target.sharding
    if leaf.kind == "key":
        stored = _no_keys(leaf) if stored is None else stored
        if place is not None and not place.is_fully_addressable:
            stored = _put(stored, place)
        key = jax.random.wrap_key_data(stored, impl=leaf.impl)
        return key if target is None else _put(key, place)
    value = np.zeros(leaf.shape, jax.numpy.dtype(leaf.dtype)) if stored is None else stored
    if isinstance(target, (jax.Array, jax.ShapeDtypeStruct)):
        return _put(value, place)
    scalar = isinstance(target, np.generic) or (target is None and leaf.kind == "numpy_scalar")
    return value[()] if scalar else value


def _no_keys(leaf: Leaf) -> np.ndarray:
    words = jax.eval_shape(jax.random.key_data, jax.eval_shape(lambda: jax.random.key(0, impl=leaf.impl)))
    return np.zeros(leaf.shape + words.shape, words.dtype)


def _put(value: Any, place: jax.sharding.Sharding | None) -> jax.Array:
    if place is None or place.is_fully_addressable:
        return jax.device_put(value, place)
    # `device_put` cannot place arrays on devices of other processes; Orbax has read device arrays in place.
    if isinstance(value, np.ndarray):
        return jax.make_array_from_callback(value.shape, place, lambda index: value[index])
    return value
