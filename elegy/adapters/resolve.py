"""Converts the modules of a user to ElegyModules."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from elegy.lazy import is_instance_of
from elegy.module import ElegyModule

Recognise = Callable[[Any], bool]
Adapt = Callable[[Any, Any], ElegyModule]

_ACCEPTED = (
    "an elegy.ElegyModule",
    "a flax.linen.Module",
    "a flax.nnx.Module",
    "an equinox.Module, or the pair (module, state) of equinox.nn.make_with_state",
    "the result of haiku.transform or haiku.transform_with_state",
    "a penzai.pz.nn.Layer",
    "a keras.Model or keras.Layer (Keras 3 on JAX)",
    "a treex.Module",
    "an elegy.LoRA of one of these",
    "a pair of functions (init, apply): init(key, inputs) -> params, apply(params, inputs) -> outputs",
    "a module for which elegy.adapters.register_adapter registered an adapter",
)


def _linen(module: Any, variables: Any) -> ElegyModule:
    from elegy.adapters.linen import LinenModule

    return LinenModule(module, variables=variables)


def _nnx(module: Any, variables: Any) -> ElegyModule:
    from elegy.adapters.nnx import NNXModule

    return NNXModule(module, variables=variables)


def _equinox(module: Any, variables: Any) -> ElegyModule:
    from elegy.adapters.equinox import EquinoxModule

    return EquinoxModule(module, variables=variables)


def _haiku(module: Any, variables: Any) -> ElegyModule:
    from elegy.adapters.haiku import HaikuModule

    return HaikuModule(module, variables=variables)


def _treex(module: Any, variables: Any) -> ElegyModule:
    from elegy.adapters.treex import TreexModule

    return TreexModule(module, variables=variables)


def _penzai(module: Any, variables: Any) -> ElegyModule:
    from elegy.adapters.penzai import PenzaiModule

    return PenzaiModule(module, variables=variables)


def _keras(module: Any, variables: Any) -> ElegyModule:
    from elegy.adapters.keras import KerasModule

    return KerasModule(module, variables=variables)


def _functional(module: Any, variables: Any) -> ElegyModule:
    from elegy.adapters.functional import FunctionalModule

    return FunctionalModule(*module, variables=variables)


def _is_equinox(module: Any) -> bool:
    if is_instance_of(module, "equinox", "Module"):
        return True
    return (
        isinstance(module, tuple)
        and len(module) == 2
        and is_instance_of(module[0], "equinox", "Module")
        and is_instance_of(module[1], "equinox.nn", "State")
    )


def _is_pair(module: Any) -> bool:
    # An optax.GradientTransformation is a pair of functions too: (init, update).
    if not isinstance(module, tuple) or getattr(module, "_fields", ("init", "apply")) != ("init", "apply"):
        return False
    return len(module) == 2 and all(callable(part) and not isinstance(part, type) for part in module)


def _is_lora(module: Any) -> bool:
    return is_instance_of(module, "elegy.adapters.lora", "LoRA")


_ADAPTERS: list[tuple[Recognise, Adapt]] = [
    (_is_lora, lambda module, variables: module.adapt(variables)),
    (lambda module: is_instance_of(module, "flax.linen", "Module"), _linen),
    (lambda module: is_instance_of(module, "flax.nnx", "Module"), _nnx),
    (_is_equinox, _equinox),
    (lambda module: is_instance_of(module, "haiku", "Transformed", "TransformedWithState"), _haiku),
    (lambda module: is_instance_of(module, "treex", "Module"), _treex),
    (lambda module: is_instance_of(module, "penzai.pz.nn", "Layer"), _penzai),
    (lambda module: is_instance_of(module, "keras", "Layer"), _keras),
    (_is_pair, _functional),
]


def register_adapter(recognise: Recognise, adapt: Adapt) -> None:
    """Registers an adapter, so that `Trainer(module=...)` accepts another kind of module.

    The adapter that was registered last is tried first, so it may also replace a built-in one.

    Args:
        recognise: a function `(module) -> bool`. It should not import a library: see `elegy.lazy.is_instance_of`.
        adapt: a function `(module, variables) -> ElegyModule`; `variables` is the argument of the Trainer.

    Raises:
        TypeError: if one of them cannot be called.

    Example:
        >>> import jax.numpy as jnp
        >>> class Scale:
        ...     start = 2.0
        >>> class ScaleModule(ElegyModule):
        ...     def __init__(self, scale):
        ...         self.params = {"scale": jnp.asarray(scale.start)}
        ...     def apply(self, key, inputs, training):
        ...         return self.params["scale"] * inputs, self
        >>> def is_scale(module, cls=Scale):
        ...     return isinstance(module, cls)
        >>> register_adapter(is_scale, lambda module, variables: ScaleModule(module))
        >>> resolve(Scale()).params
        {'scale': Array(2., dtype=float32, weak_type=True)}
    """
    for name, function in (("recognise", recognise), ("adapt", adapt)):
        if not callable(function):
            raise TypeError(f"register_adapter: {name} must be a function, not {function!r}.")
    _ADAPTERS.insert(0, (recognise, adapt))


def resolve(module: Any, variables: Any = None) -> ElegyModule:
    """Converts a module of the user to an ElegyModule.

    Args:
        module: an ElegyModule, which is returned unchanged, or a module that an adapter recognises.
        variables: initial variables, in the form of the module's library.

    Raises:
        TypeError: if `module` is a class, if no adapter recognises it (the message lists what is accepted), or if an
            adapter does not return an ElegyModule.
        ValueError: if `variables` are given to an ElegyModule.

    Example:
        >>> resolve((lambda key, x: {}, lambda params, x: x))
        FunctionalModule(params=None, batch_stats=None, counters=None)
    """
    if isinstance(module, ElegyModule):
        if variables is not None:
            raise ValueError(
                f"variables are for modules of other libraries; {type(module).__name__} is an ElegyModule with its "
                "own: pass `module.replace(params=...)`."
            )
        return module
    if isinstance(module, type):
        raise TypeError(f"the module {module.__name__} is a class: pass an instance, `{module.__name__}(...)`.")
    for recognise, adapt in _ADAPTERS:
        if recognise(module):
            adapted = adapt(module, variables)
            if not isinstance(adapted, ElegyModule):
                raise TypeError(
                    f"the adapter for {type(module).__name__} returned a {type(adapted).__name__}, not an ElegyModule."
                )
            return adapted
    accepted = "\n  ".join(f"- {kind}" for kind in _ACCEPTED)
    raise TypeError(f"{_kind(module)} is not a module that a Trainer can run. It accepts:\n  {accepted}")


def _kind(module: Any) -> str:
    name = f"{type(module).__module__}.{type(module).__qualname__}".removeprefix("builtins.")
    if isinstance(module, tuple) and not hasattr(module, "_fields"):
        name = f"tuple ({', '.join(type(part).__name__ for part in module)})"
    return f"an object of type {name}"
