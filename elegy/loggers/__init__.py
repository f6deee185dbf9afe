"""Loggers: callbacks that write the logs of a run for other programs."""

from elegy.loggers.csv_logger import CSVLogger
from elegy.loggers.json_lines import JSONLines
from elegy.loggers.logger import Logger, Record
from elegy.loggers.tensorboard import TensorBoard

CSV = CSVLogger

__all__ = ["CSV", "CSVLogger", "JSONLines", "Logger", "Record", "TensorBoard"]
