"""Adapters for modules of other libraries. An adapter is imported on first use."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from elegy.adapters.resolve import register_adapter, resolve

if TYPE_CHECKING:
    from elegy.adapters.equinox import EquinoxModule
    from elegy.adapters.functional import FunctionalModule
    from elegy.adapters.haiku import HaikuModule
    from elegy.adapters.keras import KerasModule
    from elegy.adapters.linen import LinenModule
    from elegy.adapters.lora import LoRA, LoRAModule
    from elegy.adapters.nnx import NNXModule
    from elegy.adapters.penzai import PenzaiModule
    from elegy.adapters.treex import TreexModule, load_treex

_LAZY = {
    "EquinoxModule": "equinox",
    "FunctionalModule": "functional",
    "HaikuModule": "haiku",
    "KerasModule": "keras",
    "LinenModule": "linen",
    "LoRA": "lora",
    "LoRAModule": "lora",
    "NNXModule": "nnx",
    "PenzaiModule": "penzai",
    "TreexModule": "treex",
    "load_treex": "treex",
}

__all__ = [
    "EquinoxModule",
    "FunctionalModule",
    "HaikuModule",
    "KerasModule",
    "LinenModule",
    "LoRA",
    "LoRAModule",
    "NNXModule",
    "PenzaiModule",
    "TreexModule",
    "load_treex",
    "register_adapter",
    "resolve",
]


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(f"elegy.adapters.{_LAZY[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
