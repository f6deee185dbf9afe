"""An adapter for Flax linen modules."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Self

import jax
import jax.numpy as jnp

from elegy.adapters.arguments import FLAGS, call_arguments, takes
from elegy.adapters.origin import Origin
from elegy.adapters.variables import match_variables
from elegy.lazy import require
from elegy.module import ElegyModule, layers
from elegy.pytree import Static, field, static_field
from elegy.types import PyTree

if TYPE_CHECKING:
    from flax.linen import Module

flax = require("flax", "elegy.adapters.LinenModule")
nn = require("flax.linen", "elegy.adapters.LinenModule")

_REPORTS = ("losses", "metrics")
_NOT_KEPT = (*_REPORTS, "intermediates", "perturbations")


class LinenModule(ElegyModule):
    """Runs a Flax linen module.

    The `params` collection is the field `params`, `batch_stats` is the field `batch_stats`, and every other mutable
    collection (a cache, spectral norms) is in the field `collections`. Values sown into `losses` are added to the loss
    under the sown variable's name; values sown into `metrics` are logged. Other sown collections are dropped. The call
    gets the mode as `training`, `train` or `deterministic` if it has such a parameter; inputs that are a dict or a
    tuple become several arguments. One key seeds all random streams.

    Args:
        module: the linen module.
        variables: initial variables, `{"params": ..., "batch_stats": ...}`; a missing collection is initialised. The
            first state takes them over. A later init needs them again, so keep a reference to them.

    Attributes:
        collections: collection name -> variables, for all but `params` and `batch_stats`.

    Raises:
        TypeError: if `module` is not a linen module, or `variables` is not a dict of collections.
        ValueError: at init, if `variables` do not fit the module; the message lists the paths.

    Example:
        >>> import flax.linen as nn
        >>> state = LinenModule(nn.Dense(2)).init(jax.random.key(0), jnp.ones((4, 3)))
        >>> jax.tree.map(jnp.shape, state.params)
        {'bias': (2,), 'kernel': (3, 2)}
        >>> outputs, state = state.apply(jax.random.key(1), jnp.ones((4, 3)), False)
        >>> outputs.shape
        (4, 2)
    """

    collections: dict[str, PyTree] | None = field(default=None, kw_only=True)
    _module: Static[Any] = static_field(repr=False)
    _origin: Static[Origin] = static_field(repr=False)

    def __init__(self, module: Module, *, variables: Mapping[str, PyTree] | None = None):
        if not isinstance(module, nn.Module):
            raise TypeError(f"LinenModule needs a flax.linen.Module, not {module!r:.200}.")
        if variables is not None and not isinstance(variables, Mapping):
            raise TypeError(
                "the variables of a linen module are a dict of collections, as `module.init` returns them, "
                f'`{{"params": ...}}`, not a {type(variables).__name__}.'
            )
        self._module = Static(module)
        self._initial = dict(flax.core.unfreeze(variables or {}))
        self._origin = Static(Origin(self._initial))

    @property
    def module(self) -> Any:
        """The linen module."""
        return self._module.value

    @property
    def variables(self) -> dict[str, PyTree]:
        """The variables for the linen module: `trainer.state.module.apply(trainer.state.variables, x)`."""
        out = {"params": self.params} if self.params is not None else {}
        if self.batch_stats is not None:
            out["batch_stats"] = self.batch_stats
        return {**out, **(self.collections or {})}

    def init(self, key: jax.Array, inputs: PyTree) -> Self:
        """Makes all collections with the module's `init`; values of `variables` replace them."""
        args, kwargs = self._arguments(inputs, True)
        own = dict(flax.core.unfreeze(self.module.init(key, *args, **kwargs)))
        after = self._after_a_step(own, key, args, kwargs)
        # A step appends to sown collections: they grow, so they cannot be part of the state.
        reports = [name for name in own if name in _NOT_KEPT]
        structure: Callable[[PyTree], Any] = jax.tree.structure
        sown = reports + [name for name in after if structure(after[name]) != structure(own[name])]
        own = {"params": {}, **{name: tree for name, tree in own.items() if name not in sown}}
        # `variables` may be the result of `module.init`, which includes sown collections.
        who = type(self.module).__name__
        given = self._origin.value.recall(who) if self._initial is None else self._initial
        given = {name: tree for name, tree in given.items() if name not in (*_NOT_KEPT, *sown)}
        variables = match_variables(own, given, who)
        variables |= {name: jax.tree.map(_widened, variables[name], after[name]) for name in after if name in variables}
        return self.replace(
            params=variables.pop("params"),
            batch_stats=variables.pop("batch_stats", None),
            collections=variables or None,
            _initial=None,
        )

    def apply(self, key: jax.Array, inputs: PyTree, training: bool) -> tuple[PyTree, Self]:
        """Calls the module with all collections but `params` mutable."""
        args, kwargs = self._arguments(inputs, training)
        variables = self.variables
        mutable = [name for name in variables if name != "params"] + list(_REPORTS)
        outputs, after = self.module.apply(variables, *args, rngs={"params": key}, mutable=mutable, **kwargs)
        after = dict(flax.core.unfreeze(after))
        state = self
        for name, values in _reports(after.pop("losses", {})):
            state = state.add_loss(name, sum(jnp.sum(value) for value in values))
        for name, values in _reports(after.pop("metrics", {})):
            state = state.log(name, sum(jnp.mean(value) for value in values) / len(values))
        batch_stats = after.pop("batch_stats", None)
        return outputs, state.replace(batch_stats=batch_stats, collections=after or None)

    def summary_rows(self, inputs: PyTree) -> list[layers.Row]:
        """Returns one row for each submodule that is called."""
        state, calls = layers.initialised(self, inputs), layers.Calls()

        def record(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
            if context.method_name != "__call__":
                return call(*args, **kwargs)
            where = calls.enter(context.module.path, type(context.module))
            outputs = call(*args, **kwargs)
            calls.leave(where, outputs)
            return outputs

        with nn.intercept_methods(record):
            outputs = layers.run_apply(state, inputs)
        root = (type(self.module).__name__, outputs)
        return calls.rows(root, state.params, state.batch_stats, *(state.collections or {}).values())

    def _arguments(self, inputs: PyTree, training: bool) -> tuple[tuple[Any, ...], dict[str, Any]]:
        # Linen raises an error if a flag is set in both the constructor and the call. A flag that the call requires is
        # passed anyway: an attribute of the same name is another value then.
        call = self.module.__call__
        fixed = [name for name in FLAGS if getattr(self.module, name, None) is not None]
        hide = [name for name in fixed if not takes(call, name, required=True)]
        return call_arguments(call, inputs, training, hide=hide)

    def _after_a_step(self, own: dict[str, PyTree], key: jax.Array, args: Any, kwargs: Any) -> dict[str, PyTree]:
        """Returns the dtypes of the collections, except parameters and reports, after a training step."""
        others = [name for name in own if name != "params" and name not in _NOT_KEPT]
        after: dict[str, PyTree] = {}

        def step(variables: PyTree) -> None:
            updates = self.module.apply(variables, *args, rngs={"params": key}, mutable=others, **kwargs)[1]
            # Anything may be sown: what has no dtype is an object.
            after.update(jax.tree.map(lambda leaf: getattr(leaf, "dtype", object), dict(flax.core.unfreeze(updates))))

        if others:
            jax.eval_shape(step, {name: tree for name, tree in own.items() if name not in _NOT_KEPT})
        return {name: after.get(name) for name in others}


def _widened(value: jax.Array, after: Any) -> jax.Array:
    """Returns a first value in the dtype that it has after a step, if both are floats.

    `nn.BatchNorm` makes its statistics as float32, and adds those of a batch, which may be float64.
    """
    floats = jnp.issubdtype(value.dtype, jnp.inexact) and jnp.issubdtype(after, jnp.inexact)
    return value.astype(jnp.promote_types(value.dtype, after)) if floats else value


def _reports(collection: Mapping[str, PyTree]) -> list[tuple[str, list[jax.Array]]]:
    """Returns the name and the values of each sown variable."""
    found = jax.tree_util.tree_leaves_with_path(collection, is_leaf=lambda value: isinstance(value, tuple))
    return [(str(path[-1].key), jax.tree.leaves(value)) for path, value in found if jax.tree.leaves(value)]
