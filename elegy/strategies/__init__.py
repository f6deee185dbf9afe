"""Strategies: how a step runs on devices."""

from elegy.strategies.data_parallel import DataParallel
from elegy.strategies.fsdp import FSDP
from elegy.strategies.local import Eager, Jit
from elegy.strategies.mesh import MeshStrategy
from elegy.strategies.registry import register_strategy, resolve_strategy
from elegy.strategies.sharded import Sharded
from elegy.strategies.strategy import Strategy

__all__ = [
    "FSDP",
    "DataParallel",
    "Eager",
    "Jit",
    "MeshStrategy",
    "Sharded",
    "Strategy",
    "register_strategy",
    "resolve_strategy",
]
