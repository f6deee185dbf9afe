"""A callback made of functions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from elegy.callbacks.callback import HOOKS, Callback
from elegy.callbacks.event import Event


class LambdaCallback(Callback):
    """Calls the functions that it is given.

    Args:
        batch_hooks_read: what the batch hooks look at (see `Callback`).
        **hooks: functions of one event, by hook name.

    Raises:
        TypeError: for a name that is no hook (the message lists them), or a value that cannot be called.

    Example:
        >>> callback = LambdaCallback(on_epoch_end=lambda event: print(event.epoch))
        >>> callback.on_epoch_end(Event(None, "train", step=10, epoch=0))
        0
    """

    def __init__(self, *, batch_hooks_read: Literal["logs", "state"] | None = None, **hooks: Callable[[Event], Any]):
        for name, function in hooks.items():
            if name not in HOOKS:
                raise TypeError(f"LambdaCallback: {name!r} is no hook. The hooks are: {', '.join(HOOKS)}.")
            if not callable(function):
                raise TypeError(f"LambdaCallback: {name} must be a function of one event, not {function!r}.")
        self.batch_hooks_read = batch_hooks_read
        # Instance attributes hide the empty methods, so the dispatcher finds the functions themselves.
        self.__dict__.update(hooks)
