"""ElegyModule and its drivers."""

from elegy.module.module import ElegyModule

__all__ = ["ElegyModule"]
