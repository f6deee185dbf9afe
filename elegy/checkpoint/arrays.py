"""Arrays to and from a directory: Orbax does the writing and the reading."""

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

_FILE_SIZE = 64 << 20
"""Aimed at for one file, in bytes: several files are hashed in parallel, one is not."""

_SMALL = 1 << 20
"""Smaller arrays, in bytes, are given to Orbax as NumPy's: a hundred of them are then written in a third of the time.
Larger ones take longer that way, because Orbax copies them first."""


@contextlib.contextmanager
def _orbax() -> Iterator[tuple[ModuleType, Any]]:
    # Imported when touched: it takes as long to import as JAX does.
    import orbax.checkpoint as ocp

    # Weights hardly compress (7% of normally distributed float32), and without it reading is twice as fast, which
    # pays for the checksums.
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(use_compression=False)) as checkpointer:
        yield ocp, checkpointer


def write_arrays(directory: Path, arrays: Mapping[str, Any]) -> None:
    """Writes arrays by name into a new directory; every process of a distributed run calls it."""
    with _orbax() as (ocp, checkpointer):
        given = {**arrays, **jax.device_get({name: value for name, value in arrays.items() if _small(value)})}
        checkpointer.save(directory, args=ocp.args.PyTreeSave(given, ocdbt_target_data_file_size=_FILE_SIZE))


def _small(value: Any) -> bool:
    """True if an array is small, and whole on a device of this, the only process."""
    return (
        isinstance(value, jax.Array)
        and jax.process_count() == 1
        and value.is_fully_replicated
        and value.nbytes < _SMALL
    )


def read_arrays(directory: Path, shardings: Mapping[str, jax.sharding.Sharding | None]) -> dict[str, Any]:
    """Reads some arrays back by name.

    Args:
        directory: what `write_arrays` wrote.
        shardings: for each name where to place the array; None for a NumPy array.
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
    """The plain array that holds a leaf's bits."""
    if isinstance(value, jax.Array) and jnp.issubdtype(value.dtype, jax.dtypes.prng_key):
        return jax.random.key_data(value)
    return np.asarray(value) if isinstance(value, np.generic) else value


def placement(leaf: Leaf, target: Any) -> jax.sharding.Sharding | None:
    """Where to read the array of a leaf that will take a target leaf's place; None for the host.

    Arrays whose target does not say where they belong come through the host and stay uncommitted, as freshly made
    ones are: a step compiled for those need not be compiled again.
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
    """Makes a leaf of the target's type out of the stored array.

    Args:
        leaf: the saved leaf's description.
        stored: what was read, or None for a leaf that needs no array.
        target: the leaf whose place it takes; None for host values (typed keys stay keys).
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
    # `device_put` does not reach the devices of other processes; what is not on the host was read in place.
    if isinstance(value, np.ndarray):
        return jax.make_array_from_callback(value.shape, place, lambda index: value[index])
    return value
