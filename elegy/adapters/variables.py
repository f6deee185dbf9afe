"""Matches a user's initial variables with a module's own, and splits the state of third-party modules."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from elegy.names import array_name, path_name
from elegy.types import PyTree

_MISSING = ": missing; the module has "


def match_variables(own: Mapping[str, PyTree], given: Mapping[str, PyTree], who: str) -> dict[str, PyTree]:
    """Replaces a module's own values by given ones.

    Args:
        own: the module's variables: collection name -> pytree of arrays or `jax.ShapeDtypeStruct`.
        given: likewise, in any containers; leaves are matched by path. A missing collection keeps the module's own
            values; other collections must be complete.
        who: the module's name, for the message.

    Returns:
        The variables by collection, with the structure of `own`. Given floats keep their dtype.

    Raises:
        ValueError: listing the paths that are missing, unexpected, or of another shape or kind.

    Example:
        >>> match_variables({"params": {"w": jnp.zeros(2)}}, {"params": {"w": jnp.ones(2)}}, "Net")
        {'params': {'w': Array([1., 1.], dtype=float32)}}
        >>> match_variables({"params": {"w": jnp.zeros(2)}}, {"params": {"v": jnp.ones(2)}}, "Net")
        Traceback (most recent call last):
        ...
        ValueError: the given variables do not fit Net: ...
    """
    problems: list[str] = []
    out: dict[str, PyTree] = {}
    for name, tree in own.items():
        out[name] = tree if name not in given else _match(name, tree, given[name], problems)
    for name, tree in given.items():
        if name not in own and jax.tree.leaves(tree):
            problems.append(f"{name}: unexpected; the collections of {who} are {', '.join(own) or 'none'}")
    if problems:
        message = f"the given variables do not fit {who}:\n  " + "\n  ".join(problems)
        if all(_MISSING in problem for problem in problems):
            message += (
                "\nA collection is given as a whole. To set a part of one, make the first state with "
                "`trainer.init_on_batch(...)` and replace the part: "
                "`trainer.state = trainer.state.replace(params={**trainer.state.params, ...})`."
            )
        raise ValueError(message)
    return out


def _match(name: str, own: PyTree, given: PyTree, problems: list[str]) -> PyTree:
    values = {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(given)}
    leaves, before = [], len(problems)
    for path, leaf in jax.tree_util.tree_leaves_with_path(own):
        where = path_name(path)
        if where not in values:
            problems.append(f"{name}/{where}{_MISSING}{array_name(leaf)}")
            continue
        value = values.pop(where)
        if jnp.shape(value) != leaf.shape or not _same_kind(value, leaf):
            problems.append(f"{name}/{where}: given {array_name(value)}, but the module has {array_name(leaf)}")
        leaves.append(jnp.asarray(value))
    problems.extend(f"{name}/{where}: unexpected {array_name(leaf)}" for where, leaf in values.items())
    return own if len(problems) > before else jax.tree.unflatten(jax.tree.structure(own), leaves)


def _same_kind(value: Any, leaf: Any) -> bool:
    kinds = (jnp.floating, jnp.complexfloating, jnp.integer, jnp.bool_, jax.dtypes.prng_key)
    return any(jnp.issubdtype(_dtype(value), k) and jnp.issubdtype(leaf.dtype, k) for k in kinds)


def _dtype(leaf: Any) -> Any:
    return leaf.dtype if hasattr(leaf, "dtype") else np.asarray(leaf).dtype


def _is_float(leaf: Any) -> bool:
    return jnp.issubdtype(_dtype(leaf), jnp.inexact)


def split_floats(tree: PyTree) -> tuple[PyTree, PyTree]:
    """Splits a third-party state into floats, which replicas average, and the rest (counters, flags, keys).

    Returns:
        `(floats, rest)`: two trees of the same containers, with `None` for leaves of the other one. A tree without
        leaves is `None`.

    Example:
        >>> split_floats({"mean": jnp.zeros(()), "count": jnp.zeros((), int)})[0]
        {'count': None, 'mean': Array(0., dtype=float32)}
    """
    floats = jax.tree.map(lambda leaf: leaf if _is_float(leaf) else None, tree)
    rest = jax.tree.map(lambda leaf: None if _is_float(leaf) else leaf, tree)
    return tuple(part if jax.tree.leaves(part) else None for part in (floats, rest))  # type: ignore[return-value]


def join_floats(floats: PyTree, rest: PyTree, empty: PyTree = None) -> PyTree:
    """The inverse of `split_floats`.

    Args:
        floats: the first part.
        rest: the second part.
        empty: the result if both parts are `None`: a state without leaves.
    """
    if floats is None or rest is None:
        found = floats if rest is None else rest
        return empty if found is None else found
    return jax.tree.map(lambda a, b: b if a is None else a, floats, rest, is_leaf=lambda leaf: leaf is None)


def paths(tree: PyTree) -> dict[str, Any]:
    """Returns the leaves of a tree by path.

    Example:
        >>> paths({"a": {"b": 1}, "c": [2]})
        {'a/b': 1, 'c/0': 2}
    """
    return {path_name(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def nest(leaves: Mapping[str, Any]) -> dict[str, Any]:
    """Makes nested dicts from leaves by path.

    Example:
        >>> nest({"a/b": 1, "c/0": 2})
        {'a': {'b': 1}, 'c': {'0': 2}}
    """
    out: dict[str, Any] = {}
    for path, leaf in leaves.items():
        *parents, last = path.split("/")
        node = out
        for part in parents:
            node = node.setdefault(part, {})
        node[last] = leaf
    return out
