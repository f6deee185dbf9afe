"""Elegy: a training framework for JAX.

`Trainer` drives the steps of a module of any JAX library over data. See `elegy.Trainer` to begin with.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from elegy import callbacks, data, distributed, losses, metrics, regularizers, strategies
from elegy.callbacks import Callback, History
from elegy.module import ElegyModule
from elegy.optimizer import Optimizer
from elegy.pytree import Pytree, Static, field, mutable, static_field, toplevel_mutable
from elegy.strategies import Strategy, register_strategy
from elegy.trainer import Model, Trainer
from elegy.types import Every

if TYPE_CHECKING:
    from elegy import adapters, checkpoint
    from elegy.checkpoint import load

__version__ = "0.9.0"

__all__ = [
    "Callback",
    "ElegyModule",
    "Every",
    "History",
    "Model",
    "Optimizer",
    "Pytree",
    "Static",
    "Strategy",
    "Trainer",
    "adapters",
    "callbacks",
    "checkpoint",
    "data",
    "distributed",
    "field",
    "load",
    "losses",
    "metrics",
    "mutable",
    "register_strategy",
    "regularizers",
    "static_field",
    "strategies",
    "toplevel_mutable",
]

_WHEN_TOUCHED = ("adapters", "checkpoint")


def __getattr__(name: str) -> Any:
    if name in _WHEN_TOUCHED:
        return importlib.import_module(f"elegy.{name}")
    if name == "load":
        from elegy.checkpoint import load

        return load
    raise AttributeError(f"module 'elegy' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
