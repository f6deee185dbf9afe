"""Makes the first state on the devices that a strategy chooses."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np
from jax.core import Tracer
from jax.extend.core import Literal, jaxpr_as_fun

from elegy.flat import make_jaxpr
from elegy.garbage import collection_paused
from elegy.jaxprs import without_dead_code
from elegy.strategies.strategy import struct_of
from elegy.types import PyTree

Put = Callable[[Any, Any], jax.Array]


class InitKernel:
    """Traces `init(*args) -> state` once and calls it, with a sharding for every leaf of the state.

    Leaves that `init` returns unchanged (given initial values) are not part of the compiled function. They are copied
    to their shardings, so that no device stores more than its part. The other leaves are compiled.

    Args:
        init: makes the state.
        shardings: a function from the state's structure to the sharding of each leaf.
        put: copies a given array to a sharding.
        place: places all other arguments for the compiled function.
        options: compiler options.
    """

    def __init__(
        self,
        init: Callable[..., PyTree],
        shardings: Callable[[PyTree], PyTree],
        *,
        put: Put,
        place: Callable[[list[Any]], list[Any]],
        options: Mapping[str, Any],
    ):
        self._init, self._find_shardings = init, shardings
        self._put, self._place, self._options = put, place, dict(options)
        self._closed: Any = None
        self._struct: PyTree = None

    def __call__(self, *args: Any) -> PyTree:
        """Makes the state. The arguments of later calls must have the structure of the first."""
        self.structure(*args)
        leaves = jax.tree.leaves(args)
        if any(isinstance(leaf, Tracer) for leaf in leaves):
            # Inside of another traced function there is nothing to compile or copy here.
            out = jax.jit(jaxpr_as_fun(self._closed), out_shardings=self._shardings)(*leaves)
            return jax.tree.unflatten(self._treedef, out)
        given = self._given(leaves)
        out = [self._put(given[i], place) if i in given else None for i, place in enumerate(self._shardings)]
        computed = [i for i in range(len(out)) if i not in given]
        for i, leaf in zip(computed, self._compute(computed, leaves), strict=True):
            out[i] = leaf
        return jax.tree.unflatten(self._treedef, out)

    def structure(self, *args: Any) -> PyTree:
        """Traces `init`, and returns the shapes and dtypes of the state; `__call__` uses the same trace."""
        if self._closed is None:
            self._closed, self._struct = make_jaxpr(self._init, *jax.tree.map(_abstract, args))
            self._treedef = jax.tree.structure(self._struct)
            self._shardings = jax.tree.leaves(self._find_shardings(self._struct))
        return self._struct

    def _given(self, leaves: list[Any]) -> dict[int, Any]:
        """Returns the leaves of the state, by position, that are arguments or constants of the function."""
        jaxpr = self._closed.jaxpr
        values = dict(zip(jaxpr.invars, leaves, strict=True))
        values |= dict(zip(jaxpr.constvars, self._closed.consts, strict=True))
        found = {}
        for i, var in enumerate(jaxpr.outvars):
            value = var.val if isinstance(var, Literal) else values.get(var)
            if isinstance(value, (jax.Array, np.ndarray)):
                found[i] = value
        return found

    def _compute(self, computed: list[int], leaves: list[Any]) -> list[jax.Array]:
        if not computed:
            return []
        wanted = self._closed.jaxpr.replace(outvars=[self._closed.jaxpr.outvars[i] for i in computed])
        part = without_dead_code(self._closed.replace(jaxpr=wanted))
        read = {id(var) for equation in part.jaxpr.eqns for var in equation.invars} | set(map(id, part.jaxpr.outvars))
        needed = [i for i, var in enumerate(part.jaxpr.invars) if id(var) in read]  # the others may be on other devices
        function = jaxpr_as_fun(part.replace(jaxpr=part.jaxpr.replace(invars=[part.jaxpr.invars[i] for i in needed])))

        def init_step(arguments: list[Any]) -> list[Any]:
            return function(*arguments)

        shardings = [self._shardings[i] for i in computed]
        arguments = self._place([leaves[i] for i in needed])
        with collection_paused():
            lowered = jax.jit(init_step, out_shardings=shardings).lower(arguments)
        return lowered.compile(self._options)(arguments)


def copied_to(leaf: Any, sharding: jax.sharding.Sharding) -> jax.Array:
    """Returns a copy of an array that shares no memory with it, so that steps may donate the copy."""
    if not isinstance(leaf, jax.Array):
        return jax.device_put(np.array(leaf), sharding)
    placed = jax.device_put(leaf, sharding, may_alias=False)
    if len(sharding.device_set) > 1 and sharding.device_set & leaf.sharding.device_set:
        # `may_alias=False` has no effect if the array is already on one of several target devices.
        placed = jax.device_put(placed, sharding, may_alias=False)
    return placed


def reachable(leaf: Any, sharding: jax.sharding.Sharding) -> Any:
    """Moves an array to a sharding if it is committed to other devices, such as a value of another trainer.

    A compiled function takes all others as they are.
    """
    elsewhere = isinstance(leaf, jax.Array) and leaf.committed and leaf.sharding.device_set != sharding.device_set
    return jax.device_put(leaf, sharding) if elsewhere else leaf


def _abstract(leaf: Any) -> Any:
    return struct_of(leaf) if hasattr(leaf, "dtype") else leaf
