"""Callbacks: what watches a run."""

from elegy.callbacks.callback import HOOKS, Callback
from elegy.callbacks.csv_logger import CSVLogger
from elegy.callbacks.dispatcher import CallbackList
from elegy.callbacks.early_stopping import EarlyStopping
from elegy.callbacks.event import Event
from elegy.callbacks.functions import LambdaCallback
from elegy.callbacks.history import History
from elegy.callbacks.interrupt import handle_interrupts
from elegy.callbacks.interval import PeriodicCallback
from elegy.callbacks.model_checkpoint import ModelCheckpoint
from elegy.callbacks.monitor import Monitor
from elegy.callbacks.nan import TerminateOnNaN
from elegy.callbacks.tensorboard import TensorBoard
from elegy.lazy_logs import LazyLogs

__all__ = [
    "HOOKS",
    "CSVLogger",
    "Callback",
    "CallbackList",
    "EarlyStopping",
    "Event",
    "History",
    "LambdaCallback",
    "LazyLogs",
    "ModelCheckpoint",
    "Monitor",
    "PeriodicCallback",
    "TensorBoard",
    "TerminateOnNaN",
    "handle_interrupts",
]
