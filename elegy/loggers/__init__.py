"""Loggers: callbacks that write the logs of a run for other programs."""

from elegy.loggers.csv_logger import CSVLogger
from elegy.loggers.tensorboard import TensorBoard

__all__ = ["CSVLogger", "TensorBoard"]
