"""Equinox modules."""

from __future__ import annotations

import types
from typing import TYPE_CHECKING, Any, Self

import jax
import jax.numpy as jnp

from elegy.adapters.arguments import call_arguments, takes
from elegy.adapters.origin import Origin
from elegy.adapters.variables import join_floats, match_variables, split_floats
from elegy.data.batch import rows
from elegy.flat import eval_shape
from elegy.lazy import require
from elegy.module import ElegyModule, layers
from elegy.names import path_name
from elegy.pytree import Static, field, static_field
from elegy.types import PyTree

if TYPE_CHECKING:
    from equinox import Module
    from equinox.nn import State

eqx = require("equinox", "elegy.adapters.EquinoxModule")


class EquinoxModule(ElegyModule):
    """Runs an Equinox module.

    Equinox modules are written for one example, so the adapter maps the call over the batch with the axis name
    `"batch"`, and passes each example its own key if the call takes `key`. Outside of training,
    `eqx.nn.inference_mode` is on. Arrays of floats are the parameters (`params`, an Equinox module with `None` in other
    places); other arrays are not trained. `to_module` returns the trained module.

    Args:
        module: the Equinox module, or the pair `(module, state)` of `eqx.nn.make_with_state`.
        state: the `eqx.nn.State`, if the module is given alone. A call with state takes it as `state` and
            returns `(outputs, state)`; the state is not mapped.
        batched: True if the module takes whole batches, so that the call is not mapped.
        variables: the initial values: an Equinox module of the same structure, or a pair of a module and a state.

    The first state takes over the arrays of the module or of `variables`. A later init needs them again, so keep a
    reference to the module.

    Attributes:
        arrays: the arrays that are not trained: integers, booleans, keys.
        counters: the arrays of the state that are not floats; floats are in `batch_stats`.

    Raises:
        TypeError: if `module` is not an Equinox module, or has a state but its call does not take `state`.
        ValueError: at init, if `variables` do not fit; the message lists the paths.

    Example:
        >>> import equinox as eqx
        >>> module = EquinoxModule(eqx.nn.Linear(3, 2, key=jax.random.key(0)))
        >>> state = module.init(jax.random.key(1), jnp.ones((4, 3)))
        >>> state.apply(jax.random.key(2), jnp.ones((4, 3)), False)[0].shape
        (4, 2)
        >>> state.to_module()
        Linear(...)
    """

    arrays: PyTree = field(default=None, kw_only=True)
    counters: PyTree = field(default=None, kw_only=True)
    _rest: Static[Any] = static_field(repr=False)
    _origin: Static[Origin] = static_field(repr=False)
    _stateful: bool = static_field(default=False, repr=False)
    batched: bool = static_field(default=False)

    def __init__(
        self,
        module: Module | tuple[Module, State],
        *,
        state: State | None = None,
        batched: bool = False,
        variables: PyTree = None,
    ):
        if isinstance(module, tuple) and len(module) == 2 and state is None:
            module, state = module
        if not isinstance(module, eqx.Module) or not callable(module):
            raise TypeError(f"EquinoxModule needs an equinox.Module with a `__call__`, not {module!r:.200}.")
        if state is not None and not takes(module.__call__, "state"):
            raise TypeError(
                f"{type(module).__name__} was given with a state, so its `__call__` must take a parameter named "
                "`state` and return (outputs, state)."
            )
        if state is None and takes(module.__call__, "state", required=True):
            raise TypeError(
                f"{type(module).__name__}.__call__ takes a `state`: make the module with "
                f"`eqx.nn.make_with_state({type(module).__name__})(...)` and pass the pair that it returns."
            )
        self._rest = Static(eqx.filter(module, _is_array, inverse=True))
        self._initial = {"own": _collections(module, state), "given": _given(variables)}
        self._origin = Static(Origin(self._initial))
        self._stateful, self.batched = state is not None, batched

    def init(self, key: jax.Array, inputs: PyTree) -> Self:
        """Starts from the arrays of the module or of `variables`; the key is not used."""
        who = type(self._rest.value).__name__
        initial = self._origin.value.recall(who) if self._initial is None else self._initial
        own = jax.tree.map(jnp.asarray, match_variables(initial["own"], initial["given"], who))
        batch_stats, counters = split_floats(own["state"])
        return self.replace(
            params=own["params"],
            arrays=own["arrays"],
            batch_stats=batch_stats,
            counters=counters,
            _initial=None,
        )

    def apply(self, key: jax.Array, inputs: PyTree, training: bool) -> tuple[PyTree, Self]:
        """Calls the module, mapped over the batch unless it is `batched`."""
        module = self._combined()
        if not training:
            module = eqx.nn.inference_mode(module)
        outputs, model_state = self._call(module, key, inputs, training)
        if model_state is None:
            return outputs, self
        batch_stats, counters = split_floats(model_state)
        return outputs, self.replace(batch_stats=batch_stats, counters=counters)

    def to_module(self) -> Any:
        """Returns the Equinox module with the current parameters; the pair `(module, state)` if there is a state."""
        if self.params is None:
            raise ValueError("there are no parameters yet: the first state is made by `fit` or `init_on_batch`.")
        module = self._combined()
        return module if not self._stateful else (module, join_floats(self.batch_stats, self.counters))

    def summary_rows(self, inputs: PyTree) -> list[layers.Row]:
        """Returns one row for each submodule that is called."""
        state, calls = layers.initialised(self, inputs), layers.Calls()
        outputs = layers.run_apply(state, inputs)
        batch = None if self.batched else rows(inputs)

        def run(state: Any, key: jax.Array, inputs: PyTree) -> None:
            module = _recording(eqx.nn.inference_mode(state._combined()), (), calls, batch)
            state._call(module, key, inputs, False)

        eval_shape(run, state, jax.random.key(0), layers.structs(inputs))
        root = (type(self._rest.value).__name__, outputs)
        return calls.rows(root, state.params, state.arrays, state.batch_stats, state.counters)

    def _combined(self) -> Any:
        parts = (self.params, self.arrays, self._rest.value)
        return eqx.combine(*(part for part in parts if part is not None))

    def _call(self, module: Any, key: jax.Array, inputs: PyTree, training: bool) -> tuple[PyTree, Any]:
        signature, stateful = self._rest.value.__call__, self._stateful

        def one(inputs: PyTree, key: jax.Array, state: Any) -> tuple[PyTree, Any]:
            if stateful:
                args, kwargs = call_arguments(signature, inputs, training, extra={"key": key, "state": state})
                return module(*args, **kwargs)
            args, kwargs = call_arguments(signature, inputs, training, extra={"key": key}, hide=("state",))
            return module(*args, **kwargs), None

        model_state = join_floats(self.batch_stats, self.counters)
        if self.batched:
            return one(inputs, key, model_state)
        keys = jax.random.split(key, rows(inputs))
        return jax.vmap(one, axis_name="batch", in_axes=(0, 0, None), out_axes=(0, None))(inputs, keys, model_state)


def _collections(module: Any, state: Any) -> dict[str, PyTree]:
    params, rest = eqx.partition(module, eqx.is_inexact_array)
    arrays = eqx.filter(rest, eqx.is_array)
    return {"params": params, "arrays": arrays if jax.tree.leaves(arrays) else None, "state": state}


def _is_array(leaf: Any) -> bool:
    return eqx.is_array(leaf) or eqx.is_inexact_array(leaf)


def _given(variables: Any) -> dict[str, PyTree]:
    if variables is None:
        return {}
    module, state = variables if isinstance(variables, tuple) and len(variables) == 2 else (variables, None)
    if not isinstance(module, eqx.Module):
        raise TypeError(
            "the variables of an Equinox module are another module of the same structure, or a pair "
            f"(module, state), not a {type(variables).__name__}."
        )
    found = _collections(module, state)
    return {name: tree for name, tree in found.items() if tree is not None}


def _recording(node: Any, path: tuple[str, ...], calls: layers.Calls, batch: int | None) -> Any:
    """Returns a copy of a module whose submodules record their calls in `calls`."""
    inner, treedef = jax.tree_util.tree_flatten_with_path(
        node, is_leaf=lambda value: value is not node and isinstance(value, eqx.Module)
    )
    parts = [
        _recording(leaf, (*path, *layers.split_path(path_name(where))), calls, batch)
        if isinstance(leaf, eqx.Module)
        else leaf
        for where, leaf in inner
    ]
    copy = jax.tree.unflatten(treedef, parts)
    cls = type(node)
    if not callable(node):
        return copy

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        where = calls.enter(path, cls)
        outputs = cls.__call__(self, *args, **kwargs)
        calls.leave(where, outputs, batch)
        return outputs

    # Equinox modules are frozen, and Python looks `__call__` up on the class: so the copy gets a subclass.
    object.__setattr__(
        copy, "__class__", types.new_class(cls.__name__, (cls,), exec_body=lambda body: body.update(__call__=call))
    )
    return copy
