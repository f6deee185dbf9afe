"""The loop."""

from elegy.trainer.trainer import Model, Trainer

__all__ = ["Model", "Trainer"]
