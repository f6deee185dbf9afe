"""How a step runs on devices."""

from elegy.strategies.local import Eager, Jit
from elegy.strategies.registry import register_strategy, resolve_strategy
from elegy.strategies.strategy import Strategy

__all__ = ["Eager", "Jit", "Strategy", "register_strategy", "resolve_strategy"]
