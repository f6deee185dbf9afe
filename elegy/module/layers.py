"""Collects the layers of a module, for its summary."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import jax
import numpy as np

from elegy.flat import eval_shape
from elegy.module.levels import overrides
from elegy.names import distribution_shapes, path_name
from elegy.types import PyTree

_NOT_STATE = (
    "key",
    "params",
    "optimizer",
    "losses_and_metrics",
    "averaged_params",
    "dynamic_loss_scale",
    "_logs",
    "_step",
)


@dataclasses.dataclass(frozen=True)
class Row:
    """One layer in a summary.

    Args:
        path: the path of the layer in the module; `()` for the module itself.
        type_name: the name of its class.
        outputs: the `outline` of its outputs; `None` if unknown.
        params: its own parameters without those of sublayers, a pytree of `jax.ShapeDtypeStruct`.
        state: its other variables, likewise.
    """

    path: tuple[str, ...]
    type_name: str
    outputs: Any = None
    params: PyTree = None
    state: PyTree = None


class Calls:
    """Records the layers of a traced call, in the order in which they are called."""

    def __init__(self) -> None:
        self._found: dict[tuple[str, ...], tuple[str, Any]] = {}

    def enter(self, path: Iterable[Any], cls: type) -> tuple[str, ...] | None:
        """Records a call of a layer of class `cls`; returns its path for the first call, `None` for later ones."""
        where = tuple(str(part) for part in path)
        if where in self._found:
            return None
        self._found[where] = (cls.__name__, None)
        return where

    def leave(self, where: tuple[str, ...] | None, outputs: Any, batch: int | None = None) -> None:
        """Records the outputs of a layer.

        Args:
            where: the result of `enter`.
            outputs: the outputs, traced.
            batch: the size of the axis over which the call was mapped, if it was.
        """
        if where is not None:
            self._found[where] = (self._found[where][0], outline(outputs, batch))

    def rows(self, root: tuple[str, Any], params: PyTree, *state: PyTree) -> list[Row]:
        """Makes the rows; a variable belongs to the innermost layer whose path is a prefix of its path.

        Args:
            root: the class name and the outline of the outputs of the whole module.
            params: a pytree of `jax.ShapeDtypeStruct`.
            *state: trees of other variables, likewise.
        """
        layers = {(): root, **{where: call for where, call in self._found.items() if where}}
        own: dict[tuple[str, ...], tuple[dict, dict]] = {where: ({}, {}) for where in layers}
        for kind, tree in ((0, params), *((1, tree) for tree in state)):
            for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
                parts = split_path(path_name(path))
                where = next(parts[:n] for n in range(len(parts), -1, -1) if parts[:n] in layers)
                own[where][kind]["/".join(parts[len(where) :])] = leaf
        return [Row(where, name, outputs, *own[where]) for where, (name, outputs) in layers.items()]


def split_path(path: str) -> tuple[str, ...]:
    """Splits a path; Haiku's `~` marks a method, not a layer.

    Example:
        >>> split_path("mlp/~/linear_0")
        ('mlp', 'linear_0')
    """
    return tuple(part for part in path.split("/") if part not in ("~", ""))


def outline(value: Any, batch: int | None = None) -> Any:
    """Outlines an output: arrays become `jax.ShapeDtypeStruct`, other objects the name of their class.

    A distribution is described by its class, batch shape and event shape.

    Args:
        value: the output.
        batch: the size of a leading axis that the arrays' shapes do not show.

    Example:
        >>> outline({"logits": np.zeros((2, 3), np.float32), "extra": object()})
        {'logits': ShapeDtypeStruct(shape=(2, 3), dtype=float32), 'extra': 'object'}
    """
    if value is None:
        return None
    if isinstance(value, (jax.Array, np.ndarray, jax.ShapeDtypeStruct)):
        return jax.ShapeDtypeStruct((*(() if batch is None else (batch,)), *value.shape), value.dtype)
    if isinstance(value, Mapping):
        return {key: outline(item, batch) for key, item in value.items()}
    if isinstance(value, tuple) and (fields := getattr(value, "_fields", None)) is not None:
        return {name: outline(getattr(value, name), batch) for name in fields}
    if isinstance(value, (list, tuple)):
        return [outline(item, batch) for item in value]
    shapes = distribution_shapes(value)
    if shapes is None:
        return type(value).__name__
    batch_shape, event_shape = (*(() if batch is None else (batch,)), *shapes[0]), shapes[1]
    return f"{type(value).__name__}(batch={list(batch_shape)}, event={list(event_shape)})"


def structs(tree: PyTree) -> PyTree:
    """Replaces arrays and numbers by their shapes and dtypes."""

    def struct(leaf: Any) -> jax.ShapeDtypeStruct:
        array = leaf if hasattr(leaf, "dtype") else np.asarray(leaf)
        return jax.ShapeDtypeStruct(array.shape, jax.dtypes.canonicalize_dtype(array.dtype, allow_extended_dtype=True))

    return jax.tree.map(struct, tree)


def initialised(module: Any, inputs: PyTree) -> Any:
    """Returns the structure of a module after its init, without running it.

    Args:
        module: an ElegyModule, or its structure; one with parameters or without `init` is returned unchanged.
        inputs: one batch of inputs, arrays or `jax.ShapeDtypeStruct`.
    """
    if jax.tree.leaves(module.get_params()) or not overrides(type(module), "init"):
        return structs(module)
    return eval_shape(lambda key, inputs: module.init(key, inputs), jax.random.key(0), structs(inputs))


def run_apply(state: Any, inputs: PyTree) -> Any:
    """Returns the outline of the outputs of a module's `apply`, traced outside of training.

    Args:
        state: an initialised ElegyModule's structure.
        inputs: one batch of inputs, arrays or `jax.ShapeDtypeStruct`.
    """
    found: list[Any] = []

    def run(state: Any, key: jax.Array, inputs: PyTree) -> None:
        # The outline is stored, not returned: outputs such as distributions may not be pytrees.
        found.append(outline(state.apply(key, inputs, False)[0]))

    eval_shape(run, state, jax.random.key(0), structs(inputs))
    return found[-1]


def whole_module(module: Any, inputs: PyTree) -> list[Row]:
    """Returns a summary of one row, for the whole module."""
    state = initialised(module, inputs)
    outputs = run_apply(state, inputs) if overrides(type(module), "apply") else None
    return [Row((), type(module).__name__, outputs, state.get_params(), other_state(state))]


def other_state(state: Any) -> dict[str, PyTree]:
    """Returns the fields of a module with state, except parameters, key, optimizer, losses and metrics."""
    fields = (name for name in state.__dataclass_fields__ if name not in _NOT_STATE)
    held = {name: getattr(state, name) for name in fields if name not in state._static_names}
    return {name: tree for name, tree in held.items() if jax.tree.leaves(tree)}
