"""Traces functions of trees without leaving tree definitions in JAX's caches.

JAX caches the tree definitions of the arguments and the results of traced functions longer than the functions live.
A tree definition contains the static parts of a state: the user's module, optimizer and losses, with their arrays. To
let these be freed, this module flattens the trees and passes JAX dicts of arrays by path.
"""

from __future__ import annotations

import inspect
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax

from elegy.garbage import collection_paused
from elegy.names import path_name
from elegy.types import PyTree

Flat = OrderedDict[str, Any]
"""Arrays by path, in the order of a tree's leaves. An OrderedDict, because JAX sorts the keys of a dict."""


class FlatFunction:
    """Converts a function of trees to a function from one flat dict of arrays to another.

    Args:
        function: takes and returns trees.
        args: example arguments: trees of arrays or `jax.ShapeDtypeStruct`.

    Attributes:
        out_tree: the tree definition of the result of the last call.

    Example:
        >>> function = FlatFunction(lambda state, x: {"y": state["w"] * x}, ({"w": 2}, 3))
        >>> dict(function.flatten(({"w": 4}, 5)))
        {'state/w': 4, 'x': 5}
        >>> function.unflatten(function(function.flatten(({"w": 4}, 5))))
        {'y': 20}
    """

    def __init__(self, function: Callable[..., PyTree], args: Sequence[PyTree]):
        self._function = function
        self.__name__ = getattr(function, "__name__", type(function).__name__)  # in profiles and messages
        found, self._in_tree = jax.tree_util.tree_flatten_with_path(tuple(args))
        roots = _parameters(function, len(args))
        self._names = _unique(
            "/".join((roots[path[0].idx], *([path_name(path[1:])] if path[1:] else []))) for path, _ in found
        )
        self.out_tree: Any = None

    def flatten(self, args: Sequence[PyTree]) -> Flat:
        """Flattens arguments that have the structure of the example arguments."""
        return OrderedDict(zip(self._names, jax.tree.leaves(tuple(args)), strict=True))

    def __call__(self, arrays: Flat) -> Flat:
        """Calls the function."""
        out = self._function(*jax.tree.unflatten(self._in_tree, arrays.values()))
        found, self.out_tree = jax.tree_util.tree_flatten_with_path(out)
        names = _unique(path_name(path) for path, _ in found)
        return OrderedDict(zip(names, (leaf for _, leaf in found), strict=True))

    def unflatten(self, arrays: Flat) -> PyTree:
        """Restores the result of the function from the result of the flat function."""
        return jax.tree.unflatten(self.out_tree, arrays.values())


def eval_shape(function: Callable[..., PyTree], *args: PyTree) -> PyTree:
    """Traces a function, as `jax.eval_shape` does.

    Args:
        function: takes and returns trees.
        *args: arrays or `jax.ShapeDtypeStruct`.

    Returns:
        The function's result, with `jax.ShapeDtypeStruct` in place of arrays.

    Example:
        >>> eval_shape(lambda x: (x, x.sum()), jax.ShapeDtypeStruct((2,), "float32"))[1]
        ShapeDtypeStruct(shape=(), dtype=float32)
    """
    structs, treedef = outline(function, *args)
    return jax.tree.unflatten(treedef, structs)


def outline(function: Callable[..., PyTree], *args: PyTree) -> tuple[list[Any], Any]:
    """Traces a function as `eval_shape` does, but returns leaves and a tree definition.

    A container class of the user's may accept arrays only, and no `jax.ShapeDtypeStruct`.

    Args:
        function: takes and returns trees.
        *args: arrays or `jax.ShapeDtypeStruct`.

    Returns:
        `(structs, treedef)`: a `jax.ShapeDtypeStruct` for each leaf, and the tree definition.

    Example:
        >>> outline(lambda x: {"y": x * 2}, jax.ShapeDtypeStruct((2,), "float32"))
        ([ShapeDtypeStruct(shape=(2,), dtype=float32)], PyTreeDef({'y': *}))
    """
    flat = FlatFunction(function, args)
    with collection_paused():
        structs = jax.eval_shape(flat, flat.flatten(args))
    return list(structs.values()), flat.out_tree


def make_jaxpr(
    function: Callable[..., PyTree], *args: PyTree, axis_env: Sequence[tuple[str, int]] = ()
) -> tuple[Any, PyTree]:
    """Traces a function, as `jax.make_jaxpr` with `return_shape=True` does.

    Args:
        function: takes and returns trees.
        *args: arrays or `jax.ShapeDtypeStruct`.
        axis_env: names and sizes of the axes that the function refers to.

    Returns:
        `(closed, out)`: the closed jaxpr, whose variables are the leaves of the arguments and of the result in their
        order; the result with `jax.ShapeDtypeStruct` for arrays.
    """
    flat = FlatFunction(function, args)
    trace = jax.make_jaxpr(flat, axis_env=axis_env or None, return_shape=True)
    with collection_paused():
        closed, out = trace(flat.flatten(args))
    return closed, flat.unflatten(out)


def _parameters(function: Callable[..., Any], count: int) -> list[str]:
    """Returns the names of the first parameters of a function, for JAX's messages about its arguments."""
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except ValueError:  # a builtin without a signature
        parameters = []
    names = [p.name for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    return [*names, *(f"argument_{i}" for i in range(len(names), count))]


def _unique(names: Iterable[str]) -> list[str]:
    """Makes paths unique that are spelled alike, such as those of `{"a/b": 1, "a": {"b": 2}}`."""
    taken: dict[str, None] = {}
    for name in names:
        while name in taken:
            name += "'"
        taken[name] = None
    return list(taken)
