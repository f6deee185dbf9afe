"""Warns of arguments of a trainer that no step of its module uses."""

from __future__ import annotations

import warnings
from typing import Any

from elegy.callers import stacklevel_of_caller
from elegy.module import ElegyModule, high_level
from elegy.module.levels import level_of
from elegy.module.mentions import may_mention
from elegy.types import Phase

_DEFAULT_STEPS = ("super", "train_step", "test_step", "managed_train_step", "managed_test_step")
_PHASES: tuple[Phase, ...] = ("train", "test")


def warn_of_unused(module: Any, *, losses: str, optimizer: bool) -> None:
    """Warns of losses, metrics and an optimizer that a module of the core or managed level ignores.

    A module whose methods refer to `losses_and_metrics` or `optimizer`, or to a step by its name, may use them.

    Args:
        module: the module, with the arguments of the trainer.
        losses: the given ones of `loss=` and `metrics=`, as they are written in the message; or empty.
        optimizer: True if an optimizer was given.

    Warns:
        UserWarning: if arguments are not used; the message says which, and what to write.
    """
    cls = type(module)
    own = [_step(cls, phase) for phase in _PHASES if level_of(cls, phase) != "high"]
    runs_high = high_level.runs_apply(module) and len(own) < len(_PHASES)
    if losses and own and not runs_high and not may_mention(cls, (*_DEFAULT_STEPS, "losses_and_metrics"), ElegyModule):
        warnings.warn(
            f"{losses} of the trainer are not used: {cls.__name__} has its own {' and '.join(own)}, which do not refer "
            "to `self.losses_and_metrics`. Compute the loss and log the metrics there, `self.log(name, value)`, and "
            "leave these arguments out; or write `init` and `apply`, and call the default step, "
            "`super().managed_train_step(...)`.",
            stacklevel=stacklevel_of_caller(),
        )
    if optimizer and level_of(cls, "train") == "core" and not may_mention(cls, ("super", "optimizer"), ElegyModule):
        warnings.warn(
            f"optimizer= of the trainer is not used: {cls.__name__} has its own train_step, which does not refer to "
            "`self.optimizer`. Update the parameters with `self.optimizer.update(grads, self.params)` there, leave the "
            "argument out, or write `managed_train_step` in place of `train_step`.",
            stacklevel=stacklevel_of_caller(),
        )


def _step(cls: type, phase: Phase) -> str:
    return f"{phase}_step" if level_of(cls, phase) == "core" else f"managed_{phase}_step"
