"""The base class of loggers that write several records at once."""

from __future__ import annotations

import abc
from collections.abc import Sequence

from elegy.loggers.logger import Logger
from elegy.loggers.record import Record


class BlockLogger(Logger):
    """A logger that implements `log_block`."""

    @abc.abstractmethod
    def log_block(self, records: Sequence[Record]) -> None:
        """Writes the values of several steps."""

    def log_scalars(self, record: Record) -> None:
        """Writes the values of a step or an epoch."""
        self.log_block([record])
