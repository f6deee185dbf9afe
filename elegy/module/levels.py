"""Finds the level at which a class runs a phase, from the methods that it overrides."""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal, TypeVar

from elegy.types import Phase

F = TypeVar("F", bound=Callable)

Level = Literal["core", "managed", "high"]

_MARK = "__elegy_default__"


def default_step(method: F) -> F:
    """Marks a step method as a default, which delegates to the level below."""
    setattr(method, _MARK, True)
    return method


def overrides(cls: type, method: str) -> bool:
    """True if a class overrides the default method of this name."""
    return not getattr(getattr(cls, method), _MARK, False)


def level_of(cls: type, phase: Phase) -> Level:
    """Returns the level at which a class runs a phase.

    Args:
        cls: a subclass of ElegyModule.
        phase: `"init"`, `"train"`, `"test"` or `"pred"`.

    Example:
        >>> from elegy.module import ElegyModule
        >>> class Managed(ElegyModule):
        ...     def managed_train_step(self, key, batch, batch_idx, epoch_idx): ...
        >>> level_of(Managed, "train"), level_of(Managed, "test")
        ('managed', 'high')
    """
    if overrides(cls, f"{phase}_step"):
        return "core"
    return "managed" if overrides(cls, f"managed_{phase}_step") else "high"
