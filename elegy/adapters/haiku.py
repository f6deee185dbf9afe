"""An adapter for Haiku's transformed functions."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Any, Self

import jax

from elegy.adapters.arguments import call_arguments
from elegy.adapters.origin import Origin
from elegy.adapters.variables import join_floats, match_variables, split_floats
from elegy.lazy import require
from elegy.module import ElegyModule, layers
from elegy.pytree import Static, field, static_field
from elegy.types import PyTree

if TYPE_CHECKING:
    from haiku import Transformed, TransformedWithState

hk = require("haiku", "elegy.adapters.HaikuModule")


class HaikuModule(ElegyModule):
    """Runs the result of `hk.transform` or `hk.transform_with_state`.

    The function gets the mode as `is_training` (or `training`, `train`, `deterministic`) if it has such a parameter;
    inputs that are a dict or a tuple become several arguments. Floats of Haiku's state, such as moving averages, are in
    the field `batch_stats`, other leaves in `counters`.

    Args:
        transformed: an `hk.Transformed` or `hk.TransformedWithState`.
        variables: initial parameters, or `(params, state)`; a missing state is initialised. The first state takes them
            over. A later init needs them again, so keep a reference to them.

    Attributes:
        counters: the leaves of Haiku's state that are not floats; they are not averaged over replicas.

    Raises:
        TypeError: if `transformed` is neither.
        ValueError: at init, if `variables` do not fit; the message lists the paths.

    Example:
        >>> import haiku as hk, jax.numpy as jnp
        >>> module = HaikuModule(hk.transform(lambda x: hk.Linear(2)(x)))
        >>> state = module.init(jax.random.key(0), jnp.ones((4, 3)))
        >>> jax.tree.map(jnp.shape, state.params)
        {'linear': {'b': (2,), 'w': (3, 2)}}
    """

    counters: PyTree = field(default=None, kw_only=True)
    _transformed: Static[Any] = static_field(repr=False)
    _origin: Static[Origin] = static_field(repr=False)

    def __init__(self, transformed: Transformed | TransformedWithState, *, variables: PyTree = None):
        if not isinstance(transformed, (hk.Transformed, hk.TransformedWithState)):
            raise TypeError(
                f"HaikuModule needs what `hk.transform` or `hk.transform_with_state` returns, not {transformed!r:.200}."
            )
        self._transformed = Static(transformed)
        parts = variables if isinstance(variables, tuple) else (variables,)
        names = ("params", "state")
        self._initial = {name: tree for name, tree in zip(names, parts, strict=False) if tree is not None}
        self._origin = Static(Origin(self._initial))

    @property
    def transformed(self) -> Transformed | TransformedWithState:
        """The transformed function."""
        return self._transformed.value

    @property
    def haiku_state(self) -> PyTree:
        """The state for Haiku's own `apply`."""
        return join_floats(self.batch_stats, self.counters, empty={})

    def init(self, key: jax.Array, inputs: PyTree) -> Self:
        """Makes parameters and state with the function's `init`; values of `variables` replace them."""
        args, kwargs = self._arguments(inputs, True)
        made = self.transformed.init(key, *args, **kwargs)
        params, state = made if self._stateful else (made, {})
        who = "the transformed function"
        given = self._origin.value.recall(who) if self._initial is None else self._initial
        own = match_variables({"params": params, "state": state}, given, who)
        batch_stats, counters = split_floats(own["state"])
        return self.replace(params=own["params"], batch_stats=batch_stats, counters=counters, _initial=None)

    def apply(self, key: jax.Array, inputs: PyTree, training: bool) -> tuple[PyTree, Self]:
        """Calls the function's `apply`."""
        args, kwargs = self._arguments(inputs, training)
        args = (key, *args) if self._takes_key else args
        if not self._stateful:
            return self.transformed.apply(self.params, *args, **kwargs), self
        outputs, state = self.transformed.apply(self.params, self.haiku_state, *args, **kwargs)
        batch_stats, counters = split_floats(state)
        return outputs, self.replace(batch_stats=batch_stats, counters=counters)

    def summary_rows(self, inputs: PyTree) -> list[layers.Row]:
        """Returns one row for each module that is called."""
        state, calls = layers.initialised(self, inputs), layers.Calls()

        def record(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
            if context.method_name != "__call__":
                return call(*args, **kwargs)
            where = calls.enter(layers.split_path(context.module.module_name), type(context.module))
            outputs = call(*args, **kwargs)
            calls.leave(where, outputs)
            return outputs

        with hk.intercept_methods(record):
            outputs = layers.run_apply(state, inputs)
        return calls.rows((type(self).__name__, outputs), state.params, state.haiku_state)

    @property
    def _stateful(self) -> bool:
        return isinstance(self.transformed, hk.TransformedWithState)

    def _arguments(self, inputs: PyTree, training: bool) -> tuple[tuple[Any, ...], dict[str, Any]]:
        # Haiku's `apply` takes params, state and rng, then the function's own parameters.
        return call_arguments(self.transformed.apply, inputs, training, skip=1 + self._stateful + self._takes_key)

    @property
    def _takes_key(self) -> bool:
        """True if `apply` takes a key. `hk.without_apply_rng` removes it."""
        init, apply = (list(inspect.signature(f).parameters.values()) for f in self.transformed)
        if "rng" in [p.name for p in apply[1:3]]:
            return True
        if any(p.kind == inspect.Parameter.VAR_POSITIONAL for p in apply[: 2 + self._stateful]):
            # Haiku's own functions name the key; a wrapper of the user's may pass it on.
            return not inspect.unwrap(self.transformed.apply).__module__.startswith("haiku.")
        # A wrapper of the user's may give the key another name; `init` takes one before the inputs.
        return len(apply) > len(init) + self._stateful
