"""ElegyModule, the state of a run and its steps, and the drivers of those steps."""

from elegy.module.module import ElegyModule
from elegy.module.precision import Precision

__all__ = ["ElegyModule", "Precision"]
