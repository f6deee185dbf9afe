"""An adapter for Flax NNX modules."""

from __future__ import annotations

import functools
import types
from typing import TYPE_CHECKING, Any, Self

import jax
import jax.numpy as jnp

from elegy.adapters.arguments import call_arguments
from elegy.adapters.nnx_graphs import GROUPS, Graphs, by_keys, nested, reported, values_of, where
from elegy.adapters.origin import Origin, Weak
from elegy.adapters.variables import match_variables, nest, paths
from elegy.flat import eval_shape
from elegy.lazy import require
from elegy.module import ElegyModule, layers
from elegy.pytree import Static, field, static_field
from elegy.types import PyTree

if TYPE_CHECKING:
    from flax.nnx import Module

nnx = require("flax.nnx", "elegy.adapters.NNXModule")


class NNXModule(ElegyModule):
    """Runs a Flax NNX module.

    The object is split once; the state has dicts of arrays, no Variables. `nnx.Param` is in the field `params`,
    `nnx.BatchStat` in `batch_stats`, every other Variable in `variables`. Init traces one call in training mode to find
    Variables that the call makes itself; they start with the values of that call. The random streams are seeded from
    each step's key. Training steps run the module after `train()`, other steps after `eval()`. Values sown as
    `"losses"` are added to the loss, values sown as `"metrics"` are logged, under the sown name.

    The trainer does not change your object: `update` writes the trained values to it, `to_module` makes a new one. The
    first state starts from the values that your object has then, or its last ones if it no longer exists.

    Args:
        module: the NNX module, with the initial values.
        variables: an `nnx.State` or a dict of arrays with other initial values. A missing group (parameters, batch
            statistics, others) keeps the module's values. The first state takes them over. A later init needs them
            again, so keep a reference to them.

    Attributes:
        variables: a nested dict of the Variables that are not parameters, batch statistics or random state.

    Raises:
        TypeError: if `module` is not an NNX module.
        ValueError: at init, if `variables` do not fit the module; the message lists the paths.

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
    _source: Static[Weak] = static_field(repr=False)
    _graphs: Static[Graphs] = static_field(repr=False)
    _origin: Static[Origin] = static_field(repr=False)

    def __init__(self, module: Module, *, variables: PyTree = None):
        if not isinstance(module, nnx.Module):
            raise TypeError(f"NNXModule needs a flax.nnx.Module, not {module!r:.200}.")
        self._graphs = Static(Graphs.of(nnx.clone(module)))
        self._source = Static(Weak(module))
        self._initial = {"own": values_of(module), "given": None if variables is None else nnx.as_pure(variables)}
        self._origin = Static(Origin(self._initial["given"]))

    @property
    def module(self) -> Any:
        """Your own object, unchanged since the last `update`; the result of `to_module` if it no longer exists."""
        module = self._source.value()
        return self.to_module() if module is None else module

    def init(self, key: jax.Array, inputs: PyTree) -> Self:
        """Starts from the values of your object or of `variables`, and adds Variables that the call makes.

        Without inputs, `None`, no call is traced.
        """
        graphs = self._graphs.value.before_first_call
        own, given = self._start(graphs)
        own = match_variables(own, self._grouped(own, given), graphs.name)
        state = self.replace(_graphs=Static(graphs), _initial=None)
        state = state._with(own)
        # An overridden `apply` may call the module with other arguments, so no call is traced then.
        calls = inputs is not None and type(self).apply is NNXModule.apply
        return state._with_first_call(key, inputs) if calls else state

    def _start(self, graphs: Graphs) -> tuple[dict[str, PyTree], PyTree]:
        """Returns the values of the module and of `variables`, without Variables that later calls have made."""
        module = self._source.value()
        if module is not None:
            own = values_of(module)
        elif self._initial is not None:
            own = self._initial["own"]
        elif graphs.paths:
            raise Origin.gone(graphs.name)
        else:  # the first call makes all Variables
            own = {name: {} for name in GROUPS}
        own = {name: where(tree, graphs.paths.__contains__) for name, tree in own.items()}
        return own, self._origin.value.recall(graphs.name) if self._initial is None else self._initial["given"]

    def apply(self, key: jax.Array, inputs: PyTree, training: bool) -> tuple[PyTree, Self]:
        """Calls a copy of the module in the mode of the step."""
        module = self._merge(key, training)
        outputs, sown_losses, sown_metrics = _captured(module, key, inputs, training)
        state = self
        for name, values in _sown(sown_losses):
            state = state.add_loss(name, sum(jnp.sum(value) for value in values))
        for name, values in _sown(sown_metrics):
            state = state.log(name, sum(jnp.mean(value) for value in values) / len(values))
        return outputs, state._with(values_of(module))

    def to_module(self) -> Any:
        """Returns a new NNX module with the values of this state, and random streams seeded from the state's key."""
        self._check_values()
        return self._merge(jax.random.key(0) if self.key is None else self.key, None)

    def update(self, module: Module) -> None:
        """Writes the values of this state into an NNX module of the same structure, usually your own.

        Args:
            module: the module to change in place.

        Raises:
            ValueError: before the first state is made.
        """
        self._check_values()
        for name in GROUPS:
            nnx.update(module, nnx.State(getattr(self, name) or {}))

    def summary_rows(self, inputs: PyTree) -> list[layers.Row]:
        """Returns one row for each submodule that is called."""
        state, calls = layers.initialised(self, inputs), layers.Calls()
        outputs = layers.run_apply(state, inputs)

        def run(state: Any, key: jax.Array, inputs: PyTree) -> None:
            module = state._merge(key, False)
            for path, layer in list(nnx.iter_modules(module)):
                _record(layer, path, calls)
            nnx.capture(functools.partial(_call, key=key, training=False), nnx.Intermediate)(module, inputs)

        eval_shape(run, state, jax.random.key(0), layers.structs(inputs))
        root = (self._graphs.value.name, outputs)
        return calls.rows(root, state.params, state.batch_stats, state.variables)

    def _with(self, groups: dict[str, PyTree]) -> Self:
        return self.replace(
            params=groups["params"], batch_stats=groups["batch_stats"] or None, variables=groups["variables"] or None
        )

    def _with_first_call(self, key: jax.Array, inputs: PyTree) -> Self:
        """Adds the Variables that a call of the module makes. If there are none, the call is only traced."""
        graphs, own = self._graphs.value, {name: getattr(self, name) or {} for name in GROUPS}

        def call(key: jax.Array, inputs: PyTree) -> dict[str, PyTree]:
            module = self._merge(key, True)
            _captured(module, key, inputs, True)
            values = values_of(module).items()
            new = {name: where(tree, lambda path: path not in graphs.paths) for name, tree in values}
            if any(new.values()):
                graphs.grow(module)
            return new

        if not any(eval_shape(call, key, inputs).values()):
            return self
        new = call(key, inputs)
        grown = {name: nested({**by_keys(own[name]), **by_keys(new[name])}) for name in GROUPS}
        return self._with(grown).replace(_graphs=Static(graphs.grown))

    def _check_values(self) -> None:
        if self.params is None:
            raise ValueError("there are no values yet: the first state is made by `fit` or `init_on_batch`.")

    def _merge(self, key: jax.Array, training: bool | None) -> Any:
        """Returns a module with the state's values and streams seeded from `key`; `None` keeps the mode as given."""
        graphs = self._graphs.value
        leaves, treedef = jax.tree.flatten(graphs.streams)
        streams = jax.tree.unflatten(treedef, [_seed(key, i, leaf) for i, leaf in enumerate(leaves)])
        states = [nnx.State(tree) for tree in (self.params, self.batch_stats, self.variables, streams) if tree]
        return nnx.merge(graphs.modes[training], *states, copy=True)

    def _grouped(self, own: dict[str, PyTree], given: PyTree) -> dict[str, PyTree]:
        """Groups given values as the module's own are; unknown ones are kept, to be reported."""
        if given is None:
            return {}
        homes = {path: name for name, tree in own.items() for path in paths(tree)}
        homes |= dict.fromkeys(paths(self._graphs.value.streams), "")
        grouped: dict[str, dict[str, Any]] = {}
        for path, leaf in paths(given).items():
            grouped.setdefault(homes.get(path, "params"), {})[path] = leaf
        grouped.pop("", None)
        return {name: nest(leaves) for name, leaves in grouped.items()}


def _captured(module: Any, key: jax.Array, inputs: PyTree, training: bool) -> tuple[PyTree, Any, Any]:
    """Calls a module and returns `(outputs, losses, metrics)`, the latter two as they were sown."""
    return nnx.capture(functools.partial(_call, key=key, training=training), *reported())(module, inputs)


def _call(module: Any, inputs: PyTree, *, key: jax.Array, training: bool) -> PyTree:
    extra = {"rngs": nnx.Rngs(key)}
    args, kwargs = call_arguments(module.__call__, inputs, training, extra=extra)
    return module(*args, **kwargs)


def _seed(key: jax.Array, index: int, stream: jax.ShapeDtypeStruct) -> jax.Array:
    if not jnp.issubdtype(stream.dtype, jax.dtypes.prng_key):
        return jnp.zeros(stream.shape, stream.dtype)
    key = jax.random.fold_in(key, index)
    return jax.random.split(key, stream.shape) if stream.shape else key


def _sown(state: Any) -> list[tuple[str, list[jax.Array]]]:
    """Returns the name and the values of each sown variable."""
    found = jax.tree_util.tree_leaves_with_path(nnx.to_pure_dict(state), is_leaf=lambda value: isinstance(value, tuple))
    return [(str(path[-1].key), jax.tree.leaves(value)) for path, value in found if jax.tree.leaves(value)]


def _record(layer: Any, path: tuple[Any, ...], calls: layers.Calls) -> None:
    """Makes one object of a traced copy record its calls in `calls`."""
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
