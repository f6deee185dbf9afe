"""Elegy: a training framework for JAX.

`Trainer` drives the steps of a module of any JAX library over data. See `elegy.Trainer` to begin with.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from elegy import (
        adapters,
        callbacks,
        checkpoint,
        cli,
        data,
        distributed,
        errors,
        loggers,
        losses,
        metrics,
        regularizers,
        runs,
        strategies,
        weights,
    )
    from elegy.adapters import LoRA
    from elegy.callbacks import Callback, Event, History
    from elegy.checkpoint import load
    from elegy.module import EMA, SWA, ElegyModule, Precision
    from elegy.optimizer import Optimizer
    from elegy.pytree import Pytree, Static, field, mutable, static_field, toplevel_mutable
    from elegy.strategies import Strategy, register_strategy
    from elegy.trainer import Evaluation, Model, Population, Trainer
    from elegy.types import Every

__version__ = "0.9.0"

__all__ = [
    "EMA",
    "SWA",
    "Callback",
    "ElegyModule",
    "Evaluation",
    "Event",
    "Every",
    "History",
    "LoRA",
    "Model",
    "Optimizer",
    "Population",
    "Precision",
    "Pytree",
    "Static",
    "Strategy",
    "Trainer",
    "adapters",
    "callbacks",
    "checkpoint",
    "cli",
    "data",
    "distributed",
    "errors",
    "field",
    "load",
    "loggers",
    "losses",
    "metrics",
    "mutable",
    "register_strategy",
    "regularizers",
    "runs",
    "static_field",
    "strategies",
    "toplevel_mutable",
    "weights",
]

_HOMES = {
    "adapters": ("LoRA",),
    "callbacks": ("Callback", "Event", "History"),
    "checkpoint": ("load",),
    "module": ("EMA", "SWA", "ElegyModule", "Precision"),
    "optimizer": ("Optimizer",),
    "pytree": ("Pytree", "Static", "field", "mutable", "static_field", "toplevel_mutable"),
    "strategies": ("Strategy", "register_strategy"),
    "trainer": ("Evaluation", "Model", "Population", "Trainer"),
    "types": ("Every",),
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names}


def __getattr__(name: str) -> Any:
    """Loads a part of Elegy when it is touched: `import elegy` alone costs nothing."""
    if name not in __all__:
        from elegy.suggestions import module_getattr

        return module_getattr(__name__)(name)
    if name in _HOME_OF:
        value = getattr(importlib.import_module(f"elegy.{_HOME_OF[name]}"), name)
    else:
        value = importlib.import_module(f"elegy.{name}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
