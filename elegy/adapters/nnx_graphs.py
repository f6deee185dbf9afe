"""Splits an NNX module into its structure and its values."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax

from elegy.lazy import require
from elegy.module import layers
from elegy.types import PyTree

nnx = require("flax.nnx", "elegy.adapters.NNXModule")

GROUPS = ("params", "batch_stats", "variables")
"""The fields of the state with a module's Variables."""


class Graphs:
    """The structure of a module in each mode, without arrays.

    Args:
        name: the class of the module.
        modes: the graph definitions for training (True), for evaluation (False), and as given (None).
        streams: the shapes and dtypes of the random state.
        paths: the paths of all other Variables.

    Attributes:
        grown: the structure with the Variables that the first call makes, after that call.
        before_first_call: the structure without these.
    """

    def __init__(self, name: str, modes: dict[bool | None, Any], streams: PyTree, paths: set[tuple[Any, ...]]):
        self.name, self.modes, self.streams, self.paths = name, modes, streams, paths
        self.grown: Graphs | None = None
        self.before_first_call = self

    @classmethod
    def of(cls, module: Any) -> Graphs:
        """Splits a module; its mode is changed, so it must be a copy."""
        for kind in (nnx.Intermediate, *reported()):
            nnx.pop(module, kind)
        modes: dict[bool | None, Any] = {None: nnx.graphdef(module)}
        for training in (True, False):
            _ = module.train() if training else module.eval()
            modes[training] = nnx.graphdef(module)
        streams = layers.structs(nnx.to_pure_dict(nnx.state(module, nnx.RngState)))
        return cls(
            type(module).__name__,
            modes,
            streams,
            {path for tree in values_of(module).values() for path in by_keys(tree)},
        )

    def grow(self, module: Any) -> None:
        """Stores the structure after the first call. There is only one, because states compare it by identity."""
        graphs = Graphs.of(module)
        if self.grown is None or self.grown.modes != graphs.modes:
            self.grown = graphs
            graphs.before_first_call = self


def reported() -> tuple[type, type]:
    """Returns the types of the Variables that are reported to the trainer and not kept in the state."""
    losses, metrics = (nnx.variable_type_from_name(name, allow_register=True) for name in ("losses", "metrics"))
    return losses, metrics


def values_of(module: Any) -> dict[str, PyTree]:
    """Returns the variables of a module as nested dicts of arrays, without random state and reported Variables."""
    kept = nnx.Not(nnx.Any(nnx.RngState, nnx.Intermediate, *reported()))
    states = nnx.state(module, nnx.Param, nnx.BatchStat, kept, ...)[:3]
    return {name: nnx.to_pure_dict(state) for name, state in zip(GROUPS, states, strict=True)}


def by_keys(tree: PyTree) -> dict[tuple[Any, ...], Any]:
    """Returns the leaves of nested dicts by tuples of keys; a list of the module has integer keys."""
    return {tuple(key.key for key in path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def nested(flat: Mapping[tuple[Any, ...], Any]) -> dict[Any, Any]:
    """The inverse of `by_keys`."""
    out: dict[Any, Any] = {}
    for path, leaf in flat.items():
        node = out
        for part in path[:-1]:
            node = node.setdefault(part, {})
        node[path[-1]] = leaf
    return out


def where(tree: PyTree, wanted: Callable[[tuple[Any, ...]], bool]) -> dict[Any, Any]:
    """Returns the part of a tree of nested dicts at the paths for which `wanted` is True."""
    return nested({path: leaf for path, leaf in by_keys(tree).items() if wanted(path)})
