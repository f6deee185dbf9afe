"""ElegyModule, the state of a run and its steps, and the drivers of those steps."""

from elegy.module.averaging import EMA, SWA
from elegy.module.module import ElegyModule
from elegy.module.precision import Precision

__all__ = ["EMA", "SWA", "ElegyModule", "Precision"]
