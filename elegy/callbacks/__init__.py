"""Callbacks: objects whose hooks are called during a run."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from elegy.callbacks.callback import HOOKS, Callback
from elegy.callbacks.dispatcher import CallbackList
from elegy.callbacks.early_stopping import EarlyStopping
from elegy.callbacks.event import Event
from elegy.callbacks.functions import LambdaCallback
from elegy.callbacks.histograms import WeightHistogram
from elegy.callbacks.history import History
from elegy.callbacks.interrupt import handle_interrupts
from elegy.callbacks.interval import PeriodicCallback
from elegy.callbacks.live_curves import LiveCurves
from elegy.callbacks.mfu import MFUMonitor
from elegy.callbacks.model_checkpoint import ModelCheckpoint
from elegy.callbacks.monitor import Monitor
from elegy.callbacks.monitors import DeviceMonitor, GradientMonitor, LearningRateMonitor, ThroughputMonitor
from elegy.callbacks.nan import TerminateOnNaN
from elegy.callbacks.optuna import OptunaPruning
from elegy.callbacks.profiler import Profiler
from elegy.callbacks.timers import TimeMonitor, Timer
from elegy.lazy_logs import LazyLogs
from elegy.suggestions import module_getattr

if TYPE_CHECKING:
    from elegy.loggers import CSVLogger, TensorBoard

__all__ = [
    "HOOKS",
    "CSVLogger",
    "Callback",
    "CallbackList",
    "DeviceMonitor",
    "EarlyStopping",
    "Event",
    "GradientMonitor",
    "History",
    "LambdaCallback",
    "LazyLogs",
    "LearningRateMonitor",
    "LiveCurves",
    "MFUMonitor",
    "ModelCheckpoint",
    "Monitor",
    "OptunaPruning",
    "PeriodicCallback",
    "Profiler",
    "TensorBoard",
    "TerminateOnNaN",
    "ThroughputMonitor",
    "TimeMonitor",
    "Timer",
    "WeightHistogram",
    "handle_interrupts",
]


def __getattr__(name: str) -> Any:
    """Imports the loggers on first access: their modules import this package, so it cannot import them first."""
    if name in ("CSVLogger", "TensorBoard"):
        return getattr(importlib.import_module("elegy.loggers"), name)
    return module_getattr(__name__)(name)
