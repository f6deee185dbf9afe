"""An adapter for a pair of functions, `init` and `apply`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Self

import jax
import jax.numpy as jnp

from elegy.adapters.arguments import call_arguments, takes, takes_inputs
from elegy.adapters.origin import Origin
from elegy.adapters.variables import join_floats, match_variables, split_floats
from elegy.module import ElegyModule
from elegy.pytree import Static, field, static_field
from elegy.types import PyTree


class FunctionalModule(ElegyModule):
    """Runs a pair of pure functions.

    `init(key, inputs)` (or `init(key)`) returns the parameters, and `apply(params, inputs)` the outputs. `apply` gets
    `key` and `training` if it has parameters of these names, and inputs that are a dict or a tuple become several
    arguments. If `apply` has a parameter `state`, then `init` returns `(params, state)`, and `apply` returns
    `(outputs, state)`.

    Args:
        init: makes the parameters.
        apply: computes the outputs.
        variables: initial parameters, or `(params, state)`, as `init` returns them. The first state takes them over. A
            later init needs them again, so keep a reference to them.

    Attributes:
        counters: the leaves of the state that are not floats; they are not averaged over replicas. Floats are in
            `batch_stats`.

    Raises:
        TypeError: if one of the two cannot be called, or does not return a pair although there is state.
        ValueError: at init, if `variables` do not fit the result of `init`.

    Example:
        >>> def init(key, x):
        ...     return {"w": jnp.zeros((x.shape[-1],))}
        >>> def apply(params, x):
        ...     return x @ params["w"]
        >>> state = FunctionalModule(init, apply).init(jax.random.key(0), jnp.ones((4, 3)))
        >>> state.apply(jax.random.key(1), jnp.ones((4, 3)), False)[0]
        Array([0., 0., 0., 0.], dtype=float32)
    """

    counters: PyTree = field(default=None, kw_only=True)
    _init: Static[Callable] = static_field(repr=False)
    _apply: Static[Callable] = static_field(repr=False)
    _origin: Static[Origin] = static_field(repr=False)

    def __init__(self, init: Callable[..., PyTree], apply: Callable[..., PyTree], *, variables: PyTree = None):
        for name, function in (("init", init), ("apply", apply)):
            if not callable(function):
                raise TypeError(f"FunctionalModule needs two functions, but {name} is {function!r:.200}.")
        self._init, self._apply = Static(init), Static(apply)
        self._initial = variables
        self._origin = Static(Origin(variables))

    @property
    def variables(self) -> PyTree:
        """The parameters, or `(params, state)`, as `init` returns them."""
        return (self.params, join_floats(self.batch_stats, self.counters)) if self._stateful else self.params

    @property
    def _stateful(self) -> bool:
        return takes(self._apply.value, "state")

    def init(self, key: jax.Array, inputs: PyTree) -> Self:
        """Calls `init`; values of `variables` replace its results."""
        function = self._init.value
        args, kwargs = call_arguments(function, inputs, True, skip=1) if takes_inputs(function, 1) else ((), {})
        made = function(key, *args, **kwargs)
        who = "the module (init, apply)"
        own = self._parts(made, f"{who}: `apply` names a parameter `state`, so `init` must return (params, state)")
        given = self._origin.value.recall(who) if self._initial is None else self._initial
        if given is not None:
            given = self._parts(given, f"the variables of {who} must be (params, state)")
        own = match_variables(own, given or {}, who)
        batch_stats, counters = split_floats(own.get("state"))
        return self.replace(params=own["params"], batch_stats=batch_stats, counters=counters, _initial=None)

    def apply(self, key: jax.Array, inputs: PyTree, training: bool) -> tuple[PyTree, Self]:
        """Calls `apply`."""
        extra: dict[str, Any] = {"key": key}
        if self._stateful:
            extra["state"] = join_floats(self.batch_stats, self.counters)
        args, kwargs = call_arguments(self._apply.value, inputs, training, skip=1, extra=extra)
        outputs = self._apply.value(self.params, *args, **kwargs)
        if not self._stateful:
            return outputs, self
        if not isinstance(outputs, tuple) or len(outputs) != 2:
            raise TypeError(
                "`apply` names a parameter `state`, so it must return (outputs, state), but it returned a "
                f"{type(outputs).__name__}."
            )
        batch_stats, counters = split_floats(outputs[1])
        return outputs[0], self.replace(batch_stats=batch_stats, counters=counters)

    def _parts(self, value: PyTree, rule: str) -> dict[str, PyTree]:
        if not self._stateful:
            return {"params": jax.tree.map(jnp.asarray, value)}
        if not isinstance(value, tuple) or len(value) != 2:
            raise TypeError(f"{rule}, not a {type(value).__name__}.")
        return dict(zip(("params", "state"), jax.tree.map(jnp.asarray, value), strict=True))
