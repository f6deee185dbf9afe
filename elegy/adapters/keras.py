"""An adapter for Keras 3 models on JAX."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

import jax
import jax.numpy as jnp

from elegy.adapters.arguments import call_arguments, takes
from elegy.adapters.variables import match_variables, nest, paths
from elegy.flat import make_jaxpr
from elegy.lazy import require
from elegy.module import ElegyModule, layers
from elegy.names import unique_names
from elegy.pytree import Static, field, static_field
from elegy.types import PyTree

if TYPE_CHECKING:
    from keras import Layer

keras = require("keras", "elegy.adapters.KerasModule")

_SEED = "seed_generator_state"


class KerasModule(ElegyModule):
    """Runs a Keras 3 model or layer on the JAX backend, by its `stateless_call`.

    Trainable variables are in the field `params`; floats that a training call changes, such as moving averages, in
    `batch_stats`; others, such as the weights of layers with `trainable=False`, in `variables`: nested dicts by the
    paths of Keras without the name of the model. The random seeds of layers come from each step's key. The losses of
    regularizers and `add_loss` are added to the loss, as `regularization`.

    A model that is not built yet is built for the inputs of the first call. Training starts from the values that your
    model has then, and does not change it: `update` writes the trained values to it.

    Args:
        module: a `keras.Model` or `keras.Layer`.
        variables: initial values of the parameters, nested dicts by path as in `params`.

    Attributes:
        variables: nested dict of the other variables.

    Raises:
        TypeError: if `module` is not a Keras layer.
        ValueError: if Keras does not run on JAX; at init, if `variables` do not fit.
    """

    variables: PyTree = field(default=None, kw_only=True)
    _module: Static[Any] = static_field(repr=False)
    _given: Static[Any] = static_field(repr=False)

    def __init__(self, module: Layer, *, variables: Any = None):
        if not isinstance(module, keras.Layer):
            raise TypeError(f"KerasModule needs a keras.Model or keras.Layer, not {module!r:.200}.")
        if keras.backend.backend() != "jax":
            raise ValueError(
                f"Keras runs on {keras.backend.backend()}. Set the environment variable KERAS_BACKEND=jax before the "
                "first import of keras."
            )
        self._module, self._given = Static(module), Static(variables)

    @property
    def module(self) -> Any:
        """Your model, which keeps its own values until `update`."""
        return self._module.value

    def init(self, key: jax.Array, inputs: PyTree) -> Self:
        """Starts from the values of the model, which is built if it is not."""
        model, like = self.module, layers.structs(inputs)
        if not model.built:
            with jax.ensure_compile_time_eval():  # Keras makes variables with values, also while JAX traces this method
                zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), like)
                args, kwargs = self._arguments(zeros, False)
                model(*args, **kwargs)
        train, rest = ([variable.value for variable in found] for found in self._variables())
        moved = self._moving(train, rest, like)
        groups: dict[str, dict[str, Any]] = {"params": {}, "batch_stats": {}, "variables": {}}
        groups["params"].update(zip(self._names()[0], train, strict=True))
        for name, value, moves in zip(self._names()[1], rest, moved, strict=True):
            if not name.endswith(_SEED):
                floating = jnp.issubdtype(value.dtype, jnp.inexact)
                groups["batch_stats" if moves and floating else "variables"][name] = value
        own, given = {name: nest(tree) for name, tree in groups.items()}, self._given.value
        own = match_variables(own, {} if given is None else {"params": given}, model.name)
        return self.replace(**{name: tree if tree or name == "params" else None for name, tree in own.items()})

    def apply(self, key: jax.Array, inputs: PyTree, training: bool) -> tuple[PyTree, Self]:
        """Calls the model with the values of this state."""
        held = paths((self.params, self.batch_stats, self.variables))
        held = {name.partition("/")[2]: leaf for name, leaf in held.items()}
        train, rest = self._names()
        seeds = {n: jax.random.bits(jax.random.fold_in(key, i), (2,)) for i, n in enumerate(rest) if n.endswith(_SEED)}
        values = ([held[name] for name in train], [(held | seeds)[name] for name in rest])
        args, kwargs = self._arguments(inputs, training)
        outputs, after, losses = self.module.stateless_call(*values, *args, return_losses=True, **kwargs)
        new = dict(zip(rest, after, strict=True))
        groups = {"batch_stats": self.batch_stats, "variables": self.variables}
        state = self.replace(
            **{k: tree and nest({name: new[name] for name in paths(tree)}) for k, tree in groups.items()}
        )
        return outputs, state.add_loss("regularization", sum(losses)) if losses else state

    def update(self) -> None:
        """Writes copies of the values of this state into your model.

        Raises:
            ValueError: before the first state is made.
        """
        if self.params is None:
            raise ValueError("there are no values yet: the first state is made by `fit` or `init_on_batch`.")
        values = paths((self.params, self.batch_stats, self.variables))
        values = {name.partition("/")[2]: leaf for name, leaf in values.items()}
        for names, found in zip(self._names(), self._variables(), strict=True):
            for name, variable in zip(names, found, strict=True):
                if name in values:  # Keras donates the arrays of its variables, so it gets its own
                    variable.assign(jnp.array(values[name], copy=True))

    def _variables(self) -> tuple[list[Any], list[Any]]:
        return self.module.trainable_variables, self.module.non_trainable_variables

    def _names(self) -> list[list[str]]:
        """Returns the paths of both kinds without the name of the model, which Keras numbers within a process."""
        prefix = f"{self.module.name}/"
        return [unique_names(v.path.removeprefix(prefix) for v in found) for found in self._variables()]

    def _moving(self, train: list[Any], rest: list[Any], inputs: PyTree) -> list[bool]:
        """Returns which of the other variables a training call changes; it is traced."""

        def call(train: list[Any], rest: list[Any], inputs: PyTree) -> list[Any]:
            args, kwargs = self._arguments(inputs, True)
            return self.module.stateless_call(train, rest, *args, **kwargs)[1]

        closed, _ = make_jaxpr(call, train, rest, inputs)
        before = closed.jaxpr.invars[len(train) : len(train) + len(rest)]
        return [a is not b for a, b in zip(before, closed.jaxpr.outvars, strict=True)]

    def _arguments(self, inputs: PyTree, training: bool) -> tuple[tuple[Any, ...], dict[str, Any]]:
        call = self.module.call
        if not call.__module__.startswith("keras."):
            return call_arguments(call, inputs, training)
        return (inputs,), {"training": training} if takes(call, "training") else {}
