"""A callback made of functions."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from elegy.callbacks.callback import HOOKS, Callback, meant_hook
from elegy.callbacks.event import Event


class LambdaCallback(Callback):
    """Calls functions as hooks.

    Args:
        batch_hooks_read: what the batch hooks read (see `Callback`).
        **hooks: functions of one event, by hook name.

    Raises:
        TypeError: if a name is not a hook (the message lists the hooks), or a value cannot be called.

    Example:
        >>> callback = LambdaCallback(on_epoch_end=lambda event: print(event.epoch))
        >>> callback.on_epoch_end(Event(None, "train", step=10, epoch=0))
        0
    """

    def __init__(self, *, batch_hooks_read: Literal["logs", "state"] | None = None, **hooks: Callable[[Event], Any]):
        for name, function in hooks.items():
            if name not in HOOKS:
                meant = meant_hook(name)
                raise TypeError(f"LambdaCallback: {name!r} is not a hook.{meant} The hooks are: {', '.join(HOOKS)}.")
            if not callable(function):
                raise TypeError(f"LambdaCallback: {name} must be a function of one event, not {function!r}.")
        self.batch_hooks_read = batch_hooks_read
        # Instance attributes shadow the empty methods of the class.
        self.__dict__.update(hooks)
