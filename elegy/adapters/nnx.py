"""Flax NNX modules."""

from __future__ import annotations

import functools
import types
from typing import Any, Self

import jax
import jax.numpy as jnp

from elegy.adapters.arguments import call_arguments
from elegy.adapters.variables import match_variables, nest, paths
from elegy.flat import eval_shape
from elegy.lazy import require
from elegy.module import ElegyModule, layers
from elegy.pytree import Static, field, static_field
from elegy.types import PyTree

nnx = require("flax.nnx", "elegy.adapters.NNXModule")

_GROUPS = ("params", "batch_stats", "variables")


class NNXModule(ElegyModule):
    """Runs a Flax NNX module.

    The object is split once; the steps see pure dicts of arrays, never a Variable. `nnx.Param` is the field
    `params`, `nnx.BatchStat` is `batch_stats`, every other variable is in `variables`. The random streams are
    seeded from each step's key. Steps run the module in the mode of its own `train()` and `eval()`. What the
    module sows as `"losses"` is added to the loss, what it sows as `"metrics"` is logged, under the sown name.

    Your object is never changed until you ask for it: `update` brings it up to date, `to_module` makes a new one.

    Args:
        module: the NNX module; its values are where training starts.
        variables: an `nnx.State` or a dict of arrays to start from instead. A group (parameters, batch
            statistics, others) that is left out keeps the module's values. They are kept, for a later init.

    Attributes:
        variables: what is neither parameter, batch statistic nor random state, a nested dict.

    Raises:
        TypeError: when `module` is no NNX module.
        ValueError: at init, when `variables` do not fit the module; the message lists the paths.

    Example:
        >>> from flax import nnx
        >>> model = nnx.Linear(3, 2, rngs=nnx.Rngs(0))
        >>> state = NNXModule(model).init(jax.random.key(0), jnp.ones((4, 3)))
        >>> outputs, state = state.apply(jax.random.key(1), jnp.ones((4, 3)), True)
        >>> bool(jnp.array_equal(outputs, model(jnp.ones((4, 3)))))
        True
        >>> state.update(model)
    """

    variables: PyTree = field(default=None, kw_only=True)
    _source: Static[Any] = static_field(repr=False)
    _train: Static[Any] = static_field(repr=False)
    _eval: Static[Any] = static_field(repr=False)
    _streams: Static[Any] = static_field(repr=False)
    _given: Static[Any] = static_field(repr=False)

    def __init__(self, module: Any, *, variables: Any = None):
        if not isinstance(module, nnx.Module):
            raise TypeError(f"NNXModule needs a flax.nnx.Module, not {module!r:.200}.")
        copy = nnx.clone(module)
        nnx.pop(copy, nnx.Intermediate)
        copy.train()
        self._train = Static(nnx.graphdef(copy))
        copy.eval()
        self._eval = Static(nnx.graphdef(copy))
        self._streams = Static(layers.structs(nnx.to_pure_dict(nnx.state(copy, nnx.RngState))))
        self._source = Static(module)
        self._given = Static(None if variables is None else nnx.as_pure(variables))

    @property
    def module(self) -> Any:
        """Your own object, as `update` or you left it."""
        return self._source.value

    def init(self, key: jax.Array, inputs: PyTree) -> Self:
        """Takes the values of your object, or the given ones; nothing is random."""
        own = _values(self._source.value)
        own = match_variables(own, self._grouped(own), type(self._source.value).__name__)
        return self._with(own)

    def apply(self, key: jax.Array, inputs: PyTree, training: bool) -> tuple[PyTree, Self]:
        """Calls a copy of the module in the mode of the step."""
        module = self._merge(key, training)
        losses, metrics = (nnx.variable_type_from_name(name, allow_register=True) for name in ("losses", "metrics"))
        call = nnx.capture(functools.partial(_call, key=key, training=training), losses, metrics)
        outputs, sown_losses, sown_metrics = call(module, inputs)
        state = self
        for name, values in _sown(sown_losses):
            state = state.add_loss(name, sum(jnp.sum(value) for value in values))
        for name, values in _sown(sown_metrics):
            state = state.log(name, sum(jnp.mean(value) for value in values) / len(values))
        return outputs, state._with(_values(module, losses, metrics))

    def to_module(self) -> Any:
        """A new NNX module with the values of this state; your own object stays as it is."""
        copy = nnx.clone(self._source.value)
        self.update(copy)
        return copy

    def update(self, module: Any) -> None:
        """Writes the values of this state into an NNX module of the same structure, usually your own.

        Args:
            module: the module to change in place.

        Raises:
            ValueError: before the first state is made.
        """
        if self.params is None:
            raise ValueError("there are no values yet: the first state is made by `fit` or `init_on_batch`.")
        for name in _GROUPS:
            nnx.update(module, nnx.State(getattr(self, name) or {}))

    def summary_rows(self, inputs: PyTree) -> list[layers.Row]:
        """One row for each submodule that is called."""
        state, calls = layers.initialised(self, inputs), layers.Calls()
        outputs = layers.run_apply(state, inputs)

        def run(state: Any, key: jax.Array, inputs: PyTree) -> None:
            module = state._merge(key, False)
            for path, layer in list(nnx.iter_modules(module)):
                _record(layer, path, calls)
            nnx.capture(functools.partial(_call, key=key, training=False), nnx.Intermediate)(module, inputs)

        eval_shape(run, state, jax.random.key(0), layers.structs(inputs))
        root = (type(self._source.value).__name__, outputs)
        return calls.rows(root, state.params, state.batch_stats, state.variables)

    def _with(self, groups: dict[str, PyTree]) -> Self:
        return self.replace(
            params=groups["params"], batch_stats=groups["batch_stats"] or None, variables=groups["variables"] or None
        )

    def _merge(self, key: jax.Array, training: bool) -> Any:
        """A module with the state's values, whose random streams are seeded from `key`."""
        leaves, treedef = jax.tree.flatten(self._streams.value)
        streams = jax.tree.unflatten(treedef, [_seed(key, i, leaf) for i, leaf in enumerate(leaves)])
        states = [nnx.State(tree) for tree in (self.params, self.batch_stats, self.variables, streams) if tree]
        graph = self._train if training else self._eval
        return nnx.merge(graph.value, *states, copy=True)

    def _grouped(self, own: dict[str, PyTree]) -> dict[str, PyTree]:
        """The given values, divided like the module's own; unknown ones are left to be reported."""
        if self._given.value is None:
            return {}
        homes = {path: name for name, tree in own.items() for path in paths(tree)}
        homes |= dict.fromkeys(paths(self._streams.value), "")
        grouped: dict[str, dict[str, Any]] = {}
        for path, leaf in paths(self._given.value).items():
            grouped.setdefault(homes.get(path, "params"), {})[path] = leaf
        grouped.pop("", None)
        return {name: nest(leaves) for name, leaves in grouped.items()}


def _call(module: Any, inputs: PyTree, *, key: jax.Array, training: bool) -> PyTree:
    extra = {"rngs": nnx.Rngs(key)}
    args, kwargs = call_arguments(module.__call__, inputs, training, extra=extra)
    return module(*args, **kwargs)


def _values(module: Any, *drop: type) -> dict[str, PyTree]:
    """The variables of a module as nested dicts of arrays; random state and what is in `drop` is left out."""
    kept = nnx.Not(nnx.Any(nnx.RngState, nnx.Intermediate, *drop))
    states = nnx.state(module, nnx.Param, nnx.BatchStat, kept, ...)[:3]
    return {name: nnx.to_pure_dict(state) for name, state in zip(_GROUPS, states, strict=True)}


def _seed(key: jax.Array, index: int, stream: jax.ShapeDtypeStruct) -> jax.Array:
    if not jax.dtypes.issubdtype(stream.dtype, jax.dtypes.prng_key):
        return jnp.zeros(stream.shape, stream.dtype)
    key = jax.random.fold_in(key, index)
    return jax.random.split(key, stream.shape) if stream.shape else key


def _sown(state: Any) -> list[tuple[str, list[jax.Array]]]:
    """The name and the values of each sown variable."""
    found = jax.tree_util.tree_leaves_with_path(nnx.to_pure_dict(state), is_leaf=lambda value: isinstance(value, tuple))
    return [(str(path[-1].key), jax.tree.leaves(value)) for path, value in found if jax.tree.leaves(value)]


def _record(layer: Any, path: tuple[Any, ...], calls: layers.Calls) -> None:
    """Makes one object of a traced copy tell `calls` when it is called."""
    cls = type(layer)
    if not callable(layer):
        return

    def call(self: Any, *args: Any, **kwargs: Any) -> Any:
        where = calls.enter(path, cls)
        outputs = cls.__call__(self, *args, **kwargs)
        calls.leave(where, outputs)
        return outputs

    object.__setattr__(
        layer, "__class__", types.new_class(cls.__name__, (cls,), exec_body=lambda body: body.update(__call__=call))
    )
