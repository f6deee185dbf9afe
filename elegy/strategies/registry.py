"""Strategies by name."""

from __future__ import annotations

import difflib
from collections.abc import Callable

from elegy.strategies.data_parallel import DataParallel
from elegy.strategies.fsdp import FSDP
from elegy.strategies.local import Eager, Jit
from elegy.strategies.sharded import Sharded
from elegy.strategies.strategy import Strategy

_REGISTRY: dict[str, Callable[[], Strategy]] = {
    "eager": Eager,
    "jit": Jit,
    "data_parallel": DataParallel,
    "sharded": Sharded,
    "fsdp": FSDP,
}

_ELSEWHERE = {
    **dict.fromkeys(("dp", "ddp", "pmap", "parallel", "replicated", "mirrored"), "data_parallel"),
    **dict.fromkeys(("gspmd", "mesh", "spmd"), "sharded"),
    **dict.fromkeys(("zero", "zero_3", "zero3", "fully_sharded"), "fsdp"),
}
"""Names of other libraries that a search for similar names does not find."""


def register_strategy(name: str, factory: Callable[[], Strategy]) -> None:
    """Registers a strategy for `Trainer(strategy=name)`.

    Args:
        name: the new name.
        factory: a function without arguments that returns the strategy, such as a `Strategy` class.

    Raises:
        ValueError: if the name is taken.
        TypeError: if the name is not a string, or `factory` cannot be called.

    Example:
        >>> import jax
        >>> register_strategy("first_device", lambda: Jit(jax.devices()[0]))
        >>> resolve_strategy("first_device").compiles
        True
    """
    if not isinstance(name, str):
        raise TypeError(f"the name of a strategy must be a string, not {name!r}.")
    if not callable(factory):
        raise TypeError(f"the factory of strategy {name!r} must be a function without arguments, not {factory!r}.")
    if name in _REGISTRY:
        raise ValueError(f"a strategy named {name!r} exists already: {_REGISTRY[name]!r}.")
    _REGISTRY[name] = factory


def resolve_strategy(strategy: str | Strategy) -> Strategy:
    """Converts a name or an instance to a `Strategy`.

    Args:
        strategy: a `Strategy`, or a name such as `"jit"`.

    Raises:
        ValueError: if the name is unknown; the message lists the known names.
        TypeError: if the argument, or the result of a registered factory, is not a strategy.

    Example:
        >>> resolve_strategy("eager")
        Eager()
    """
    if isinstance(strategy, Strategy):
        return strategy
    if isinstance(strategy, type) and issubclass(strategy, Strategy):
        raise TypeError(f"the strategy {strategy.__name__} is a class: pass an instance, `{strategy.__name__}()`.")
    if not isinstance(strategy, str):
        raise TypeError(f"the strategy must be a name or a Strategy, not {strategy!r}. Names: {', '.join(_REGISTRY)}.")
    if strategy not in _REGISTRY:
        other = _ELSEWHERE.get(strategy.lower().replace("-", "_"))
        close = [other] if other else difflib.get_close_matches(strategy, _REGISTRY, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"unknown strategy {strategy!r}.{hint} Known strategies: {', '.join(_REGISTRY)}.")
    made = _REGISTRY[strategy]()
    if not isinstance(made, Strategy):
        raise TypeError(
            f"the factory registered as strategy {strategy!r} must return an elegy.strategies.Strategy, not {made!r}."
        )
    return made
