"""Loggers: callbacks that write the logs of a run for other programs."""

from elegy.loggers.csv_logger import CSVLogger
from elegy.loggers.json_lines import JSONLines
from elegy.loggers.logger import Logger
from elegy.loggers.mlflow import MLflow
from elegy.loggers.record import Record
from elegy.loggers.rich import Rich
from elegy.loggers.service import ServiceLogger
from elegy.loggers.tensorboard import TensorBoard
from elegy.loggers.trackio import Trackio
from elegy.loggers.wandb import WandB

CSV = CSVLogger

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
