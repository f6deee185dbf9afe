"""Callbacks: what watches a run."""

from elegy.callbacks.callback import HOOKS, Callback
from elegy.callbacks.dispatcher import CallbackList
from elegy.callbacks.event import Event, LazyLogs
from elegy.callbacks.history import History

__all__ = ["HOOKS", "Callback", "CallbackList", "Event", "History", "LazyLogs"]
