"""Loggers: callbacks that write the logs of a run for other programs."""

from __future__ import annotations

from typing import TYPE_CHECKING

from elegy.lazy import lazy_names

if TYPE_CHECKING:
    from elegy.loggers.csv_logger import CSV, CSVLogger
    from elegy.loggers.json_lines import JSONLines
    from elegy.loggers.logger import Logger
    from elegy.loggers.mlflow import MLflow
    from elegy.loggers.record import Record
    from elegy.loggers.rich import Rich
    from elegy.loggers.service import ServiceLogger
    from elegy.loggers.tensorboard import TensorBoard
    from elegy.loggers.trackio import Trackio
    from elegy.loggers.wandb import WandB

__all__ = [
    "CSV",
    "CSVLogger",
    "JSONLines",
    "Logger",
    "MLflow",
    "Record",
    "Rich",
    "ServiceLogger",
    "TensorBoard",
    "Trackio",
    "WandB",
]

_NAMES = {
    "loggers.csv_logger": ("CSV", "CSVLogger"),
    "loggers.json_lines": ("JSONLines",),
    "loggers.logger": ("Logger",),
    "loggers.mlflow": ("MLflow",),
    "loggers.record": ("Record",),
    "loggers.rich": ("Rich",),
    "loggers.service": ("ServiceLogger",),
    "loggers.tensorboard": ("TensorBoard",),
    "loggers.trackio": ("Trackio",),
    "loggers.wandb": ("WandB",),
}

__getattr__, __dir__ = lazy_names(__name__, _NAMES)
