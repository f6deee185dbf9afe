"""Matches saved leaves with a target tree by path, shape and dtype."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from elegy.callers import stacklevel_of_caller
from elegy.checkpoint.arrays import from_stored, to_stored
from elegy.checkpoint.leaves import Leaf, describe, mismatch, named_leaves
from elegy.errors import CheckpointError
from elegy.types import PyTree


def describe_all(named: Mapping[str, Any], where: str) -> dict[str, Leaf]:
    """Describes leaves by path.

    Raises:
        CheckpointError: listing every leaf that is not an array, key or scalar, or whose buffer was donated.
    """
    leaves: dict[str, Leaf] = {}
    problems = []
    for path, value in named.items():
        try:
            leaves[path] = describe(value)
        except TypeError as error:
            problems.append(f"{path}: {error}")
        else:
            if isinstance(value, jax.Array) and value.is_deleted():
                problems.append(f"{path}: the array was deleted (its buffer was donated to a compiled step)")
    if problems:
        raise CheckpointError(f"{where}:\n  " + "\n  ".join(problems))
    return leaves


_RESTORE = (
    "`trainer.restore(path, strict=False)` loads what fits and keeps the target's own values elsewhere, for a `fit` "
    "without `resume`; `trainer.load_weights(path)` takes the weights alone."
)
_FILL = (
    "`trainer.load_weights(source, strict=False)` loads what fits and keeps the target's own values elsewhere; "
    "`prefix=` takes a part of the source, and `rename=` gives its paths other names."
)


def fitting(
    saved: Mapping[str, Leaf], target: Mapping[str, Any], *, strict: bool, where: str, remedy: str = _RESTORE
) -> set[str]:
    """Returns the paths at which the saved leaf matches the target's leaf.

    Args:
        saved: descriptions of the saved leaves, by path.
        target: the leaves to replace, by path: arrays, scalars or `jax.ShapeDtypeStruct`.
        strict: True to require that all paths match on both sides.
        where: the beginning of messages.
        remedy: the end of the message about a mismatch: what to write instead.

    Raises:
        CheckpointError: listing every mismatch if `strict`, otherwise every target leaf that would be left without
            a value.

    Warns:
        UserWarning: listing every mismatch unless `strict`.
    """
    wanted = describe_all(target, f"{where}: the target holds leaves that no checkpoint can fill")
    problems: dict[str, str] = {}
    for path, leaf in wanted.items():
        if path not in saved:
            problems[path] = f"missing in the file; the target has {leaf}"
        elif (difference := mismatch(saved[path], leaf)) is not None:
            problems[path] = difference
        elif leaf.kind == "jax" and jax.dtypes.canonicalize_dtype(np.dtype(leaf.dtype)).name != leaf.dtype:
            problems[path] = f"{leaf} does not exist in JAX until `jax_enable_x64` is switched on"
    unexpected = {path: f"unexpected: {leaf} in the file only" for path, leaf in saved.items() if path not in wanted}
    if not problems and not unexpected:
        return set(wanted)
    listed = "\n  ".join(f"{path}: {text}" for path, text in (problems | unexpected).items())
    if strict:
        raise CheckpointError(f"{where} does not match the target:\n  {listed}\n{remedy}")
    empty = [path for path in problems if isinstance(target[path], jax.ShapeDtypeStruct)]
    if empty:
        raise CheckpointError(
            f"{where} does not match the target, which holds no values to keep for {', '.join(empty)}:\n  {listed}\n"
            "Give a target of arrays to `strict=False`."
        )
    warnings.warn(
        f"{where} does not match the target; loaded what fits, except:\n  {listed}", stacklevel=stacklevel_of_caller()
    )
    return set(wanted) - set(problems)


def fill(target: PyTree, flat: Mapping[str, Any], *, strict: bool = True, where: str = "the given tree") -> PyTree:
    """Puts loaded leaves into a tree.

    Args:
        target: a tree of arrays, scalars or `jax.ShapeDtypeStruct`.
        flat: path -> value, as `restore(path, None)` or `load_safetensors` return it.
        strict: True to require the same paths, shapes and dtypes on both sides.
        where: what the leaves were read from, for messages.

    Returns:
        The target's structure with the loaded values, in the target's leaf types and shardings.

    Raises:
        CheckpointError: listing every mismatch by path if `strict`; nothing is ever cast or reshaped.

    Warns:
        UserWarning: listing the leaves that were not loaded, unless `strict`.

    Example:
        >>> fill({"w": np.zeros(2)}, {"w": np.ones(2)})
        {'w': array([1., 1.])}
    """
    named = named_leaves(target)
    saved = describe_all(flat, "the given leaves cannot be loaded")
    fits = fitting(saved, named, strict=strict, where=where, remedy=_FILL)
    leaves = [
        from_stored(saved[path], to_stored(flat[path]), old) if path in fits else old for path, old in named.items()
    ]
    return jax.tree.unflatten(jax.tree.structure(target), leaves)
