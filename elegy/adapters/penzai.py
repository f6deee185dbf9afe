"""An adapter for Penzai models."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

import jax
import jax.numpy as jnp

from elegy.adapters.origin import Origin, Weak
from elegy.adapters.variables import join_floats, match_variables, split_floats
from elegy.lazy import require
from elegy.module import ElegyModule
from elegy.pytree import Static, field, static_field
from elegy.types import PyTree

if TYPE_CHECKING:
    from penzai.pz.nn import Layer

pz = require("penzai.pz", "elegy.adapters.PenzaiModule")


class PenzaiModule(ElegyModule):
    """Runs a Penzai model (`pz.nn.Layer`).

    The values of `pz.Parameter`s are in the field `params`, by label; the floats of `pz.StateVariable`s in
    `batch_stats`, all other arrays of the model in `arrays`. A layer gets the side inputs `random_stream`, seeded from
    each step's key, and `training`, a bool; dropout (`StochasticDropout`) is disabled outside of training.

    The trainer does not change your model: `to_module` returns one with the trained values.

    Args:
        module: the model, with the initial values.
        variables: other initial values of the parameters, a dict by label.

    Attributes:
        arrays: arrays that are not variables, and integers of state variables.

    Raises:
        TypeError: if `module` is not a `pz.nn.Layer`.
        ValueError: at init, if `variables` do not fit the model; the message lists the labels.

    Example:
        >>> from penzai import pz
        >>> linear = pz.nn.Linear.from_config(
        ...     "layer", jax.random.key(0), input_axes={"in": 3}, output_axes={"out": 2}
        ... )
        >>> state = PenzaiModule(linear).init(jax.random.key(0), pz.nx.ones({"batch": 4, "in": 3}))
        >>> list(state.params), state.apply(jax.random.key(1), pz.nx.ones({"batch": 4, "in": 3}), False)[0].named_shape
        (['layer.weights'], {'batch': 4, 'out': 2})
    """

    arrays: PyTree = field(default=None, kw_only=True)
    _parts: Static[Any] = static_field(repr=False)
    _source: Static[Weak] = static_field(repr=False)
    _origin: Static[Origin] = static_field(repr=False)

    def __init__(self, module: Layer, *, variables: PyTree = None):
        if not isinstance(module, pz.nn.Layer):
            raise TypeError(f"PenzaiModule needs a penzai.pz.nn.Layer, not {module!r:.200}.")
        slots, values = pz.unbind_variables(module, freeze=True)
        held = {value.label: value.value for value in values}
        self._parts = Static((type(module).__name__, jax.tree.structure(slots), [_Kind(value) for value in values]))
        self._source = Static(Weak(module))
        self._initial = {"own": (held, jax.tree.leaves(slots)), "given": variables}
        self._origin = Static(Origin(self._initial["given"]))

    def init(self, key: jax.Array, inputs: PyTree) -> Self:
        """Starts from the values of the model or of `variables`."""
        who, _, kinds = self._parts.value
        module = self._source.value()
        if module is not None:
            slots, values = pz.unbind_variables(module, freeze=True)
            held, constants = {value.label: value.value for value in values}, jax.tree.leaves(slots)
        elif self._initial is not None:
            held, constants = self._initial["own"]
        else:
            raise Origin.gone(who)
        given = self._origin.value.recall(who) if self._initial is None else self._initial["given"]
        params = {str(kind.label): held[kind.label] for kind in kinds if kind.trains}
        state = {str(kind.label): held[kind.label] for kind in kinds if not kind.trains}
        own = match_variables({"params": params}, {} if given is None else {"params": given}, who)
        floats, rest = split_floats(jax.tree.map(jnp.asarray, state))
        arrays = {"state": rest, "constants": [jnp.asarray(leaf) for leaf in constants]}
        return self.replace(
            params=own["params"],
            batch_stats=floats,
            arrays=arrays if jax.tree.leaves(arrays) else None,
            _initial=None,
        )

    def apply(self, key: jax.Array, inputs: PyTree, training: bool) -> tuple[PyTree, Self]:
        """Calls the model with the values of this state."""
        model, variables = self._bound()
        if not training:
            model = pz.select(model).at_instances_of(pz.nn.StochasticDropout).apply(lambda layer: layer.disable())
        stream = pz.RandomStream.from_base_key(key, offset_label="elegy/random_stream")
        outputs = model(inputs, random_stream=stream, training=training)
        state = {str(v.label): v.value for v in variables if not isinstance(v, pz.Parameter)}
        floats, rest = split_floats(jax.tree.map(jnp.asarray, state))
        arrays = None if self.arrays is None else {**self.arrays, "state": rest}
        return outputs, self.replace(batch_stats=floats, arrays=arrays)

    def to_module(self) -> Any:
        """Returns a model with the values of this state.

        Raises:
            ValueError: before the first state is made.
        """
        if self.params is None:
            raise ValueError("there are no values yet: the first state is made by `fit` or `init_on_batch`.")
        return self._bound()[0]

    def _bound(self) -> tuple[Any, list[Any]]:
        _, treedef, kinds = self._parts.value
        arrays = self.arrays or {"state": None, "constants": []}
        state = join_floats(self.batch_stats, arrays["state"], empty={})
        variables = [kind.variable(self.params if kind.trains else state) for kind in kinds]
        return pz.bind_variables(jax.tree.unflatten(treedef, arrays["constants"]), variables), variables


class _Kind:
    """A variable of a model without its value."""

    def __init__(self, value: Any):
        self.label, self.metadata = value.label, value.metadata
        self.trains = isinstance(value, pz.ParameterValue)

    def variable(self, values: dict[str, Any]) -> Any:
        cls = pz.Parameter if self.trains else pz.StateVariable
        return cls(value=values[str(self.label)], label=self.label, metadata=self.metadata)
