"""What is served: a function of a batch of inputs, from a trainer or from an export."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from elegy.errors import CheckpointError
from elegy.names import array_name, path_name
from elegy.types import PyTree

EXPORTED = "pred_step.jax_export"

_CLOSE = 1e-3
"""The largest difference, relative to the largest output, of sums that were taken in another order."""


@dataclasses.dataclass(frozen=True)
class Served:
    """A function that is served.

    Args:
        predict: computes the outputs of a batch, from NumPy arrays to NumPy arrays.
        inputs: one `jax.ShapeDtypeStruct` for each input; the number of rows does not count.
        about: what the server shows about it.
    """

    predict: Callable[[PyTree], PyTree]
    inputs: PyTree
    about: dict[str, Any]

    def described(self) -> dict[str, str]:
        """The dtype and the shape of each input, by path; `"inputs"` stands for the only one."""
        leaves = jax.tree_util.tree_leaves_with_path(self.inputs)
        return {
            path_name(path) if path else "inputs": array_name(leaf, ("rows", *leaf.shape[1:])) for path, leaf in leaves
        }

    def has_independent_rows(self) -> bool:
        """True if the outputs of a row are the same whichever other rows are in the batch; computed for random rows.

        Only then may the rows of several requests be in one batch.
        """
        rng = np.random.default_rng(0)
        many = jax.tree.map(lambda leaf: _random(rng, (4, *leaf.shape[1:]), leaf.dtype), self.inputs)
        one = jax.tree.map(lambda leaf: leaf[:1], many)
        alone, among = jax.tree.leaves(self.predict(one)), jax.tree.leaves(self.predict(many))
        return all(_has_row(whole, row) for whole, row in zip(among, alone, strict=True))


def _random(rng: np.random.Generator, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    if np.dtype(dtype).kind in "biu":
        return rng.integers(0, 2, shape).astype(dtype)  # tokens and classes that every model has
    return rng.normal(size=shape).astype(dtype)


def _has_row(whole: np.ndarray, row: np.ndarray) -> bool:
    if np.shape(whole)[:1] != (4,) or np.shape(row)[:1] != (1,):
        return False
    if not jnp.issubdtype(row.dtype, jnp.inexact):
        return bool(np.array_equal(whole[:1], row))
    whole, row = (part.astype(complex) for part in (whole[:1], row))
    largest = np.max(np.abs(row), initial=0, where=np.isfinite(row))
    return bool(np.allclose(whole, row, rtol=0, atol=_CLOSE * largest, equal_nan=True))


def is_export(path: str) -> bool:
    """True for a directory that `Trainer.export` wrote."""
    return (Path(path) / EXPORTED).is_file()


def of_export(path: str) -> Served:
    """Reads what `Trainer.export` wrote; the program that made it is not needed.

    Raises:
        CheckpointError: if it is damaged, or was exported for other platforms.
    """
    try:
        exported = jax.export.deserialize(bytearray((Path(path) / EXPORTED).read_bytes()))
        (inputs,), _ = jax.tree.unflatten(exported.in_tree, exported.in_avals)
    except Exception as error:
        raise CheckpointError(f"the export {path} cannot be read: {error}") from error
    platform = jax.default_backend()
    known = {"gpu": "cuda"}.get(platform, platform)
    if not {platform, known} & set(exported.platforms):
        raise CheckpointError(
            f"{path} was exported for {', '.join(exported.platforms)}, but this process runs on {known}: export it "
            f"with platforms=({known!r},)."
        )
    call = jax.jit(exported.call)
    structs = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((1, *leaf.shape[1:]), leaf.dtype), inputs)
    about = {"export": str(path), "platforms": ", ".join(exported.platforms)}
    return Served(lambda batch: jax.tree.map(np.asarray, call(batch)), structs, about)
