"""The loop."""

from elegy.trainer.model import Model
from elegy.trainer.trainer import Trainer

__all__ = ["Model", "Trainer"]
